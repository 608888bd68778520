"""Holds a configuration against all attacks, seed by seed, and says of each whether its gate holds."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tessera.benchmarks.audit.findings import Attack, Finding, Size, means
from tessera.benchmarks.audit.foreign_code import attack_by_code
from tessera.benchmarks.audit.histories import attack_histories
from tessera.benchmarks.audit.hostile_devices import attack_by_gradients, attack_by_profiles
from tessera.benchmarks.audit.isolation import attack_by_asking
from tessera.benchmarks.audit.listening import changed
from tessera.benchmarks.audit.two_faces import attack_by_other_views
from tessera.common.config.effects import no_secure_sums
from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError

ATTACKS: dict[str, Attack] = {
    "history": attack_histories,
    "isolation": attack_by_asking,
    "other-views": attack_by_other_views,
    "poisoning": attack_by_gradients,
    "fake-people": attack_by_profiles,
    "code": attack_by_code,
}
"""All attacks, by the name by which one alone is asked for."""
Tell = Callable[[str], None]


def audit(
    settings: Settings, dataset: Path, seeds: Iterable[int], size: Size, only: Sequence[str] = (), tell: Tell = print
) -> list[Finding]:
    """Carry out all attacks, or those in `only`, on devices as a federation has them; return the means over seeds.

    Raises `ConfigError` for a configuration whose devices train towers, which is not attacked, and for an unknown attack.
    """
    if settings.strategy_spec.has_towers:
        raise ConfigError(
            f"strategy {settings.strategy.name}: adapters of towers are not attacked yet; set strategy to fedvlr"
        )
    if strange := set(only) - ATTACKS.keys():
        raise ConfigError(f"there is no attack {min(strange)!r}; there are {', '.join(ATTACKS)}")
    settings, found = as_in_a_federation(settings, size), []
    for name in only or ATTACKS:
        by_seed = []
        for seed in seeds:
            tell(f"{name}, seed {seed}")
            by_seed.append(ATTACKS[name](settings, dataset, seed, size))
        found += means(by_seed)
    return found


def as_in_a_federation(settings: Settings, size: Size) -> Settings:
    """The settings with secure sums where devices of a federation would have them by default: `auto` is off in simulations."""
    settings = changed(settings, federation={"nodes": size.nodes})
    if settings.privacy.secure != "auto":
        return settings
    return changed(settings, privacy={"secure": not no_secure_sums(settings)})


def figures(settings: Settings, size: Size, seeds: Sequence[int], found: Sequence[Finding]) -> dict[str, Any]:
    """All that an audit found, for a line of JSON."""
    lines = [
        {"attack": one.attack, "measure": one.measure, "got": one.got, "prior": one.prior, "limit": one.limit}
        | {"holds": one.holds, "note": one.note}
        for one in found
    ]
    sizes = {
        "people": size.people,
        "devices": size.on_devices,
        "rounds": size.rounds,
        "nodes": size.nodes,
        "seeds": list(seeds),
    }
    return {
        "config": settings.name,
        "secure": as_in_a_federation(settings, size).privacy.secure,
        **sizes,
        "findings": lines,
    }
