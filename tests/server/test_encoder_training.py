"""Fitting towers for raw pictures and texts: they learn, the same fit gives the same tower, and smaller ones are derived."""

from functools import cache

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from tessera.common.config.settings import TOWER_DIM
from tessera.common.encoders.towers import KINDS
from tessera.common.towers.transformer import SIDE, Tower, TowerSize, words
from tessera.server.pretraining import encoder_training
from tessera.server.pretraining.encoder_training import EncoderSamples, encode, fit, retrieval_metrics

TINY, LARGE = TowerSize(32, 4), TowerSize(64, 4)
N_ITEMS, N_SEEN = 160, 120
NAMES = ("glass", "linen", "copper", "cedar", "felt", "clay")


@cache
def items(kind: str) -> EncoderSamples:
    """Items that are of two things at once, as colours of their halves or as words, and lie between both."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(len(NAMES), (2, N_ITEMS), generator=generator)
    places = torch.randn(2, len(NAMES), TOWER_DIM, generator=generator)
    wanted = normalize(places[0, first] + places[1, second], dim=1)
    if kind == "text":
        titles = [
            f"Vase {n} {NAMES[one]} and pale {NAMES[other]}"
            for n, (one, other) in enumerate(zip(first, second, strict=True))
        ]
        return EncoderSamples(words(titles), wanted)
    colours = torch.randint(256, (2, len(NAMES), 3), generator=generator)
    halves = [
        colours[part, which][:, :, None, None].expand(-1, 3, SIDE // 2, SIDE)
        for part, which in enumerate((first, second))
    ]
    return EncoderSamples(torch.cat(halves, dim=2).to(torch.uint8), wanted)


def parts(kind: str) -> tuple[EncoderSamples, EncoderSamples]:
    """Items to learn from, and others."""
    rows = torch.arange(N_ITEMS)
    return items(kind).take(rows[:N_SEEN]), items(kind).take(rows[N_SEEN:])


def fitted(kind: str, size: TowerSize, teacher: Tower | None, steps: int) -> tuple[Tower, int]:
    calls: list[None] = []
    tower = fit(kind, size, parts(kind)[0], teacher, steps, lambda: calls.append(None))
    return tower, len(calls)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_training, "BATCH", 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_learns_what_holds_for_items_it_has_not_seen(kind: str) -> None:
    tower, steps = fitted(kind, TINY, None, 60)
    assert steps == 60
    right, before = (retrieval_metrics(each, parts(kind)[1]) for each in (tower, KINDS[kind](TINY)))
    assert right["cosine"] > 0.3 > before["cosine"]
    assert right["retrieval"] > 0.7 > before["retrieval"]
    # The loss holds the length of vectors too, which features keep.
    lengths = encode(tower, parts(kind)[1].raw).norm(dim=1)
    assert lengths.max() < 2
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_fit_gives_the_same_tower(kind: str) -> None:
    one, again = (fitted(kind, TINY, None, 5)[0] for _ in range(2))
    assert all(torch.equal(mine, other) for mine, other in zip(one.parameters(), again.parameters(), strict=True))


def test_a_derived_tower_takes_after_its_teacher() -> None:
    teacher, raw = fitted("text", LARGE, None, 60)[0], parts("text")[1].raw
    derived, alone = (fitted("text", TINY, source, 60)[0] for source in (teacher, None))
    closer, farther = (
        float(cosine_similarity(encode(tower, raw), encode(teacher, raw)).mean()) for tower in (derived, alone)
    )
    assert closer > farther + 0.03


def test_retrieval_is_expected_over_three_others() -> None:
    class Echo(Tower):
        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            return raw

    places = torch.eye(TOWER_DIM)[:5]
    swapped = places[torch.tensor([1, 0, 2, 3, 4])]  # two items are told as each other
    found = retrieval_metrics(Echo(TINY, 1), EncoderSamples(swapped, places))
    assert found["cosine"] == pytest.approx(0.6)
    assert found["retrieval"] == pytest.approx(0.6)
