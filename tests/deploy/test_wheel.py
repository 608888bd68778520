"""What people install: the wheel, in an environment of its own outside the repository.

So that nothing large is fetched, that environment takes the packages Tessera depends on from the running one, by a .pth file.
Commands run in a folder that holds packages `client`, `server` and `common` of somebody else's, which must not be imported.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
YAML = ("demo.yaml", "ml-latest-small/table2.yaml", "mosaic/static.yaml")
PAGES = (
    "deploy/pages/static/page.css",
    "deploy/pages/templates/base.html",
    "deploy/pages/person/templates/page.html",
    "deploy/pages/operator/templates/page.html",
    "benchmarks/report/page.html",
)
SETTINGS = """\
name: small
data: {folder: shop, kind: converted}
rounds: 1
views: {dim: 8, id_dim: 8}
evaluation: {every: 1, baselines: false}
federation: {nodes: 2}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git would take: a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, folder / "source" / name
        if name.startswith(("tests/", "docs/")) or not (source.exists() or source.is_symlink()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    pip(sys.executable, "wheel", "--wheel-dir", str(folder), str(folder / "source"))
    return next(folder.glob("tessera-*.whl"))


@pytest.fixture(scope="module")
def tessera(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, installed from the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    ours = Path(sysconfig.get_path("purelib"))
    (site / "dependencies.pth").write_text(f"{ours}\n")
    pip(sys.executable, "--python", str(folder / "bin" / "python"), "install", "--force-reinstall", str(wheel))
    return folder / "bin" / "tessera"


@pytest.fixture
def beside_others(tmp_path: Path) -> Path:
    """A folder with packages of somebody else's under the names of our folders."""
    for name in ("client", "server", "common"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the foreign {name} was imported')\n")
    (tmp_path / "small.yaml").write_text(SETTINGS)
    return tmp_path


def pip(python: str, *arguments: str) -> None:
    """Run pip without an index: neither dependencies nor what builds wheels are fetched."""
    offline = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    command = [python, "-m", "pip", *arguments, *offline]
    if "wheel" in arguments:
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(program: Path, *arguments: str, cwd: Path) -> str:
    """What a program prints that is started in a folder and finds what lies there; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TESSERA_DATA")}
    environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd)}
    done = subprocess.run(
        [program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_one_package_its_types_and_the_settings_it_ships(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"tessera", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    assert {"tessera/py.typed", *(f"tessera/benchmarks/{name}" for name in YAML)} <= names
    assert {f"tessera/{name}" for name in PAGES} <= names
    assert not any(name.endswith((".png", ".md", ".ipynb")) for name in names if name.startswith("tessera/"))


def test_the_installed_command_is_the_wheels(tessera: Path, beside_others: Path) -> None:
    assert "recommend" in run(tessera, "--help", cwd=beside_others)
    where = "import tessera.server; print(tessera.server.__file__)"
    found = run(tessera.with_name("python"), "-c", where, cwd=beside_others)
    assert tessera.parents[1] in Path(found.strip()).parents


def test_the_demo_runs_from_the_wheel(tessera: Path, beside_others: Path) -> None:
    (settings,) = tessera.parents[1].rglob(
        "tessera/benchmarks/demo.yaml"
    )  # a copy of the wheel's: two of its rounds will do
    settings.write_text(settings.read_text().replace("rounds: 40", "rounds: 2"))
    shown = run(tessera, "demo", "--nodes", "2", cwd=beside_others)
    assert json.loads(shown.splitlines()[-1])["name"] == "demo"


@pytest.mark.slow
def test_a_round_on_ray_imports_ours_and_not_what_lies_beside(tessera: Path, beside_others: Path) -> None:
    run(tessera, "data", "shop", "shop", "--items", "80", "--users", "20", cwd=beside_others)
    shown = run(tessera, "train", "small.yaml", "--executor", "ray", "--data", "shop", cwd=beside_others)
    assert json.loads(shown.splitlines()[-1])["rounds"] == 1
