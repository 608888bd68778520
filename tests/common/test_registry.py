"""Components that other packages offer: found when they are asked for, and named where something is wrong with them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera.common.errors import ConfigError
from tessera.common.registry.registry import Registry, resolve

GROUP = "tessera.test_fruits"
PROGRAM = """
import sys
from pathlib import Path
from tessera.common.errors import ConfigError
from tessera.common.registry.registry import Registry

fruits = Registry("fruit", "tessera.test_fruits", Path, {"apple": Path("apple")})
try:
    print(eval(sys.argv[1]))
except ConfigError as error:
    print("ConfigError:", error)
"""


@dataclass(frozen=True)
class Fruit:
    implementation: str = "collections:OrderedDict"


FRUITS = Registry("fruit", "tessera.nobody_offers_these", Fruit, {"apple": Fruit(), "pear": Fruit("no_such:thing")})


LOSS = """
from tessera.common.registry.component import ComponentSettings, Positive
from tessera.common.registry.losses import LossSpec

class HingeSettings(ComponentSettings):
    margin: Positive = 3

SPEC = LossSpec("orchard:hinge", HingeSettings)

def hinge(scores, histories, settings, salt):
    return settings.margin
"""
SETTINGS = """
import sys
from tessera.client.losses import find_loss
from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError

for loss in ("hinge", {"name": "hinge", "margin": 5}, {"name": "hinge", "margn": 5}, {"name": "bce", "margin": 5}):
    try:
        settings = parse_settings({"name": "run", "data": {"folder": "x"}, "local": {"loss": loss}}, "my.yaml")
        assert Settings.model_validate_json(settings.model_dump_json()) == settings
        print(find_loss(settings.local.loss)(None, None, settings.local.loss, 0))
    except ConfigError as error:
        print(error)
"""


def package(folder: Path, name: str, entries: str, code: str, group: str = GROUP) -> None:
    """Lay out an installed package: its module and its metadata."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")


def asked(folder: Path, expression: str, program: str = PROGRAM) -> str:
    """What a fresh process with these packages answers."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", program, expression], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_another_package_offers_is_found_beside_the_built_in(tmp_path: Path) -> None:
    package(tmp_path, "orchard", "plum = orchard:SPEC", "from pathlib import Path\nSPEC = Path('a plum')\n")
    assert (
        asked(tmp_path, "list(fruits), str(fruits['plum']), 'plum' in fruits") == "(['apple', 'plum'], 'a plum', True)"
    )


def test_an_outside_loss_has_settings_of_its_own_in_a_runs_file(tmp_path: Path) -> None:
    package(tmp_path, "orchard", "hinge = orchard:SPEC", LOSS, "tessera.losses")
    assert asked(tmp_path, "", SETTINGS).splitlines() == [
        "3",
        "5",
        "my.yaml: local.loss: hinge has no setting 'margn'; the nearest known one is 'margin'",
        "my.yaml: local.loss: bce has no setting 'margin'; hinge has",
    ]


def test_its_code_is_imported_only_when_it_is_asked_for(tmp_path: Path) -> None:
    package(tmp_path, "orchard", "plum = orchard:SPEC", "raise RuntimeError('the roof fell in')\n")
    assert asked(tmp_path, "str(fruits['apple']), list(fruits), 'orchard' in sys.modules") == (
        "('apple', ['apple', 'plum'], False)"
    )
    assert asked(tmp_path, "fruits['plum']") == (
        "ConfigError: the fruit 'plum' of the package orchard 1.0 (orchard:SPEC) cannot be loaded: "
        "RuntimeError: the roof fell in"
    )


def test_what_is_no_spec_is_named(tmp_path: Path) -> None:
    package(tmp_path, "orchard", "plum = orchard:SPEC", "SPEC = 3\n")
    assert "the package orchard 1.0 (orchard:SPEC) is a int, not a Path" in asked(tmp_path, "fruits['plum']")


def test_one_name_from_two_packages_spoils_that_name_alone(tmp_path: Path) -> None:
    code = "from pathlib import Path\nSPEC = Path('mine')\n"
    package(tmp_path, "orchard", "plum = orchard:SPEC\nfig = orchard:SPEC\napple = orchard:SPEC", code)
    package(tmp_path, "weeds", "plum = weeds:SPEC", code)
    package(tmp_path, "ruin", "date = ruin:SPEC", "raise RuntimeError('the roof fell in')\n")
    answer = asked(tmp_path, "fruits['plum']")
    assert "two packages offer the fruit 'plum': " in answer
    assert "the package weeds 1.0" in answer
    assert "the package orchard 1.0" in answer
    assert asked(tmp_path, "str(fruits['fig']), str(fruits['apple'])") == "('mine', 'apple')"
    assert asked(tmp_path, "sorted(name for name, _ in fruits.items())") == "['apple', 'fig']"


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="there is no fruit 'paer'; the nearest known one is 'pear'; known are apple, pear"
    ):
        FRUITS["paer"]
    assert "paer" not in FRUITS


def test_an_implementation_is_imported_by_its_name() -> None:
    assert resolve(FRUITS["apple"].implementation).__name__ == "OrderedDict"
    with pytest.raises(ConfigError, match="'no_such:thing' cannot be imported"):
        resolve(FRUITS["pear"].implementation)
