"""What `tessera bench` reads from a YAML file: a grid of methods, seeds and centralised baselines, all checked at once.

name: ml-latest-small-table2
extends: ../ku/table2.yaml                optional: another grid, read first: `base` is laid over its base, other keys replace
base: {data: ..., rounds: 60}             settings that all methods share
datasets:                                 optional: the whole grid once for each, laid over the base
  ku: {data: {folder: ku, kind: fedvlr, split: given}}
methods:
  history-views:
    local: {backbone: history}            laid over the base
    choose: {local.learning_rate: [0.001, 0.01]}     tried with the first seed; the best on validation is kept
    seeds: [0]                            optional: fewer or more than the others have
seeds: [0, 1, 2]
baselines: [popularity, ease, pgl]        optional: centralised baselines on the same data
baseline_seeds: [0]                       the first of `seeds` by default
reference: history-views                  optional: what every other row is compared with, person by person
differences: [[fedavg-views, fedavg-id]]  optional: further pairs to compare
quick: {rounds: 5}                        laid over everything by --quick, which takes the first seed and the first choices
"""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tessera.common.config.loading import nested, overlaid, parse_settings, read_yaml
from tessera.common.config.settings import NAME, Settings
from tessera.common.errors import ConfigError
from tessera.common.registry.component import Natural

Content = dict[str, Any]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
"""A name that a folder can have."""
Seeds = Annotated[tuple[Natural, ...], Field(min_length=1)]
Overlay = Annotated[Content, BeforeValidator(lambda value: {} if value is None else value)]
"""Settings as they are written; left empty in YAML, none."""
PLACES = "methods", "datasets"
"""Keys whose values are named by whoever writes the file."""


class BenchMethod(BaseModel):
    """One method of a grid: all but `choose` and `seeds` are settings."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    choose: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Settings by their dotted names, and the values that validation chooses among."""
    seeds: Seeds | None = None
    """Where they are others than the grid's."""

    @property
    def settings(self) -> Content:
        """What is laid over the base."""
        return dict(self.model_extra or {})


class BenchSpec(BaseModel):
    """A grid of runs, as a YAML file describes it; `load` reads one and checks every run in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Name
    base: Overlay = {}
    datasets: dict[Name, Overlay] = {"": {}}
    methods: Annotated[
        dict[Name, Annotated[BenchMethod, BeforeValidator(lambda value: value or {})]], Field(min_length=1)
    ]
    seeds: Seeds
    baselines: tuple[str, ...] = ()
    baseline_seeds: Seeds = (0,)
    """The first of `seeds`, unless the file says otherwise."""
    reference: str | None = None
    differences: tuple[tuple[str, str], ...] = ()
    quick: Overlay | None = None
    """Laid over everything; once loaded, only where quick runs were asked for."""

    @model_validator(mode="before")
    @classmethod
    def _first_seed(cls, content: Any) -> Any:
        """Give the baselines the first of the grid's seeds where the file gives them none."""
        if isinstance(content, dict) and isinstance(content.get("seeds"), list) and not content.get("baseline_seeds"):
            return {**content, "baseline_seeds": content["seeds"][:1] or [0]}
        return content

    @model_validator(mode="after")
    def _names_of_what_there_is(self) -> Self:
        """Refuse names of nothing, wherever they stand."""
        from tessera.benchmarks.baselines.selection import BASELINES

        known = [*self.methods, *self.baselines]
        compared = [*([self.reference] if self.reference else ()), *itertools.chain(*self.differences)]
        for where, named, there in (("baselines", self.baselines, list(BASELINES)), ("differences", compared, known)):
            for name in named:
                if name not in there:
                    raise ValueError(f"{where}: {_unknown(name, there)}")
        if twice := set(self.baselines) & set(self.methods):
            raise ValueError(f"{min(twice)!r} is a baseline; call the method otherwise")
        return self

    @classmethod
    def load(cls, path: Path, quick: bool = False, only: Sequence[str] = ()) -> "BenchSpec":
        """Read a bench, or of its methods and baselines `only` some.

        Raises `ConfigError` that names the file and what is wrong; every method, with everything it may choose, is checked.
        """
        try:
            spec = cls.model_validate(_read(path))
        except ValidationError as error:
            problems = (_explain(one["type"], one["loc"], one["msg"]) for one in error.errors())
            raise ConfigError(f"{path}: " + "; ".join(dict.fromkeys(problems))) from None
        known = [*spec.methods, *spec.baselines]
        if strange := [name for name in only if name not in known]:
            raise ConfigError(f"{path}: --only: {_unknown(strange[0], known)}")
        # What is compared is in the file, not only among what is run now: pairs without both results are left out later.
        spec = spec.model_copy(update={"differences": spec.pairs, "reference": None})
        spec = spec._only(set(only or known))
        spec = spec._quickly() if quick else spec.model_copy(update={"quick": None})
        spec._require_comparable(path)
        return spec

    def _only(self, names: set[str]) -> "BenchSpec":
        methods = {name: method for name, method in self.methods.items() if name in names}
        baselines = tuple(name for name in self.baselines if name in names)
        return self.model_copy(update={"methods": methods, "baselines": baselines})

    def _quickly(self) -> "BenchSpec":
        """The same grid with quick settings, one seed and no choices: does it run?"""
        methods = {}
        for name, method in self.methods.items():
            first = {key: values[:1] for key, values in method.choose.items()}
            methods[name] = method.model_copy(update={"choose": first, "seeds": method.seeds and method.seeds[:1]})
        changes = {"name": f"{self.name}-quick", "quick": self.quick or {}, "methods": methods}
        return self.model_copy(update=changes | {"seeds": self.seeds[:1], "baseline_seeds": self.baseline_seeds[:1]})

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Whose results are compared person by person, the first minus the second: all with the reference, then those named."""
        others = [name for name in (*self.methods, *self.baselines) if self.reference and name != self.reference]
        first = [(name, str(self.reference)) for name in others if (self.reference, name) not in self.differences]
        return (*first, *self.differences)

    def shared(self, dataset: str, source: str = "bench") -> Settings:
        """What all methods and baselines share on a dataset: its data and evaluation count. Raises `ConfigError`."""
        return parse_settings(self._merged(dataset, {}) | {"name": "base"}, f"{source}: base")

    def _merged(self, dataset: str, own: Mapping[str, Any]) -> Content:
        """The base with what a dataset, a method and quick runs lay over it."""
        return overlaid(overlaid(overlaid(self.base, self.datasets[dataset]), own), self.quick or {})

    def method_seeds(self, method: str) -> tuple[int, ...]:
        """The seeds that a method is run with."""
        return self.methods[method].seeds or self.seeds

    def candidates(self, method: str) -> Iterator[Content]:
        """Every combination of what a method may choose among; one empty one where there is no choice."""
        choose = self.methods[method].choose
        return (dict(zip(choose, values, strict=True)) for values in itertools.product(*choose.values()))

    def settings(self, dataset: str, method: str, chosen: Content, seed: int, source: str = "bench") -> Settings:
        """A method's settings with one choice and seed. Raises `ConfigError`."""
        return parse_settings(self.content(dataset, method, chosen, seed), f"{source}: methods.{method}")

    def content(self, dataset: str, method: str, chosen: Content, seed: int) -> Content:
        """The same as they are written."""
        content = self._merged(dataset, self.methods[method].settings) | {"name": method}
        for key, value in {**chosen, "seed": seed}.items():
            content = overlaid(content, nested(key, value))
        return content

    def runs(self) -> int:
        """How many runs this is, each fit of a baseline's grid counted as one."""
        runs = sum(len(list(self.candidates(name))) + len(self.method_seeds(name)) - 1 for name in self.methods)
        return len(self.datasets) * (runs + len(self.baselines))

    def _require_comparable(self, path: Path) -> None:
        """Refuse settings that cannot be run, and methods whose results could not be compared. Raises `ConfigError`."""
        for dataset in self.datasets:
            shared = self.shared(dataset, str(path))
            for method in self.methods:
                for chosen, seed in itertools.product(self.candidates(method), self.method_seeds(method)):
                    own = self.settings(dataset, method, chosen, seed, str(path))
                    if (own.data, own.evaluation.ks) != (shared.data, shared.evaluation.ks):
                        raise ConfigError(f"{path}: methods.{method} has other data or ks than the base")
            drawn = shared.data.cold_items or shared.data.cold_users
            if drawn and len({self.method_seeds(method) for method in self.methods}) > 1:
                raise ConfigError(f"{path}: a seed draws what is cold: all methods must have the same seeds")


def _read(path: Path) -> Content:
    """The content of a grid's file, over that of the grid it extends. Raises `ConfigError` that names the file."""
    content = read_yaml(path)
    if not {"methods", "extends"} & content.keys() and content.keys() & Settings.model_fields.keys() - {"name"}:
        raise ConfigError(f"{path} has the settings of one run, and is no grid of runs: tessera train runs it")
    if "extends" not in content:
        return content
    named = content.pop("extends")
    if not isinstance(named, str):
        raise ConfigError(f"{path}: extends: the path of another grid, from this file's folder, not {named!r}")
    other = read_yaml(path.parent / named)
    if not isinstance(other, dict) or "extends" in other:
        raise ConfigError(f"{path}: extends: {named} is no grid, or extends another one itself")
    base = overlaid(other.get("base") or {}, content.get("base") or {})
    return {**other, **content, "base": base}


def _explain(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """What is wrong with the value at a place of the file, in words."""
    if kind == "extra_forbidden":
        return "unknown key " + _nearest(str(location[-1]), list(BenchSpec.model_fields))
    name = str(location[1]) if len(location) > 1 and location[0] in PLACES else ""
    if kind == "string_pattern_mismatch":
        return f"{location[0]}: {name or 'the name'!r} is no name that a folder could have"
    key = ".".join(str(part) for part in location if part != "[key]")
    return f"{key}: {message}" if key else message.removeprefix("Value error, ")


def _unknown(name: str, there: Sequence[str]) -> str:
    return f"there is no {_nearest(name, there)}; there are {', '.join(sorted(there))}"


def _nearest(name: str, there: Sequence[str]) -> str:
    return f"{name!r}; the nearest known one is {difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]!r}"
