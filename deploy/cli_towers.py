"""`tessera towers`: fit the towers of device classes on a catalogue, and test what P and Q carry over between them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common.towers.towers import SIZES

app = typer.Typer(
    no_args_is_help=True, help="Fit the towers of device classes, and test what carries over between them."
)
console = Console(highlight=False)
FIT_EPILOG = "Example: tessera towers fit data/questions --classes tiny,small,base"
TRANSFER_EPILOG = "Example: tessera towers transfer data/questions --classes tiny,base --task contrast"
Classes = Annotated[str, typer.Option(help="Device classes, separated by commas.")]


@app.command("fit", epilog=FIT_EPILOG)
def fit_command(
    dataset: Path,
    classes: Classes = ",".join(SIZES),
    steps: Annotated[int, typer.Option(min=20, help="Batches to learn from.")] = 1500,
) -> None:
    """Fit a reader of each class on the pictures and texts of DATASET: no label, nobody's events and no test item is used.

    The largest is fitted first, and smaller ones are derived from it. A fit that is there already is not repeated.
    """
    from deploy.towers import fit_towers

    asked = _split(classes)
    with Progress(console=console, disable=not console.is_terminal) as bar:

        def begin(name: str, total: int) -> Callable[[], None]:
            task = bar.add_task(f"fitting {name}", total=total)
            return lambda: bar.advance(task)

        told = fit_towers(dataset, asked, steps, begin)
    table = Table(
        "class", "width", "layers", "right", "hardest", title="pretext questions about items not seen in the fit, %"
    )
    for name in asked:
        right = told[name]["accuracy"]
        hardest = min(right, key=lambda instruction: right[instruction])
        facts = (told[name]["width"], told[name]["depth"], f"{100 * right['all']:.1f}")
        table.add_row(name, *map(str, facts), f"{hardest}: {100 * right[hardest]:.0f}")
    console.print(table)


@app.command("transfer", epilog=TRANSFER_EPILOG)
def transfer_command(
    dataset: Path,
    classes: Classes = ",".join(SIZES),
    task: Annotated[str, typer.Option(help="Only tasks with this in their names.")] = "",
    alignments: Annotated[str, typer.Option(help="Alignments, separated by commas.")] = "effects,whitened,paper,random",
    rank: Annotated[int, typer.Option(min=1, help="Size of P.")] = 16,
) -> None:
    """Train P and Q on tasks in one tower, plug them into another, and score both: does anything carry over?

    A tower's gain is that of its accuracy on the tests over what it was before. What random A and B carry over is chance.
    """
    from deploy.transfer import summary, transfer

    with Progress(console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("trying", total=None)

        def advance(trainings: int) -> None:
            bar.update(shown, total=trainings) if trainings else bar.advance(shown)

        found = transfer(dataset, _split(classes), _split(alignments), task, rank, advance)
    table = Table("family", "alignment", "learnt by", "got by", "tasks", "own gain", "transferred", "share")
    for row in summary(found):
        table.add_row(*row)
    console.print(table)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))
