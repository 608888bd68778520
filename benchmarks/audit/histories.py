"""Looks for people's histories in all that a server sees of their devices over a run.

A guess is as many items as the person has, so that its precision, recall and F1 are one. For each person the attacker adds up
what speaks for an item over all answers that the person's device is in, in several ways, and is granted the best of these:

- counts: item statistics;
- products: rows of X^T X B, of one person the first singular direction;
- history rows: lengths of the rows of dL/dH, which are zero but for the items of a history;
- view rows: lengths of the rows of dL/dF, added up over the views;
- view signs: of the first singular direction of these, whose smaller side are the items that were asked for (BCE, softmax).

Under masks answers are sums of groups, and all people of a group get the same guess. `separation` looks for whole histories in
such a sum, without knowing whose they are.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from tessera.benchmarks.audit.findings import Finding, Size
from tessera.benchmarks.audit.listening import Heard, changed, listen, some_people
from tessera.benchmarks.audit.separation import Rows, separated
from tessera.client.owner.policy import Policy
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.data.splits import make_split
from tessera.common.protocol.messages import BASIS, COUNTS, HISTORY, VIEWS
from tessera.common.secure.groups import group_sizes
from tessera.common.utils import counter_rng

ALLOWED = 2.0
"""F1 beyond what popularity gets, in points of %."""
Clues = Mapping[str, Tensor]
"""What speaks for each item, [n_items], by the way it was found."""


@dataclass
class Evidence:
    """What was heard of each set of devices, added up over a run."""

    clues: dict[frozenset[int], dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[frozenset[int], list[Rows]] = field(default_factory=lambda: defaultdict(list))

    def hear(self, heard: Heard) -> None:
        """Take in an answer."""
        known = self.clues[heard.nodes]
        for name, clue in clues(heard):
            known[name] = known.get(name, torch.zeros(())) + clue
        for table in (heard.update.gradients.get(HISTORY), heard.update.counts.get(BASIS)):
            if table is not None and len(heard.nodes) > 1:
                self.rows[heard.nodes].append(Rows.of(table))

    def of(self, node: int) -> Clues:
        """What speaks for the items of a device's person: all that was heard of sets with it."""
        found: dict[str, Tensor] = {}
        for nodes, known in self.clues.items():
            for name, clue in known.items() if node in nodes else ():
                found[name] = found.get(name, torch.zeros(())) + clue
        return found


def clues(heard: Heard) -> Iterator[tuple[str, Tensor]]:
    """What an answer says for each item."""
    gradients, counts = heard.update.gradients, heard.update.counts
    if COUNTS in counts:
        yield "counts", counts[COUNTS]
    if BASIS in counts:
        product = counts[BASIS]
        yield "products", _first(product).abs() if len(heard.nodes) == 1 else product.norm(dim=1)
    if HISTORY in gradients:
        yield "history rows", gradients[HISTORY].norm(dim=1)
    if VIEWS in gradients:
        table = gradients[VIEWS].sum(0)
        yield "view rows", table.norm(dim=1)
        first = _first(table)
        yield "view signs", -first * first.sign().sum().sign()


def _first(table: Tensor) -> Tensor:
    """The first left singular direction of a table [n_items, width], [n_items]."""
    vectors = torch.linalg.eigh(table.double().T @ table.double()).eigenvectors
    found = table.double() @ vectors[:, -1]
    return (found / found.norm().clamp(min=1e-30)).float()


def guessed(clue: Tensor, n: int) -> frozenset[int]:
    """The `n` items that most speaks for; fewer where nothing speaks for more."""
    values, items = clue.topk(min(n, len(clue)))
    return frozenset(items[values > 0].tolist())


def f1(guess: frozenset[int], truth: frozenset[int]) -> float:
    """Harmonic mean of precision and recall, in %."""
    return 200 * len(guess & truth) / max(len(guess) + len(truth), 1)


def attack_histories(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """Listen to a run as the settings have it and, where they mask, to the same one without masks, and guess."""
    folder = Path(tempfile.mkdtemp())
    try:
        people = some_people(dataset, folder / "people", size.people, seed)
        truths = _histories(people, settings)
        prior = _popularity(dataset, settings, truths)
        found = [_people_needed(_histories(dataset, settings))]
        masked = settings.privacy.secure is True
        for secure in (True, False) if masked else (False,):
            own = _settings(settings, secure, seed, size)
            policy, told = _policy(own, size) if secure else (None, "")
            evidence, note = heard_of(own, people, folder / f"secure-{secure}", policy)
            best, got = best_guess(evidence, truths, size.on_devices)
            name = "history of a device" + ("" if secure or not masked else ", were there no masks")
            limit = prior + ALLOWED if secure == masked else None
            said = "; ".join(filter(None, [best, note, told]))
            found.append(Finding(name, "F1 %", got, prior, limit, said))
            if secure:
                found += _nameless(evidence, truths, size.on_devices)
        return found
    finally:
        shutil.rmtree(folder)


def heard_of(settings: Settings, people: Path, folder: Path, policy: Policy | None) -> tuple[Evidence, str]:
    """What is heard in a run. One whose spectral start devices refuse goes on without it, as it would have to."""
    evidence, note = Evidence(), ""
    done = listen(settings, people, folder, evidence.hear, policy)
    if done.failure and settings.views.spectral_rounds:
        note = "without a spectral start: " + done.failure.rpartition("policy: ")[2].partition(";")[0] + " refused it"
        settings = changed(settings, views={"spectral_rounds": 0})
        done = listen(settings, people, folder.with_name(f"{folder.name}-again"), evidence.hear, policy)
    return evidence, note if not done.failure else f"the run failed: {done.failure[:80]}"


def best_guess(evidence: Evidence, truths: Sequence[frozenset[int]], devices: int) -> tuple[str, float]:
    """The way to guess that gets most, and the mean over people, on so many devices in turn, of what it gets, in %."""
    scores: dict[str, list[float]] = defaultdict(list)
    known = [evidence.of(node + 1) for node in range(devices)]
    for person, truth in enumerate(truths):
        for name, clue in known[person % devices].items():
            scores[name].append(f1(guessed(clue, len(truth)), truth))
    got = {name: sum(values) / len(truths) for name, values in scores.items()}
    best = max(got, key=got.__getitem__, default="nothing was heard")
    return best, got.get(best, 0.0)


def _policy(settings: Settings, size: Size) -> tuple[Policy, str]:
    """What devices insist on: the defaults, or no more people than the smallest group of this audit has, which is said."""
    fewest = min(group_sizes(size.on_devices, settings.privacy.group)) * (size.people // size.on_devices)
    if fewest >= Policy().people:
        return Policy(), ""
    return Policy(people=max(fewest, 1)), f"by default devices refuse sums of {fewest} people"


def _nameless(evidence: Evidence, truths: Sequence[frozenset[int]], devices: int) -> list[Finding]:
    """How well histories found in a group's sums fit its people, beside how well they fit people of other groups."""
    inside: list[float] = []
    outside: list[float] = []
    for nodes, rows in evidence.rows.items():
        of_group = [person % devices + 1 in nodes for person in range(len(truths))]
        found = separated(rows, sum(of_group))
        for truth, is_own in zip(truths, of_group, strict=True):
            (inside if is_own else outside).append(max((f1(one, truth) for one in found), default=0.0))
    if not inside or not outside:
        return []
    prior = fmean(outside)
    note = "prior: people of other groups"
    return [Finding("histories in a sum, nameless", "F1 %", fmean(inside), prior, prior + ALLOWED, note)]


def _people_needed(everybody: Sequence[frozenset[int]]) -> Finding:
    """How many people must be in a sum, for counts of it to say no more of each of them than the gate allows: a power of two,
    or all. It is what exact counts would say; other answers may say more or less."""
    n_items = 1 + max(max(one, default=0) for one in everybody)
    owned = torch.zeros(len(everybody), n_items)
    for person, items in enumerate(everybody):
        owned[person, list(items)] = 1
    draws = counter_rng.uniform(counter_rng.key("audit sums", 0), torch.arange(len(everybody)))
    order, needed = draws.argsort().tolist(), 1
    allowed = ALLOWED + fmean(f1(guessed(owned.sum(0), len(one)), one) for one in everybody)
    while needed < len(everybody):
        got = [
            f1(guessed(owned[group].sum(0), len(everybody[person])), everybody[person])
            for group in (order[at : at + needed] for at in range(0, min(len(order) - needed + 1, 512), needed))
            for person in group
        ]
        if fmean(got) <= allowed:
            break
        needed *= 2
    return Finding("people in a sum whose counts pass", "people", float(min(needed, len(everybody))))


def _settings(settings: Settings, secure: bool, seed: int, size: Size) -> Settings:
    federation = {
        "nodes": size.on_devices,
        "clients_per_round": 0,
        "over_selection": 0.0,
        "min_nodes": 1,
        "min_fraction": 0.0,
    }
    return changed(
        settings,
        seed=seed,
        rounds=size.rounds,
        federation=federation,
        evaluation={"every": size.rounds, "baselines": False, "patience": 0},
        privacy={"secure": secure},
    )


def _histories(people: Path, settings: Settings) -> list[frozenset[int]]:
    """Training histories by person."""
    interactions = load_interactions(people, len(load_catalogue(people, modalities=False)))
    split = make_split(interactions, settings.data, settings.seed)
    return [
        frozenset(split.train_items[start:end].tolist())
        for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]


def _popularity(dataset: Path, settings: Settings, truths: Sequence[frozenset[int]]) -> float:
    """What the most popular items of the whole dataset get, mean F1 in %."""
    interactions = load_interactions(dataset, len(load_catalogue(dataset, modalities=False)))
    counts = torch.from_numpy(make_split(interactions, settings.data, settings.seed).counts()).float()
    return fmean(f1(guessed(counts, len(truth)), truth) for truth in truths)
