"""Carries out a run on the server: the Flower ServerApp, which reads the run's config and calls `run_rounds`."""

from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from tessera.common.config.effects import no_secure_sums
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.flower_internals.grid import look_sooner, over_network
from tessera.common.protocol.signed.keys import SIGNING_KEY
from tessera.common.utils.folder_lock import SERVING, hold_folder
from tessera.common.utils.logs import run_log
from tessera.common.utils.parent_death import tether
from tessera.server.dispatch import Dispatcher
from tessera.server.live.continuation import read_source, start_from
from tessera.server.live.pace import Endless, Pace
from tessera.server.live.small_pictures import small_pictures
from tessera.server.live.standing import Standings
from tessera.server.live.stopping import STOPPED
from tessera.server.nodes.catalogue_delivery import CatalogueDelivery
from tessera.server.nodes.signing import Signer
from tessera.server.rounds import run_rounds
from tessera.server.run_folder import Report, RunFolder, Start
from tessera.server.secure.sums import SecureSums
from tessera.server.strategies import make_strategy
from tessera.server.tracking import tracked


def serve(
    grid: Grid,
    settings: Settings,
    catalogue: Path,
    run_dir: Path,
    resume: bool,
    report: Report | None = None,
    admitted: Path | None = None,
    published: Path | None = None,
    forever: bool = False,
    continues: Path | None = None,
    signing: Path | None = None,
) -> None:
    """Carry out a run over `grid`. The outcome, and the reason of a failure, are in the run's status.json; what happened when
    is in its run.log.

    `report`, where given, hears each line of the metrics as it is written. `admitted` is where the operator's list of devices
    lies, where there is one, and `published` where the best model is to be published. `forever`: until it is stopped.
    `continues` is the folder of the run whose best round this one begins with, if any. `signing` is where the key lies that
    the server signs with, by default beside the run; it is made where there is none.
    """
    with run_log(run_dir):
        if resume:
            folder = RunFolder.reopen(run_dir, settings)
        else:
            folder = RunFolder.create(run_dir, settings, _start(settings, catalogue, continues) if continues else None)
        folder.listener, folder.published = report, published
        folder.pictures = catalogue if settings.federation.pictures else None
        pace = Endless(settings, run_dir, catalogue) if forever else Pace(settings, run_dir)
        signer = Signer.of(signing or run_dir.parent / SIGNING_KEY)
        _carry_out(grid, settings, catalogue, folder, admitted, pace, signer)


def _start(settings: Settings, catalogue: Path, continues: Path) -> Start:
    """What a run begins with that continues another one."""
    items = load_catalogue(catalogue)
    return start_from(read_source(continues), make_strategy(settings, items, catalogue), settings, items)


def _carry_out(
    grid: Grid,
    settings: Settings,
    catalogue: Path,
    folder: RunFolder,
    admitted: Path | None,
    pace: Pace,
    signer: Signer,
) -> None:
    standings = Standings(folder.path)
    try:
        items = load_catalogue(catalogue)
        folder.is_about(items.version)
        secure = secure_sums(grid, settings, folder.run, admitted)
        delivery = CatalogueDelivery(items)
        if settings.federation.pictures:
            delivery = CatalogueDelivery(items, partial(small_pictures, catalogue, items))
        dispatcher = Dispatcher(grid, settings.federation, secure, delivery, signer)
        dispatcher.standings = standings
        strategy = make_strategy(settings, items, catalogue)
        with tracked(settings, folder):
            run_rounds(dispatcher, strategy, settings, items, folder, pace)
    except Exception as error:
        folder.fail(str(error) or type(error).__name__)
        raise
    except BaseException:  # Flower stops a run by SystemExit, a person by KeyboardInterrupt
        folder.fail(STOPPED)
        raise
    finally:
        standings.end()
    folder.status("completed")


def secure_sums(grid: Grid, settings: Settings, run: str, admitted: Path | None = None) -> SecureSums | None:
    """The secure sums of a run, where it has any: they were asked for, or devices are asked over a network and can."""
    wanted = settings.privacy.secure
    if not wanted or (wanted == "auto" and (not over_network(grid) or no_secure_sums(settings))):
        return None
    return SecureSums.of(grid, settings, run, admitted)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run's config, as the submitter set it, and serve."""
    tether()  # Flower's own watch of the parent does not wake a ServerApp that waits for a server that is gone
    look_sooner()
    config = context.run_config
    settings = Settings.model_validate_json(str(config["settings"]))
    run_dir = Path(str(config["run-dir"]))
    with hold_folder(run_dir, SERVING):
        admitted, published, continues, signing = (
            Path(str(config[name])) if config[name] else None
            for name in ("admitted", "published", "continues", "signing")
        )
        catalogue, resume = Path(str(config["catalogue"])), bool(config["resume"])
        forever = bool(config["forever"])
        serve(grid, settings, catalogue, run_dir, resume, None, admitted, published, forever, continues, signing)
