"""Finds components by their name: those of Tessera, and those that other installed packages offer.

A component (a backbone, a loss, a strategy, ...) is described by a *spec*: a small object that holds what both sides must know
of it, and names its implementation as "package.module:attribute", so that who only reads the spec imports nothing of it.
Another package offers one through an entry point in its pyproject.toml:

    [project.entry-points."tessera.backbones"]
    mine = "my_package:SPEC"
"""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from tessera.common.errors import ConfigError

log = logging.getLogger("tessera.registry")
Spec = TypeVar("Spec")


class Registry(Generic[Spec]):
    """The components of one kind by name: built-in ones, then those of the entry-point group `group`.

    Other packages are looked at only for a name that is not built in, or when all names are listed; their code is imported
    only when one of theirs is asked for. A package that is broken, or offers a name that another does, spoils that name alone.
    """

    def __init__(self, kind: str, group: str, spec: type[Spec], builtin: Mapping[str, Spec]) -> None:
        self.kind, self.group, self.spec, self.builtin = kind, group, spec, dict(builtin)
        self._loaded: dict[str, Spec] = {}

    def __getitem__(self, name: str) -> Spec:
        """The spec of a name. Raises `ConfigError` for one that nobody offers, and where an outside one cannot be loaded."""
        if name in self.builtin:
            return self.builtin[name]
        if name not in self._outside:
            raise ConfigError(self._unknown(name))
        if name not in self._loaded:
            first, *others = self._outside[name]
            if others:
                packages = f"{_package(first)} and {_package(others[0])}"
                raise ConfigError(f"two packages offer the {self.kind} {name!r}: {packages}; uninstall one")
            self._loaded[name] = self._load(first)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self._outside

    def __iter__(self) -> Iterator[str]:
        """All names, built-in ones first."""
        return iter((*self.builtin, *self._outside))

    def __len__(self) -> int:
        return len(self.builtin) + len(self._outside)

    def items(self) -> Iterator[tuple[str, Spec]]:
        """All names with their specs, which imports the packages that offer some; a broken one is warned of and left out."""
        yield from self.builtin.items()
        for name in self._outside:
            try:
                yield name, self[name]
            except ConfigError as error:
                log.warning("%s", error)

    def known(self) -> dict[str, Spec]:
        """Built-in specs and those of other packages that are in use already: looking at them imports nothing."""
        return self.builtin | self._loaded

    @cached_property
    def _outside(self) -> dict[str, list[EntryPoint]]:
        """What other packages offer, by name. One that Tessera has itself cannot be taken, which is warned of."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            if entry.name in self.builtin:
                log.warning(
                    "the %s %r of %s is not used: Tessera has its own of this name",
                    self.kind,
                    entry.name,
                    _package(entry),
                )
            else:
                found.setdefault(entry.name, []).append(entry)
        return found

    def _load(self, entry: EntryPoint) -> Spec:
        where = f"the {self.kind} {entry.name!r} of {_package(entry)} ({entry.value})"
        try:
            spec = entry.load()
        except Exception as error:  # whatever a stranger's module does when it is imported
            raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(spec, self.spec):
            raise ConfigError(f"{where} is a {type(spec).__name__}, not a {self.spec.__name__}")
        return spec

    def _unknown(self, name: str) -> str:
        known = sorted(self)
        near = f"; the nearest known one is {nearest(name, known)!r}" if known else ""
        return f"there is no {self.kind} {name!r}{near}; known are {', '.join(known) or 'none'}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Which of the `known` names, of which there is one at least, was probably meant."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def resolve(reference: str) -> Any:
    """Import what "package.module:attribute" names. Raises `ConfigError` where there is no such thing."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{reference!r} cannot be imported: {error}") from error


def _package(entry: EntryPoint) -> str:
    """The package that an entry point comes from, for people to read."""
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
