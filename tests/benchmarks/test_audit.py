"""The audit says FAIL where something of a person can be read, and passes where it cannot: on the generated shop, small."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tessera.benchmarks.audit.findings import Finding, Size
from tessera.benchmarks.audit.foreign_code import attack_by_code
from tessera.benchmarks.audit.run import audit
from tessera.benchmarks.audit.separation import Rows, separated
from tessera.benchmarks.cli import audit as command
from tessera.common.config.settings import Settings
from tessera.common.datasets import convert_shop
from tests.support.catalogues import small_settings

security = pytest.mark.security
SIZE = Size(people=80, rounds=2, nodes=4, devices=8)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "shop"
    convert_shop(folder, n_items=150, n_users=80, seed=0)
    return folder


def settings(secure: bool | str, **changes: object) -> Settings:
    views = {"dim": 8, "id_dim": 8, "spectral_rounds": 2, "modalities": ["text"]}
    federation = {"nodes": 4}
    return small_settings(privacy={"secure": secure}, views=views, federation=federation, **changes)


def found(shop: Path, secure: bool | str, size: Size, *only: str) -> dict[str, Finding]:
    lines = audit(settings(secure), shop, [0], size, only, lambda text: None)
    return {f"{line.attack} {line.measure}": line for line in lines}


@security
def test_masks_keep_histories_from_the_server_and_without_them_the_audit_fails(shop: Path) -> None:
    """In sums over all there is no more than popularity; a device of ten is read a little, and one of one to the last item."""
    masked = found(shop, "auto", SIZE, "history")
    assert masked["history of a device F1 %"].holds
    assert masked["history of a device, were there no masks F1 %"].limit is None
    few = found(shop, False, SIZE, "history")["history of a device F1 %"]
    assert not few.holds
    alone = found(shop, False, replace(SIZE, people=6, devices=0), "history")["history of a device F1 %"]
    assert alone.got == pytest.approx(100, abs=1)
    assert not alone.holds


@security
def test_masks_of_few_people_are_found_wanting(shop: Path) -> None:
    """A sum of twelve people is taken apart into histories: the audit attacks what masks leave, and not only their absence."""
    lines = audit(
        small_settings(
            views={"dim": 24, "id_dim": 24, "modalities": ["text"]},
            privacy={"secure": True, "group": 12},
            federation={"nodes": 24},
        ),
        shop,
        [0],
        Size(people=24, rounds=2, nodes=24),
        ["history"],
        lambda text: None,
    )
    nameless = next(line for line in lines if "nameless" in line.attack)
    assert nameless.prior is not None
    assert nameless.got > nameless.prior + 5
    assert not nameless.holds


def test_a_sum_of_rank_one_parts_is_taken_apart() -> None:
    """The laws that `separation` says rows obey are enough to find who has what."""
    draws = torch.Generator().manual_seed(0)
    owned = (torch.rand(6, 120, generator=draws) < 0.15).float()
    tables = [
        (owned * (0.5 + torch.rand(6, 1, generator=draws))).T @ torch.randn(6, 16, generator=draws) for _ in range(3)
    ]
    histories = separated([Rows.of(table) for table in tables], 6)
    assert {frozenset(row.nonzero().flatten().tolist()) for row in owned} <= set(histories)


def test_isolation_and_other_views_are_refused(shop: Path) -> None:
    lines = found(shop, True, SIZE, "isolation", "other-views")
    assert all(line.holds for line in lines.values()), [line for line in lines.values() if not line.holds]
    assert lines["the same ask, 50 times answers"].got == 9, "an honest server that lost a reply is answered again"
    assert not found(shop, False, SIZE, "other-views")["other views for one device rounds read"].holds


@security
def test_hostile_devices_are_measured_under_the_configurations_own_defence(shop: Path) -> None:
    lines = audit(settings(True), shop, [0], SIZE, ["poisoning", "fake-people"], lambda text: None)
    assert [line.attack for line in lines] == [
        *["hostile device, stealthy"] * 3,
        *["hostile device, unbounded"] * 3,
        "fake people, profiles",
        "fake people, scaled-profiles",
    ]


@security
def test_code_that_a_server_ships_is_never_run(shop: Path) -> None:
    """Neither as a module of its own, nor in place of the one that the device runs, nor of one that Python imports itself."""
    (line,) = attack_by_code(settings(True), shop, 0, SIZE)
    assert (line.got, line.prior, line.holds) == (0, 3, True)


@pytest.mark.parametrize(("secure", "code"), [("true", 0), ("false", 1)])
def test_the_exit_code_is_that_of_the_gates(shop: Path, tmp_path: Path, secure: str, code: int) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"{{name: small, data: {{folder: {shop}}}, rounds: 2, views: {{dim: 8, id_dim: 8}}}}")
    arguments = [
        str(config),
        "--data",
        str(shop),
        "--quick",
        "--only",
        "other-views",
        "--set",
        f"privacy.secure={secure}",
    ]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == code, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["secure"] is (secure == "true")
    assert [line["holds"] for line in said["findings"]] == [code == 0]
