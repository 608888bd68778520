"""Versions of a catalogue as they travel: a change leads from any earlier version to the later one, and nowhere else."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.data.catalogue import Catalogue
from tessera.common.data.catalogue_delta import CHUNK, Delta, Held, changed
from tessera.common.errors import DataError
from tests.support.hostile import fuzz

N = 600


def catalogue(n_items: int = N, retired: list[int] | None = None, **titles: str) -> Catalogue:
    names = [f"i{item}" for item in range(n_items)]
    shown = [titles.get(name, f"title {name}") for name in names]
    gone = None if retired is None else np.isin(np.arange(n_items), retired)
    return Catalogue(tuple(names), tuple(shown), ("text",) * n_items, ("",) * n_items, retired=gone)


def delivered(older: Catalogue, newer: Catalogue) -> Catalogue:
    held = Held.read(Held.of(older).model_dump_json())
    return changed(older, Delta.read(Delta.between(newer, held).write()))


@fuzz(60)
@given(
    st.integers(1, N),
    st.integers(0, 40),
    st.lists(st.integers(0, N - 1), max_size=5),
    st.lists(st.integers(0, N - 1), max_size=3),
    st.lists(st.integers(0, N - 1), max_size=3),
)
def test_a_change_leads_to_the_newer_catalogue(
    before: int, more: int, renamed: list[int], gone_before: list[int], gone: list[int]
) -> None:
    older = catalogue(before, gone_before)
    newer = catalogue(before + more, gone, **{f"i{item}": "another title" for item in renamed})
    found = delivered(older, newer)
    assert (found.items, found.titles, found.texts, found.images) == (
        newer.items,
        newer.titles,
        newer.texts,
        newer.images,
    )
    assert found.sha256 == newer.sha256
    assert found.extends(older)


def test_only_what_changed_travels() -> None:
    change = Delta.between(catalogue(N + 2, i3="another title"), Held.of(catalogue()))
    assert [row for row, *_ in change.rows] == [*range(CHUNK), N, N + 1]
    assert Delta.between(catalogue(N, [7]), Held.of(catalogue())).rows == ()


def test_what_is_no_earlier_version_gets_nothing() -> None:
    with pytest.raises(DataError, match="600 items, this run has 599"):
        Delta.between(catalogue(N - 1), Held.of(catalogue()))
    other = replace(catalogue(), items=("other", *catalogue().items[1:]))
    with pytest.raises(DataError, match="use one dataset"):
        Delta.between(other, Held.of(catalogue()))


@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        ({"rows": [[0, "i1", "", "", ""]]}, "rows never move"),
        ({"rows": [[9, "new", "", "", ""]]}, "the next one is 3"),
        ({"rows": [[3, "i1", "", "", ""]]}, "stands twice"),
        ({"rows": [[3, "a\nb", "", "", ""]]}, "no id"),
        ({"rows": [[3, "", "", "", ""]]}, "no id"),
        ({"retired": [3]}, "retires row 3"),
        ({"n_before": 2}, "of 2 items, this one has 3"),
        ({"rows": [[3, "new", "", "", ""]]}, "does not lead"),
    ],
)
def test_a_hostile_change_is_refused(hostile: dict[str, Any], told: str) -> None:
    own = catalogue(3)
    change = {"sha256": "0" * 64, "n_before": 3, "rows": [], "retired": []} | hostile
    with pytest.raises(DataError, match=told):
        changed(own, Delta.read(json.dumps(change).encode()))


@pytest.mark.fuzzing
@fuzz(150)
@given(data=st.data())
def test_whatever_came_is_a_change_or_refused(data: st.DataObject) -> None:
    own = catalogue(3)
    said: Any = json.loads(Delta.between(catalogue(5, [1], i2="x"), Held.of(own)).write())
    values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.lists(st.integers() | st.text(max_size=3)))
    said[data.draw(st.sampled_from(sorted(said)))] = data.draw(values)
    content = data.draw(st.just(json.dumps(said).encode()) | st.binary(max_size=50))
    with suppress(DataError):
        found = changed(own, Delta.read(content))
        assert found.extends(own)
        assert found.sha256 == said["sha256"]
    with suppress(DataError):
        Held.read(content.decode(errors="replace"))
