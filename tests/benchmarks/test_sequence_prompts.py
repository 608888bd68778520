"""How a history is shown to a language model: what is prompted, and what stands for people and items."""

from pathlib import Path

import polars as pl
import pytest
import torch

from tessera.benchmarks import sequence_prompts
from tessera.benchmarks.sequence_prompts import BOTH, TEXTS, TITLES, Prompts, rows_of, shown_of
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import from_frame
from tessera.common.errors import DataError
from tessera.common.towers.pretrained import load_text_tower
from tests.support.models import language_model

SHOWN = {TITLES: ["ash", "beech", "cedar"], TEXTS: ["grey bark", "smooth", "smells"], BOTH: ["a", "b", "c"]}


def prompts(folder: Path) -> Prompts:
    return Prompts(load_text_tower(str(language_model(folder))), SHOWN, lambda line: None)


def test_a_history_of_one_item_is_that_item_in_every_row(tmp_path: Path) -> None:
    events = pl.DataFrame({"user": ["u"] * 3, "item": [1, 0, 2], "timestamp": [1, 2, 3]})
    split = from_frame(events, 3).split()
    assert split.train_items.tolist() == [1]
    for people, items in rows_of(prompts(tmp_path), split, 10).values():
        torch.testing.assert_close(people[0], items[1])


def test_vectors_are_of_their_lists_whatever_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(tmp_path)
    lists = [[0], [2, 1, 0], [1], [0, 1]]
    together = asked.vectors(TITLES, lists)
    monkeypatch.setattr(sequence_prompts, "BATCH", 1)
    torch.testing.assert_close(asked.vectors(TITLES, lists), together, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[2])
    assert not torch.allclose(asked.vectors(TEXTS, lists), together)


def test_texts_are_cut_and_a_catalogue_without_any_is_refused() -> None:
    catalogue = Catalogue(("1", "2"), ("ash", "beech"), ("a b c", ""), ("", ""), {})
    assert shown_of(catalogue, 2) == {TITLES: ("ash", "beech"), TEXTS: ["a b", ""], BOTH: ["ash: a b", "beech: "]}
    with pytest.raises(DataError, match="no item has a text"):
        shown_of(Catalogue(("1",), ("ash",), ("",), ("",), {}), 2)
