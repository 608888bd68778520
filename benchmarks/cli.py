"""The commands that measure, `demo`, `bench`, `audit`, `report` and `towers transfer`, as entry points `tessera.commands`.

All that a command needs is imported inside it: this module is, whenever commands are listed.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tessera.common.errors import ConfigError
from tessera.common.utils.folder_lock import hold_folder
from tessera.common.utils.logs import only_from
from tessera.deploy.api.tables import print_table
from tessera.deploy.api.work import Work
from tessera.deploy.cli.runs import completion
from tessera.deploy.cli.train import Changes

demo = typer.Typer(add_completion=False)
bench = typer.Typer(add_completion=False)
audit = typer.Typer(add_completion=False)
report = typer.Typer(add_completion=False)
transfer = typer.Typer(add_completion=False)
console = Console(highlight=False)
DEMO = Path(__file__).with_name("demo.yaml")
SIZES_TRIED = "tiny,small,base"
Runs = Annotated[Path, typer.Option(help="Folder the runs lie in.")]


@demo.command(epilog="Example: tessera demo --nodes 3")
def run_demo(
    config: Annotated[Path, typer.Argument(help="Settings of the run, YAML.")] = DEMO,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes; the config's by default.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train on the generated shop, show ten recommendations with reasons, and how well the users were understood."""
    from tessera.benchmarks.harness.reliance import correlations, reliances
    from tessera.deploy.api.settings import load_config
    from tessera.deploy.cli.recommend import show_recommendations
    from tessera.deploy.cli.train import train_and_show
    from tessera.deploy.provisioning.datasets import prepared_dataset

    settings = load_config(config, *([f"federation.nodes={nodes}"] if nodes else []))
    if settings.data.kind != "shop":
        raise ConfigError(
            f"{config} is about {settings.data.folder!r}; the demo is about the generated shop, where it is known what "
            "people go by: tessera train runs other data, with --data"
        )
    result = train_and_show(settings, "inline", None, runs, overwrite=True)
    device = result.device()
    show_recommendations(device.recommend(device.people()[0].user))
    dataset = prepared_dataset(settings.data, None)
    found = correlations(reliances(dataset, result.devices))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    console.print(f"\nSpearman correlation of users' true reliance with what their devices learnt of it: {parts}")
    console.print("\nin a browser, for this person and for whoever runs it:")
    for words in (
        f"tessera device page --data-dir {result.devices[0]} --pictures {dataset}",
        f"tessera runs page --runs {runs}",
    ):
        console.print(f"    {words}", markup=False, soft_wrap=True)
    print(json.dumps(result.figures | {"reliance_spearman": {name: round(value, 3) for name, value in found.items()}}))


@bench.command(epilog="Example: tessera bench benchmarks/ml-latest-small/table2.yaml --data DATA --quick")
def run_grid(
    grid: Annotated[
        Path,
        typer.Argument(help="Methods, choices, seeds and centralised baselines, YAML."),
    ],
    data: Annotated[Path | None, typer.Option(help="As for train.")] = None,
    runs: Runs = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="Quick settings, one seed, no choices: does it run?")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A method or baseline to run; may be repeated. The tables hold these alone.",
            autocompletion=completion.methods,
        ),
    ] = None,
) -> None:
    """Run a grid of methods, seeds and centralised baselines, choosing on validation only; a killed one goes on where it was.

    Writes results.parquet, differences.parquet and results.md, to report.html the same with the paired differences as a
    picture, and to best.yaml the settings that are best on validation; prints the tables, and ends with one line of JSON.
    """
    from tessera.benchmarks.harness.runner import run_bench
    from tessera.benchmarks.harness.spec import BenchSpec
    from tessera.benchmarks.report.write import write_report

    loaded = BenchSpec.load(grid, quick, only or ())
    with hold_folder(runs / loaded.name):
        outcome = run_bench(loaded, data, runs, lambda text: console.print(text, markup=False, soft_wrap=True))
    console.print(outcome.markdown(), markup=False, soft_wrap=True)
    try:
        write_report([runs / loaded.name], html := runs / loaded.name / "report.html")
        console.print(f"the same with pictures: {html}", markup=False, soft_wrap=True)
    except ConfigError as missing:  # the extra `plots`
        console.print(f"no report: {missing}; then tessera report {runs / loaded.name}", markup=False, soft_wrap=True)
    where = f" --data {data}" if data else ""
    for best in outcome.best:
        console.print(best.sentence() + where, markup=False, soft_wrap=True)
    figures = {"name": loaded.name, "folder": str(runs / loaded.name), "means": outcome.means()}
    print(json.dumps(figures | {"best": [asdict(best) | {"config": str(best.config)} for best in outcome.best]}))


@audit.command(epilog="Example: tessera audit benchmarks/demo.yaml --quick --set privacy.secure=false")
def run_audit(
    config: Annotated[Path, typer.Argument(help="Settings of the run that is attacked, YAML.")],
    data: Annotated[Path | None, typer.Option(help="As for train.")] = None,
    change: Changes = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; gates are about their means.")] = "0",
    quick: Annotated[
        bool, typer.Option("--quick", help="Few people and rounds: minutes, and figures that say little.")
    ] = False,
    people: Annotated[int | None, typer.Option(min=3, help="People whose histories are looked for.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=3, help="Devices of these people; by default each has one.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each run.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="An attack to carry out; may be repeated. All by default.")
    ] = None,
) -> None:
    """Attack a configuration in simulation, and say of each attack what it got, what anybody gets, and whether that passes.

    The exit code is 1 where a gate fails. Devices mask as they would in a federation, and have the policy that a real one
    begins with. Ends with one line of JSON.
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from tessera.benchmarks.audit.findings import QUICK, Size
    from tessera.benchmarks.audit.run import audit as carry_out
    from tessera.benchmarks.audit.run import figures
    from tessera.common.config.loading import load_settings
    from tessera.deploy.api.ticker import Ticker
    from tessera.deploy.provisioning.datasets import prepared_dataset

    size = QUICK if quick else Size()
    size = replace(size, people=people or size.people, devices=devices or 0, rounds=rounds or size.rounds)
    settings = load_settings(config, "inline", [f"federation.nodes={size.nodes}", *(change or ())])
    drawn = [int(seed) for seed in _split(seeds)]
    dataset = prepared_dataset(settings.data, data)
    bar = Progress(console=console, disable=not console.is_terminal, transient=True)
    shown, now = bar.add_task("", total=None), ["starting"]

    def tell(text: str) -> None:
        now[0] = text
        bar.update(shown, description=text)

    quiet = nullcontext() if console.is_terminal else Ticker(console.print, lambda _: now[0])
    with only_from(logging.CRITICAL), bar, quiet:  # devices log each refusal
        found = carry_out(settings, dataset, drawn, size, only or (), tell)
    table = Table("attack", "measure", "got", "prior", "gate", "")
    for one in found:
        table.add_row(*one.row())
    print_table(console, table)
    print(json.dumps(figures(settings, size, drawn, found)))
    if not all(one.holds for one in found):
        raise typer.Exit(1)


@report.command(epilog="Example: tessera report runs/demo --out demo.html")
def write(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or that of one grid.", autocompletion=completion.runs),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML file about runs or a grid: results, curves, who is served, bytes, privacy, settings; it opens offline.

    What is about single people is drawn as distributions, and only where the devices were simulated on this machine.
    """
    from tessera.benchmarks.report.write import write_report

    write_report(folders, out)
    console.print(f"{out} is written", markup=False, soft_wrap=True)


@transfer.command(epilog="Example: tessera towers transfer data/questions --classes tiny,base --task contrast")
def run_transfer(
    dataset: Path,
    classes: Annotated[
        str, typer.Option(help="Device classes, separated by commas; those of --model by default.")
    ] = SIZES_TRIED,
    task: Annotated[str, typer.Option(help="Only tasks with this in their names.")] = "",
    alignments: Annotated[str, typer.Option(help="Alignments, separated by commas.")] = "effects,whitened,paper,random",
    rank: Annotated[int, typer.Option(min=1, help="Size of P.")] = 16,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A class that is somebody's model, NAME=SOURCE as in mosaic.models; may be repeated."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    steps: Annotated[int | None, typer.Option(min=1, help="Batches that P and Q learn from; 200 by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Questions in a batch; 32 by default.")] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of a tower with P and Q.")] = 4,
) -> None:
    """Train P and Q on tasks in one tower, plug them into another, and score both: does anything carry over?

    A tower's gain is that of its accuracy on the tests over what it was before; of models that are asked in words, of the
    log-likelihood of a token of the right answer, in hundredths of a nat. What random A and B carry over is chance.
    """
    from tessera.benchmarks.harness.transfer import BATCH, STEPS, Trial, summary
    from tessera.benchmarks.harness.transfer import transfer as carry_over

    named = dict(one.split("=", 1) for one in model or () if "=" in one)
    if len(named) != len(model or ()):
        raise ConfigError("--model: write NAME=SOURCE, such as desk=models/large")
    if named and classes != SIZES_TRIED and set(_split(classes)) != named.keys():
        raise ConfigError("--classes: where models are named by --model, these are the classes")
    if not all(seed.isdecimal() for seed in _split(seeds)):
        raise ConfigError(f"--seeds: {seeds!r} are no whole numbers, separated by commas")
    drawn = tuple(map(int, _split(seeds)))
    chosen = tuple(named) or _split(classes)
    trial = Trial(chosen, _split(alignments), named, task, rank, drawn, steps or STEPS, batch or BATCH, blocks)
    with Work(console, "reading the dataset") as work:
        advance = work.begin("trying", 0)

        def tried(trainings: int) -> None:
            nonlocal advance
            if trainings:
                advance = work.begin("trying", trainings)
            else:
                advance()

        found = carry_over(dataset, trial, tried)
    table = Table("family", "alignment", "learnt by", "got by", "tasks", "own gain", "transferred", "share")
    for row in summary(found):
        table.add_row(*row)
    print_table(console, table)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))
