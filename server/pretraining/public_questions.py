"""Makes the public questions by which towers learn from one another's answers: pretext questions, which need no label."""

from pathlib import Path

from tessera.common.data.catalogue import load_catalogue
from tessera.common.towers.public_questions import PublicQuestions, made_from
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import digest
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining.aligned_init import public_rows, reader_inputs
from tessera.server.pretraining.pretext_tasks import Pretext

FORM = 1
"""Version of how they are drawn."""


def make_public_questions(dataset: Path, n: int, paths: list[Path]) -> None:
    """Write `n` questions about a dataset's public items to all `paths`, unless these hold them.

    The same catalogue gives the same questions. Raises `DataError` where items have no picture and text.
    """
    catalogue = load_catalogue(dataset)
    rows = public_rows(dataset, catalogue)
    inputs = reader_inputs(catalogue)
    seen = b"".join(part[rows].numpy().tobytes() for part in (inputs.image, inputs.text))
    key = digest(f"{FORM} {n} {rows.tolist()}".encode() + seen)
    if all(made_from(path) == key for path in paths):
        return
    with one_thread():
        pretext = Pretext.of(inputs.image, inputs.text, rows)
        questions = pretext.questions(n, counter_rng.key("public questions"))
        made = PublicQuestions(questions, pretext.codebook.vectors(questions.choices))
    for path in paths:
        made.save(path, key)
