"""Writes the report: one HTML file that loads nothing, opens offline and prints."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, PackageLoader

from tessera.benchmarks.report.facts import (
    RESULTS,
    GridFacts,
    answers,
    changed_settings,
    cost,
    data,
    environment,
    happened,
    notes,
    quality,
)
from tessera.common.errors import ConfigError, DataError
from tessera.common.utils.atomic_files import write_bytes
from tessera.server.live.run_info import RunInfo


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write to `out` what runs were and how they went, or a grid of `tessera bench`.

    Raises `DataError` where a folder holds neither, `ConfigError` where the extra `plots` is missing.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the report's pictures need matplotlib: pip install 'tessera[plots]'")
    if len(folders) == 1 and (folders[0] / RESULTS).exists():
        content = _grid(GridFacts.read(folders[0]))
    else:
        content = _runs([RunInfo.read(folder) for folder in folders])
    templates = Environment(loader=PackageLoader("tessera.benchmarks.report", "."), autoescape=True)
    page = templates.get_template("page.html").render(content | {"environment": environment()})
    write_bytes(out, page.encode())


def _runs(runs: Sequence[RunInfo]) -> dict[str, object]:
    from tessera.benchmarks.report.figures import pictures_of

    asked = {run.settings.asks_questions for run in runs}
    if len(asked) > 1:
        raise DataError("some of these runs recommend and others answer questions: report them apart")
    several = len(runs) > 1
    table = answers(runs) if asked.pop() else quality(runs)
    named = [(f"{run.name}: " if several else "", run) for run in runs]
    return {
        "title": ", ".join(run.name for run in runs),
        "lines": [f"{name}{run.record.sentence()}" for name, run in named],
        "lists": [(f"{name}data".capitalize() if not name else f"{name}data", data(run)) for name, run in named],
        "tables": [table],
        "notes": [f"{name}{line}" for name, run in named for line in notes(run)],
        "pictures": pictures_of(runs),
        "costs": [f"{name}{line}" for name, run in named for line in cost(run)],
        "happened": [f"{name}{line}" for name, run in named for line in happened(run)],
        "settings": [changed_settings(runs)],
    }


def _grid(grid: GridFacts) -> dict[str, object]:
    from tessera.benchmarks.report.figures import pictures_of_grid

    return {"title": grid.folder.name, "tables": grid.tables(), "pictures": pictures_of_grid(grid)}
