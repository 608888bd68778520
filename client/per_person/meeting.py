"""Notes where people meet what was sent, so that gradients of what was sent are told apart by person, or added up in place.

Everything in a local step but these few operations is a person's own. Within `noting`, each of them is computed from what was
sent as a constant, and the gradient at its output, one row a person, gives the person's gradients of what was sent. What
reaches a sent tensor by ordinary differentiation has then gone another way, so that it is noticed and nothing is overlooked.

Within `adding_up`, operations that know how add all people's gradients to the sum themselves. Ordinary differentiation would
make a tensor as large as what was sent for each of them, and then add these up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from tessera.client.per_person.gradients import Term
from tessera.common.protocol.tensors import Tensors

Terms = Callable[[Tensor], Sequence[Term]]
"""From the gradient at an operation's output to each row's gradients of what was sent into it, one for each such tensor."""
Adds = Callable[[Tensor, Tensor], None]
"""From the gradient at an operation's output, and a sum of gradients of the tensor that was sent into it: adds its own."""


@dataclass
class Notes:
    """The meetings of one local step with the tensors `sent`: outputs, names of what was met, and how gradients follow.

    Told apart they follow by `Terms`; `summed` says that they are added up, by `Adds`.
    """

    sent: Tensors
    summed: bool = False
    outputs: list[Tensor] = field(default_factory=list)
    met: list[tuple[list[str], Terms]] = field(default_factory=list)
    added: list[tuple[str, Adds]] = field(default_factory=list)

    def names(self, shared: Sequence[Tensor]) -> list[str]:
        """Names of tensors that were sent as they are; none where one of them was not."""
        found = [name for one in shared for name, value in self.sent.items() if value is one]
        return found if len(found) == len(shared) else []

    def terms(self, gradients: Sequence[Tensor | None]) -> Iterator[tuple[str, Term]]:
        """Each row's gradients by name, from those at the outputs."""
        for (names, terms), gradient in zip(self.met, gradients, strict=True):
            if gradient is not None:
                yield from zip(names, terms(gradient), strict=True)

    def add(self, gradients: Sequence[Tensor | None], total: Tensors) -> None:
        """Add up in `total`, by name, what follows from the gradients at the outputs."""
        for (name, adds), gradient in zip(self.added, gradients, strict=True):
            if gradient is not None:
                adds(gradient, total[name])


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def noting(sent: Tensors) -> Iterator[Notes]:
    """Note all meetings with the tensors `sent` until the end of the block."""
    yield from _within(Notes(sent))


@contextmanager
def adding_up(sent: Tensors) -> Iterator[Notes]:
    """Note the meetings with the tensors `sent` that can add gradients up, until the end of the block."""
    yield from _within(Notes(sent, summed=True))


def adds_up(shared: Tensor) -> bool:
    """Whether gradients of `shared` are being added up."""
    notes = _notes.get()
    return notes is not None and notes.summed and bool(notes.names([shared]))


def meet(
    compute: Callable[..., Tensor], shared: Sequence[Tensor], terms: Terms | None, adds: Adds | None = None
) -> Tensor:
    """`compute(*shared)`, a row or more for each person; `terms` gives the gradients of `shared` from the result's, and `adds`,
    where only one tensor is shared, adds them up. Without `terms` it may only be called where `adds_up` says so."""
    notes = _notes.get()
    if notes is None or (notes.summed and adds is None) or not (names := notes.names(shared)):
        return compute(*shared)
    output = compute(*(one.detach() for one in shared))
    if not output.requires_grad:
        output.requires_grad_()
    notes.outputs.append(output)
    if notes.summed and adds is not None:
        notes.added.append((names[0], adds))
    elif terms is not None:
        notes.met.append((names, terms))
    return output


def _within(notes: Notes) -> Iterator[Notes]:
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
