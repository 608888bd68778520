"""The rules of design.md and style.md that a program can check."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "server", "client", "deploy")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PRODUCT = files(*PACKAGES)
EVERYTHING = PRODUCT + files("benchmarks", "tests")


def called(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Functions, classes and their methods whose names do not begin with an underscore."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in PRODUCT} == set(PACKAGES)
    assert len(PRODUCT) > 40


def test_packages_import_only_what_they_may() -> None:
    """The contracts are in pyproject.toml, below [tool.importlinter]; what breaks one is told line by line."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[done.stdout.find("Contracts") :] + done.stderr


@pytest.mark.parametrize(("app", "other"), [("client", "server"), ("server", "client")])
def test_an_app_loads_nothing_of_the_other_side_and_no_offline_tool(app: str, other: str) -> None:
    """A device starts fast and holds no server code: what its import really brings along, in a fresh process."""
    program = f"import json, sys, tessera.{app}.app; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    names = set(json.loads(done.stdout.splitlines()[-1]))
    assert f"tessera.{app}.app" in names
    refused = (f"tessera.{other}", "tessera.deploy", "tessera.benchmarks", "tessera.server.pretraining")
    refused += (
        "tessera.common.datasets",
        "tessera.common.encoders",
        "open_clip",
        "ray",
        "torchvision",
        "peft",
        *PACKAGES,
    )
    assert not names & set(refused)


def test_no_test_is_skipped_for_a_package_that_is_missing() -> None:
    """All that tests need is declared; one that cannot be imported is an error, not a skip."""
    skipping = "import" + "orskip"
    assert [called(path) for path in files("tests") if skipping in path.read_text(encoding="utf-8")] == []


def test_folders_stay_small() -> None:
    counts = {folder: len(list((ROOT / folder).glob("*.py"))) for folder in PACKAGES}
    assert sum(counts.values()) <= 35
    folders = {path.parent for path in PRODUCT} - {ROOT / "client", ROOT / "common" / "datasets"}
    assert {called(folder): n for folder in folders if (n := len(list(folder.glob("*.py")))) > 12} == {}


@pytest.mark.parametrize("path", PRODUCT, ids=called)
def test_public_things_have_docstrings(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), "the module"
    assert [name for name, node in public(module.body) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", PRODUCT, ids=called)
def test_everything_is_annotated(path: Path) -> None:
    bare = []
    for function in functions(path):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        named = [argument for argument in arguments if argument and argument.arg not in ("self", "cls")]
        bare += [f"{function.name}({argument.arg})" for argument in named if argument.annotation is None]
        bare += [function.name] if function.returns is None else []
    assert bare == []


@pytest.mark.parametrize("path", EVERYTHING, ids=called)
def test_functions_and_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(path)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
