"""`tessera bench`: a grid of methods and seeds from YAML, resumable, hyperparameters chosen on validation, peers beside them.

name: ml-latest-small-table2
base: {data: ..., rounds: 60}             settings that all methods share
datasets:                                 optional: the whole grid once for each, laid over the base
  ku: {data: {folder: ku, kind: fedvlr, split: given}}
methods:
  history-views:
    local: {backbone: history}            laid over the base
    choose: {local.learning_rate: [0.001, 0.01]}     tried with the first seed; the best on validation is kept
    seeds: [0]                            optional: fewer or more than the others have
seeds: [0, 1, 2]
peers: [popularity, ease, pgl]            optional: centralised peers on the same data
peer_seeds: [0]                           the first of `seeds` by default
reference: history-views                  optional: what every other row is compared with, person by person
differences: [[fedavg-views, fedavg-id]]  optional: further pairs to compare
quick: {rounds: 5}                        laid over everything by --quick, which takes the first seed and the first choices
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.common.config.loading import nested, overlaid, parse_settings, read_yaml
from tessera.common.config.settings import NAME, Settings
from tessera.common.errors import ConfigError

Content = dict[str, Any]
KEYS = ("name", "base", "datasets", "methods", "seeds", "peers", "peer_seeds", "reference", "differences", "quick")
NEEDED = {"name": str, "methods": dict, "seeds": list}
OPTIONAL = {"datasets": dict, "peers": list, "peer_seeds": list, "differences": list}


@dataclass(frozen=True)
class BenchSpec:
    """What to run: the methods' settings by dataset, before seeds, and what each method may choose among."""

    name: str
    shared: Mapping[str, Settings]
    """What all methods and peers share, by dataset: its data and evaluation count."""
    methods: Mapping[str, Mapping[str, Content]]
    choices: Mapping[str, Mapping[str, list[Any]]]
    seeds: Mapping[str, tuple[int, ...]]
    """Each method's."""
    peers: tuple[str, ...]
    peer_seeds: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    """Whose results are compared person by person: the first minus the second."""
    quick: bool

    @classmethod
    def load(cls, path: Path, quick: bool = False, only: Sequence[str] = ()) -> "BenchSpec":
        """Read a bench, or of its methods and peers `only` some. Raises `ConfigError` that names the file and what is wrong;
        every method, with everything it may choose, is validated first."""
        content = _read(path)
        names = _names(path, content, only)
        methods = {name: dict(own or {}) for name, own in content["methods"].items() if name in names}
        choices = {name: own.pop("choose", {}) for name, own in methods.items()}
        seeds = {name: tuple(own.pop("seeds", content["seeds"])) for name, own in methods.items()}
        if quick:
            choices = {name: {key: values[:1] for key, values in own.items()} for name, own in choices.items()}
            seeds = {name: own[:1] for name, own in seeds.items()}
        above = content.get("quick") or {} if quick else {}
        shared, grids = {}, {}
        for dataset, overlay in (content.get("datasets") or {"": {}}).items():
            base = overlaid(content.get("base") or {}, overlay or {})
            shared[dataset] = parse_settings(overlaid(base, above) | {"name": "base"}, f"{path}: base")
            grids[dataset] = {
                name: overlaid(overlaid(base, own), above) | {"name": name} for name, own in methods.items()
            }
        peer_seeds = content.get("peer_seeds") or content["seeds"][:1]
        bench = cls(
            name=content["name"] + ("-quick" if quick else ""),
            shared=shared,
            methods=grids,
            choices=choices,
            seeds=seeds,
            peers=tuple(name for name in content.get("peers") or () if name in names),
            peer_seeds=tuple(peer_seeds[:1] if quick else peer_seeds),
            pairs=_pairs(content),
            quick=quick,
        )
        bench._validate(path)
        return bench

    def candidates(self, method: str) -> Iterator[Content]:
        """Every combination of what a method may choose among; one empty one where there is no choice."""
        names, values = list(self.choices[method]), list(self.choices[method].values())
        return (dict(zip(names, combination, strict=True)) for combination in itertools.product(*values))

    def settings(self, dataset: str, method: str, chosen: Content, seed: int, source: str = "bench") -> Settings:
        """A method's settings with one choice and seed. Raises `ConfigError`."""
        content = self.methods[dataset][method]
        for key, value in {**chosen, "seed": seed}.items():
            content = overlaid(content, nested(key, value))
        return parse_settings(content, f"{source}: methods.{method}")

    def runs(self) -> int:
        """How many runs this is, each fit of a peer's grid counted as one."""
        methods = sum(len(list(self.candidates(method))) + len(self.seeds[method]) - 1 for method in self.choices)
        return len(self.methods) * (methods + len(self.peers))

    def _validate(self, path: Path) -> None:
        """Refuse what cannot be run, and methods whose results would not be comparable."""
        for dataset, shared in self.shared.items():
            for method in self.methods[dataset]:
                for chosen, seed in itertools.product(self.candidates(method), self.seeds[method]):
                    own = self.settings(dataset, method, chosen, seed, str(path))
                    if (own.data, own.evaluation.ks) != (shared.data, shared.evaluation.ks):
                        raise ConfigError(f"{path}: methods.{method} has other data or ks than the base")
            drawn = shared.data.cold_items or shared.data.cold_users
            if drawn and len(set(self.seeds.values())) > 1:
                raise ConfigError(f"{path}: a seed draws what is cold: all methods must have the same seeds")


def _read(path: Path) -> Content:
    content = read_yaml(path)
    if unknown := content.keys() - set(KEYS):
        raise ConfigError(f"{path}: unknown key {min(unknown)!r}; known are {', '.join(KEYS)}")
    for key, kind in NEEDED.items():
        if not isinstance(content.get(key), kind) or not content[key]:
            raise ConfigError(f"{path}: {key!r} is missing or no {kind.__name__}")
    for key, kind in OPTIONAL.items():
        if not isinstance(content.get(key) or kind(), kind):
            raise ConfigError(f"{path}: {key!r} is no {kind.__name__}")
    for name, own in content["methods"].items():
        choices = (own or {}).get("choose", {})
        if not isinstance(choices, dict) or not all(isinstance(values, list) and values for values in choices.values()):
            raise ConfigError(f"{path}: methods.{name}.choose maps settings to lists of values")
        if "seeds" in (own or {}) and not (isinstance(own["seeds"], list) and own["seeds"]):
            raise ConfigError(f"{path}: methods.{name}.seeds is no list of seeds")
    for name in (*content["methods"], *(content.get("datasets") or ())):
        if not re.fullmatch(NAME, str(name)):
            raise ConfigError(f"{path}: {name!r} is no name that a folder could have")
    return content


def _names(path: Path, content: Content, only: Sequence[str]) -> set[str]:
    """The methods and peers to run. Raises `ConfigError` for one that does not exist, wherever it is named."""
    from tessera.benchmarks.baselines.selection import PEERS

    peers = content.get("peers") or []
    known = {*content["methods"], *peers}
    compared = [name for pair in _pairs(content) for name in pair]
    for what, named, there in (("peers", peers, PEERS), ("--only", only, known), ("differences", compared, known)):
        if unknown := [name for name in named if name not in there]:
            raise ConfigError(f"{path}: {what}: there is no {unknown[0]!r}, only {', '.join(sorted(there))}")
    if twice := set(peers) & set(content["methods"]):
        raise ConfigError(f"{path}: {min(twice)!r} is a peer; call the method otherwise")
    return set(only) or known


def _pairs(content: Content) -> tuple[tuple[str, str], ...]:
    """Everything minus the reference, then the pairs that are named. Raises `ConfigError` where one is no pair."""
    pairs, reference = content.get("differences") or [], content.get("reference")
    if wrong := [pair for pair in pairs if not (isinstance(pair, list) and len(pair) == 2)]:
        raise ConfigError(f"differences: {wrong[0]!r} is not [METHOD, METHOD]")
    others = [name for name in (*content["methods"], *(content.get("peers") or ())) if name != reference]
    first = [(name, reference) for name in others if reference and [reference, name] not in pairs]
    return (*first, *((left, right) for left, right in pairs))
