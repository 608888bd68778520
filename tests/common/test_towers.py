"""Our own towers: what padding, batches and sizes may not change."""

import pytest
import torch

from tessera.common.config.settings import TOWER_DIM
from tessera.common.towers.transformer import LENGTH, SIZES, ImageTower, TextTower, words


@pytest.mark.parametrize("name", SIZES)
def test_all_sizes_end_in_one_space_and_differ_in_width_and_depth(name: str) -> None:
    size = SIZES[name]
    assert ImageTower(size)(torch.rand(2, 3, 64, 64)).shape == (2, TOWER_DIM)
    assert TextTower(size)(words(["one", "two words"])).shape == (2, TOWER_DIM)
    assert len({other.width for other in SIZES.values()}) == 3
    assert len({other.depth for other in SIZES.values()}) > 1


def test_padding_and_company_do_not_change_a_text() -> None:
    torch.manual_seed(0)
    tower = TextTower(SIZES["tiny"]).eval()
    tokens = words(["the quick brown fox", "", "a b c d e f g h i j k l m n o p"])
    together = tower(tokens)
    assert together.isfinite().all()  # also where there are no words at all
    torch.testing.assert_close(tower(tokens[:1, :4])[0], together[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1], tower.head.bias)
    together.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in tower.parameters())


def test_words_are_hashed_the_same_everywhere_and_cut_at_the_end() -> None:
    tokens = words(["Blue, blue! Vase", "word " * 100])
    assert tokens[0, 0] == tokens[0, 1] != tokens[0, 2]
    assert tokens[0].count_nonzero() == 3
    assert tokens[1].count_nonzero() == LENGTH
    assert tokens[0, :3].tolist() == words(["blue BLUE vase"])[0, :3].tolist() == [5343, 5343, 7353]
