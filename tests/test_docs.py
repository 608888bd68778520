"""The documentation says what is so: commands exist, links lead somewhere, the tutorial works as it stands."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import typer
from flwr.cli.app import app as flwr
from flwr.common.config import parse_config_args

from tessera.common.registry.backbones import BackboneSpec
from tessera.common.registry.converters import ConverterSpec
from tessera.common.registry.defences import DefenceSpec
from tessera.common.registry.encoders import EncoderSpec
from tessera.common.registry.losses import LossSpec
from tessera.common.registry.methods import MethodSpec
from tessera.common.registry.strategies import StrategySpec
from tessera.deploy.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/RESULTS.md"])
WRITTEN = {"configuration.md", "metrics.md", "commands.md"}
"""Pages that `make docs` writes from the code."""
NAMES = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = "\n".join(line for line in page.read_text().splitlines() if not line.startswith("    "))
    targets = [t for t in NAMES.findall(text) if "://" not in t and t not in WRITTEN]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    assert [f"{line}: {trouble}" for line in commands(page.read_text()) if (trouble := wrong(line))] == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_functions_that_a_gradient_passes_are_there() -> None:
    walk = (ROOT / "docs/architecture.md").read_text().split("## The walk of one gradient")[1].split("\n## ")[0]
    code = "\n".join(
        path.read_text() for room in ("server", "client", "common") for path in (ROOT / room).rglob("*.py")
    )
    named = {name for name in re.findall(r"`(\w+\.\w+)`", walk)}
    assert len(named) >= 6
    assert {name for name in named if not re.search(rf"\b(def|class) {name.split('.')[1]}\b", code)} == set()


def test_the_components_shown_are_what_the_registries_take() -> None:
    kinds = [BackboneSpec, LossSpec, StrategySpec, MethodSpec, DefenceSpec, ConverterSpec, EncoderSpec]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    specs = []
    for block in blocks:
        names: dict[str, object] = {"__name__": "my_package"}
        exec(block, names)
        specs += [names["SPEC"]] if "SPEC" in names else []
        assert isinstance(specs[-1], kinds[len(specs) - 1]) if specs else "SPEC" not in names
        if specs and "SPEC" in names:
            assert str(specs[-1].implementation).split(":")[1] in names  # type: ignore[attr-defined]
    assert len(specs) == len(kinds)


@pytest.mark.integration
@pytest.mark.slow  # it searches a grid
def test_the_tutorial_works_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs/tutorial.md").read_text()
    for name, content in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        (tmp_path / name).write_text(content)
    said = ""
    for line in [line[4:] for line in text.splitlines() if re.match(r"    (tessera|python) ", line)]:
        if "grpc" in line or "raw/" in line:
            continue
        said += run(line, tmp_path)
    assert len(list((tmp_path / "devices").iterdir())) == 3
    rows = dict(re.findall(r"^ *(mine, round|popularity|content-text).*?((?:\d+\.\d+ *)+)$", said, re.MULTILINE)[:3])
    scores = {name: float(figures.split()[1]) for name, figures in rows.items()}
    assert scores["mine, round"] > 1.3 * scores["content-text"] > 1.3 * scores["popularity"]
    assert "this person goes by" in said


@pytest.mark.integration
def test_the_page_for_apps_runs_as_it_stands(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/app.md").read_text(), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    said = run("python page.py", tmp_path)
    assert re.search(r"^no item has the id 'a lamp that nobody sells'", said, re.MULTILINE), said
    assert (tmp_path / "zoe.zip").exists()


def run(line: str, folder: Path) -> str:
    """Run a line of the tutorial with this environment's commands."""
    beside = Path(sys.executable).parent
    program, *rest = shlex.split(line)
    done = subprocess.run([beside / program, *rest], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def commands(text: str) -> Iterator[str]:
    """Lines that show a command: indented by four, or quoted within a line."""
    for line in text.splitlines():
        if re.match(r"    (tessera|make|python|docker compose|flwr) ", line):
            yield re.split(r" {3,}|\s#", line.strip())[0]
        elif not line.startswith("    "):
            yield from re.findall(r"`((?:tessera|make|python|flwr) [^`]+)`", line)


def wrong(line: str) -> str:
    """What is wrong with a command; nothing when it exists with its options."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if words[0] in targets else "no such target"
    if program == "python":
        module = (
            words[1].removeprefix("tessera.").replace(".", "/") if words[0] == "-m" else words[0].removesuffix(".py")
        )
        there = module in ("pytest", "make_books") or any(
            (ROOT / f"{module}{end}").exists() for end in (".py", "/__main__.py")
        )
        return "" if there else "no such file"
    if program == "tessera":
        return wrong_options(words, app)
    if program == "flwr":
        return wrong_options(words, flwr) or wrong_run_config(words)
    return ""


def wrong_run_config(words: list[str]) -> str:
    """Look for each key of a run config below `[tool.flwr.app.config]`: Flower takes no others."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    given = parse_config_args([value for name, value in pairwise(words) if name == "--run-config"])
    return f"no {', '.join(sorted(given.keys() - known))}" if given.keys() - known else ""


def wrong_options(words: list[str], commands: typer.Typer) -> str:
    """Follow the words down the command's groups, and look for each option."""
    command: click.Command | None = typer.main.get_command(commands)
    context = click.Context(command)
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        try:
            name, found, words = command.resolve_command(context, words)
        except click.UsageError as error:
            return error.message
        command, context = found, click.Context(found, parent=context, info_name=name)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return f"no {', '.join(sorted(given - known))}" if given - known else ""
