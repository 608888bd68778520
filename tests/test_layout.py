"""The rules of design.md and style.md that a program can check."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "common": {"common"},
    "server": {"server", "common"},
    "client": {"client", "common"},
    "deploy": {"deploy", "server", "client", "common"},
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PRODUCT = files(*MAY_IMPORT)
EVERYTHING = PRODUCT + files("benchmarks", "tests")


def called(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def imported(path: Path) -> set[str]:
    """Modules a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Functions, classes and their methods whose names do not begin with an underscore."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in PRODUCT} == set(MAY_IMPORT)
    assert len(PRODUCT) > 40


@pytest.mark.parametrize("path", PRODUCT, ids=called)
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tessera.")}
    assert rooms <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", ["tessera.client.app", "tessera.server.app"])
def test_an_app_loads_nothing_of_the_other_side(package: str) -> None:
    """A device starts fast and holds no server code: what its import really brings along, in a fresh process."""
    program = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    names = json.loads(done.stdout.splitlines()[-1])
    loaded = {name.split(".")[1] for name in names if name.startswith("tessera.")}
    own = package.split(".")[1]
    assert own in loaded
    assert loaded <= MAY_IMPORT[own]
    assert not {name.partition(".")[0] for name in names} & {"open_clip", "ray", "torchvision", "peft", *MAY_IMPORT}


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
