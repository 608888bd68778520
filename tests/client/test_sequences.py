"""Models that read events one after the other: what comes later, and who is beside, changes nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.backbones import BackboneInput, make_backbone
from tessera.client.backbones.history import History
from tessera.client.backbones.sequences import Windows, gated_recurrence, self_attention
from tessera.client.histories import Cuts, histories, single
from tessera.client.router import Routed
from tessera.common.config.settings import LocalSettings
from tessera.common.errors import ConfigError
from tessera.common.protocol.messages import HISTORY, VIEWS
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


def states(backbone: str, inputs: torch.Tensor) -> torch.Tensor:
    if backbone == "gru4rec":
        return gated_recurrence(head(backbone), backbone, inputs)
    return self_attention(head(backbone), backbone, inputs, blocks=2, heads=2)


@sequential
def test_a_state_knows_nothing_of_what_comes_later(backbone: str) -> None:
    inputs = torch.randn(3, 7, DIM, dtype=torch.float64)
    before = states(backbone, inputs)
    for at in range(7):
        other = inputs.clone()
        other[:, at:] += 1
        assert torch.equal(states(backbone, other)[:, :at], before[:, :at])
        assert not torch.equal(states(backbone, other)[:, at], before[:, at])


@sequential
def test_a_longer_window_and_company_change_no_ones_state(backbone: str) -> None:
    inputs = torch.randn(2, 4, DIM, dtype=torch.float64)
    padded = torch.cat([inputs, torch.randn(2, 3, DIM, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(states(backbone, padded)[:, :4], states(backbone, inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(states(backbone, inputs[:1]), states(backbone, inputs)[:1], rtol=0, atol=1e-12)


def test_windows_hold_the_last_events_that_are_shown() -> None:
    people = histories(small_split(5, 30))
    hidden = people.hidden(0.4, salt=1)
    for shown in (people, hidden):
        windows = Windows.of(shown, 3)
        for user in range(5):
            at = slice(int(people.offsets[user]), int(people.offsets[user + 1]))
            kept = [int(item) for item, one in zip(people.items[at], shown.shown[at], strict=True) if one > 0][-3:]
            assert windows.items[user, : windows.ends[user, 0]].tolist() == kept
    nobody = Windows.of(histories(small_split(5, 30).take(np.array([], dtype=int))), 3)
    assert nobody.items.shape[0] == 0


@sequential
def test_all_that_is_asked_of_a_person_is_read_in_one_pass(backbone: str) -> None:
    """Gradients and losses of a local step are those of one person and one place after the other, each read by itself."""
    split, length, changes = small_split(6, 30), 3, {"length": 3, "dropout": 0.25}
    local = {
        "backbone": {"name": backbone, **changes},
        "loss": {"name": "next", "next_item_samples": 7},
        "recency": 1.0,
        "history_mask": 0.3,
    }
    settings = LocalSettings.model_validate(local)
    sent = {"views": torch.randn(1, 30, DIM), "history": torch.randn(30, DIM)}
    sent |= {name: value.float() for name, value in head(backbone, **changes).items()}
    step = cohort.Step(sent, histories(split), settings, round=1)
    private = cohort.start_state(split.users, settings, sent["views"], 0).parameters
    losses, _, found = step.gradients(private, salt=5)

    received = {name: value.clone().requires_grad_() for name, value in sent.items()}
    known, asked = histories(split).cuts(7, 5, length)
    assert known.cut is not None
    naive, early = [], 0
    for row in range(len(known)):
        items, person = known.items[known.offsets[row] : known.offsets[row + 1]], row // 7
        skipped = int(known.cut.skipped[row])
        early += skipped > 0
        assert skipped % length == 0
        assert len(items) - skipped in range(length + 1)
        one = single(items.tolist(), 30, split.users[person]).hidden(0.3, 5)
        whole = cohort.routed({}, received, one, settings)
        read = Windows.of(replace(one, cut=Cuts(1, torch.tensor([skipped]))), length)
        query = History(settings.backbone).query(replace(whole, private={"user": torch.zeros(1, DIM)}))
        events, ends = received["history"][read.items], read.ends
        kept = make_backbone(settings.backbone)._kept(replace(whole, salt=5), events, 5)
        query = query + make_backbone(settings.backbone)._added(received, events, ends, kept)[:, 0]
        naive.append(torch.nn.functional.cross_entropy(query @ received["views"][0].T, asked.items[row][None]))
    assert early, "some windows begin later than the history"
    naive = torch.stack(naive).view(6, 7).mean(1)
    torch.testing.assert_close(losses, naive.detach(), rtol=1e-5, atol=1e-6)
    naive.sum().backward()
    for name, value in received.items():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_every_place_is_asked_for_alike() -> None:
    people = histories(small_split(1, 30))
    events = int(people.lengths()[0])
    places = torch.cat([people.cuts(8, salt, window=3)[0].lengths() for salt in range(4000)])
    shares = torch.bincount(places, minlength=events)[1:] / len(places) * (events - 1)
    assert len(shares) == events - 1 > 3
    assert (shares - 1).abs().max() < 0.1


@sequential
def test_dropout_is_a_persons_own_and_keeps_the_mean(backbone: str) -> None:
    settings = LocalSettings.model_validate({"backbone": {"name": backbone, "dropout": 0.25}, "loss": "next"})
    model, split = make_backbone(settings.backbone), small_split(6, 30)

    def kept(rows: list[int], length: int) -> torch.Tensor:
        people = histories(split.take(np.array(rows)))
        given = BackboneInput({}, {}, people, Routed(torch.zeros(1, 30, DIM), torch.ones(len(rows), 1)), salt=4)
        return model._kept(given, torch.zeros(len(rows), length, DIM), 4)

    everybody = kept([0, 1, 2, 3, 4, 5], 50)
    assert torch.equal(kept([4], 20)[0], everybody[4][:, :20])
    assert not torch.equal(everybody[0], everybody[1])
    assert everybody.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(everybody.mean()) == pytest.approx(1, abs=0.02)


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
    found = self_attention(sent, "sasrec", inputs, blocks=2, heads=1)[0]

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


@pytest.mark.parametrize("backbone", ["history", "cosine", *SEQUENTIAL])
def test_without_a_private_vector_people_score_as_those_whose_vector_is_zero_and_nothing_of_it_is_kept(
    backbone: str,
) -> None:
    split = small_split(4, 30)
    sent = {HISTORY: torch.randn(30, DIM, dtype=torch.float64)}
    sent |= {VIEWS: torch.randn(2, 30, DIM, dtype=torch.float64), **head(backbone)}
    found = {}
    for private_vector in (True, False):
        content = {"backbone": {"name": backbone, "private_vector": private_vector}}
        settings = LocalSettings.model_validate(content)
        private, known = cohort.start_state(split.users, settings, sent[VIEWS], 0).parameters, histories(split)
        assert ("user" in private) == private_vector
        found[private_vector] = cohort.scores(private, sent, known.to("cpu", torch.float64), settings)[0]
    assert torch.equal(found[True], found[False])
