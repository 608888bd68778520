"""Has one of twenty devices push three items, by its gradients and by invented people, under the configuration's own defence.

See `tessera.benchmarks.attacks.poisoning`, which measures it.
"""

from collections.abc import Sequence
from pathlib import Path

from tessera.benchmarks.attacks.hostile import AttackName
from tessera.benchmarks.attacks.poisoning import BEYOND, FIRST, LOST, Figures, run_poisoning
from tessera.benchmarks.audit.findings import Finding, Size
from tessera.benchmarks.audit.listening import changed
from tessera.common.config.settings import Settings

BY_GRADIENTS: Sequence[AttackName] = ("stealthy", "unbounded")
BY_PROFILES: Sequence[AttackName] = ("profiles", "scaled-profiles")


def attack_by_gradients(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """One hostile device with gradients of honest length, and one with unbounded ones."""
    plain, rows = _runs(settings, dataset, seed, size, BY_GRADIENTS)
    found = []
    for name, row in rows.items():
        what = f"hostile device, {name}"
        found.append(Finding(what, "ER@5 %", row["er@5"], plain["er@5"], plain["er@5"] + FIRST))
        found.append(Finding(what, "ER@50 %", row["er@50"], plain["er@50"], plain["er@50"] + BEYOND))
        lost = 100 * (1 - row["ndcg@50"] / plain["ndcg@50"]) if plain["ndcg@50"] else 0.0
        found.append(Finding(what, "NDCG@50 lost %", lost, 0.0, LOST))
    return found


def attack_by_profiles(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """25 invented people on one device, in the statistics and the spectral start; nothing where there is no such start."""
    if not settings.views.spectral_rounds:
        return []
    plain, rows = _runs(settings, dataset, seed, size, BY_PROFILES)
    return [
        Finding(f"fake people, {name}", "ER@50 %", row["er@50"], plain["er@50"], plain["er@50"] + BEYOND)
        for name, row in rows.items()
    ]


def _runs(
    settings: Settings, dataset: Path, seed: int, size: Size, attacks: Sequence[AttackName]
) -> tuple[Figures, dict[AttackName, Figures]]:
    """The figures of nobody hostile without a defence, and those of each attack under the configuration's."""
    defence = settings.model_dump()["federation"]["defence"]
    federation = {
        "nodes": size.nodes,
        "clients_per_round": 0,
        "over_selection": 0.0,
        "min_nodes": 1,
        "min_fraction": 0.0,
    }
    own = changed(settings, rounds=size.rounds, federation=federation, evaluation={"patience": 0})
    plain = run_poisoning(own, dataset, "none", "none", seed)
    return plain, {name: run_poisoning(own, dataset, name, defence, seed) for name in attacks}
