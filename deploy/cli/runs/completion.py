"""What the shell offers for an argument: quickly, from names of files, without torch; nothing where nothing fits."""

from contextlib import suppress
from itertools import islice
from pathlib import Path

import click

DEPTHS = ("*", "*/*", "*/*/*")
OFFERED = 200
"""Names at a time."""


def runs(ctx: click.Context, incomplete: str) -> list[str]:
    """Folders of runs below the one that they lie in, those of grids too. Elsewhere the shell offers files, as for any path."""
    folder = Path(str(ctx.params.get("runs") or "runs"))
    found = (path.parent for depth in DEPTHS for path in folder.glob(f"{depth}/status.json"))
    return sorted(str(path) for path in islice(found, OFFERED) if str(path).startswith(incomplete))


def settings(incomplete: str) -> list[str]:
    """Keys of settings, each with its equals sign: `local.learning_rate=`."""
    from tessera.common.config.loading import keys_of
    from tessera.common.config.settings import Settings

    keys = dict.fromkeys(keys_of(Settings))
    single = (key for key in keys if not any(other.startswith(f"{key}.") for other in keys))
    return [f"{key}=" for key in single if key.startswith(incomplete)]


def submitted(ctx: click.Context, incomplete: str) -> list[str]:
    """Names of the runs that were submitted to the server of --dir."""
    folder = Path(str(ctx.params.get("folder") or ""))
    return sorted(path.stem for path in (folder / "submitted").glob("*.json") if path.stem.startswith(incomplete))


def methods(ctx: click.Context, incomplete: str) -> list[str]:
    """Methods and baselines of a grid that has been written before."""
    from tessera.common.config.loading import read_yaml

    with suppress(Exception):  # whatever is wrong with the grid: the command will say it
        content = read_yaml(Path(ctx.args[0]))  # an option without its value: nothing is parsed yet
        names = [*content.get("methods", {}), *content.get("baselines", [])]
        return sorted(str(name) for name in names if str(name).startswith(incomplete))
    return []
