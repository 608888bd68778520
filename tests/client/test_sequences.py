"""Models that read events one after the other: what comes later, and who is beside, changes nothing."""

import math

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.backbones.sequences import Windows, gated_recurrence, self_attention
from tessera.client.histories import histories
from tessera.common.config.settings import LocalSettings
from tessera.common.errors import ConfigError
from tessera.common.registry.backbones import BACKBONES
from tests.support.catalogues import small_split

DIM = 8
SEQUENTIAL = ("sasrec", "gru4rec")
sequential = pytest.mark.parametrize("backbone", SEQUENTIAL)


def head(backbone: str, dim: int = DIM, **changes: object) -> dict[str, torch.Tensor]:
    """A head that is nobody's start."""
    settings = LocalSettings.model_validate({"backbone": {"name": backbone, **changes}}).backbone
    draws = torch.Generator().manual_seed(3)
    shared = BACKBONES[backbone].shared(dim, settings)
    return {name: 0.4 * torch.randn(one.shape, generator=draws, dtype=torch.float64) for name, one in shared.items()}


def states(backbone: str, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if backbone == "gru4rec":
        return gated_recurrence(head(backbone), backbone, inputs)
    return self_attention(head(backbone), backbone, inputs, mask, blocks=2, heads=2)


@sequential
def test_a_state_knows_nothing_of_what_comes_later(backbone: str) -> None:
    inputs = torch.randn(3, 7, DIM, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [5], [3]])
    before = states(backbone, inputs, mask)
    for at in range(7):
        other = inputs.clone()
        other[:, at:] += 1
        assert torch.equal(states(backbone, other, mask)[:, :at], before[:, :at])
        assert not torch.equal(states(backbone, other, mask)[:, at], before[:, at])


@sequential
def test_a_longer_window_and_company_change_no_ones_state(backbone: str) -> None:
    inputs = torch.randn(2, 4, DIM, dtype=torch.float64)
    mask = torch.ones(2, 4, dtype=torch.bool)
    padded = torch.cat([inputs, torch.randn(2, 3, DIM, dtype=torch.float64)], dim=1)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        states(backbone, padded, longer)[:, :4], states(backbone, inputs, mask), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        states(backbone, inputs[:1], mask[:1]), states(backbone, inputs, mask)[:1], rtol=0, atol=1e-12
    )


def test_windows_hold_the_last_events_that_are_shown() -> None:
    people = histories(small_split(5, 30))
    hidden = people.hidden(0.4, salt=1)
    for shown in (people, hidden):
        windows = Windows.of(shown, 3)
        for user in range(5):
            at = slice(int(people.offsets[user]), int(people.offsets[user + 1]))
            kept = [int(item) for item, one in zip(people.items[at], shown.shown[at], strict=True) if one > 0][-3:]
            assert windows.items[user][windows.mask[user]].tolist() == kept
    nobody = Windows.of(histories(small_split(5, 30).take(np.array([], dtype=int))), 3)
    assert nobody.items.shape[0] == 0


@sequential
def test_it_starts_as_history_does(backbone: str) -> None:
    split, views = small_split(6, 30), torch.randn(2, 30, DIM, dtype=torch.float64)
    settings = LocalSettings.model_validate({"backbone": backbone, "loss": "next", "recency": 1.0})
    shared = BACKBONES[backbone].shared(DIM, settings.backbone)
    sent = {"views": views, "history": torch.randn(30, DIM, dtype=torch.float64)}
    network = head(backbone)
    start = {
        name: torch.zeros_like(value) if shared[name].start == "zeros" else value for name, value in network.items()
    }
    private = cohort.start_state(split.users, settings, views, 0).parameters
    people = histories(split).to(torch.device("cpu"), torch.float64)
    plain = LocalSettings.model_validate({"backbone": "history", "loss": "next", "recency": 1.0})
    wanted = cohort.scores(private, sent, people, plain)[0]
    assert torch.equal(cohort.scores(private, sent | start, people, settings)[0], wanted)
    assert not torch.allclose(cohort.scores(private, sent | network, people, settings)[0], wanted)


def test_attention_is_that_of_the_paper() -> None:
    """Written out for one person, one head and one event at a time."""
    sent, inputs = head("sasrec", heads=1), torch.randn(1, 5, DIM, dtype=torch.float64)
    found = self_attention(sent, "sasrec", inputs, torch.ones(1, 5, dtype=torch.bool), blocks=2, heads=1)[0]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * sent[f"{name}_gain"] + sent[f"{name}_bias"]

    def mapped(name: str, x: torch.Tensor) -> torch.Tensor:
        return sent[name] @ x + sent[f"{name}_bias"]

    rows = list(inputs[0])
    for block in range(2):
        at = f"sasrec_{block}"
        seen = [norm(f"{at}_norm", row) for row in rows]
        after = []
        for t, row in enumerate(rows):
            logits = torch.stack([mapped(f"{at}_query", seen[t]) @ mapped(f"{at}_key", seen[s]) for s in range(t + 1)])
            weights = torch.softmax(logits / math.sqrt(DIM), 0)
            value = sum(weights[s] * mapped(f"{at}_value", seen[s]) for s in range(t + 1))
            middle = row + mapped(f"{at}_out", value)
            after.append(
                middle + mapped(f"{at}_second", torch.relu(mapped(f"{at}_first", norm(f"{at}_norm2", middle))))
            )
        rows = after
    torch.testing.assert_close(found, torch.stack([norm("sasrec_norm", row) for row in rows]), rtol=1e-9, atol=1e-9)


def test_sizes_are_those_that_the_papers_count() -> None:
    """PerPEFT, Table 8: 12,992 numbers at 32 dimensions, without places and read-out."""
    at_32 = {name: value.numel() for name, value in head("sasrec", dim=32).items()}
    network = sum(size for name, size in at_32.items() if "places" not in name and "read" not in name)
    assert network == 12_992
    assert sum(value.numel() for value in head("sasrec", dim=64).values()) == 57_920
    assert sum(value.numel() for value in head("gru4rec", dim=64).values()) == 29_120
    with pytest.raises(ConfigError, match=r"heads: 3 heads do not divide views\.dim 32"):
        head("sasrec", dim=32, heads=3)
