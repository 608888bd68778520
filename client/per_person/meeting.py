"""Notes where people meet what was sent, so that each person's gradients can be told apart afterwards.

Everything in a local step but these few operations is a person's own. Within `noting`, each of them is computed from what was
sent as a constant, and the gradient at its output, one row a person, gives the person's gradients of what was sent. What
reaches a sent tensor by ordinary differentiation has then gone another way, so that it is noticed and nothing is overlooked.
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


@dataclass
class Notes:
    """The meetings of one local step with the tensors `sent`: outputs, names of what was met, and how gradients follow."""

    sent: Tensors
    outputs: list[Tensor] = field(default_factory=list)
    met: list[tuple[list[str], Terms]] = field(default_factory=list)

    def names(self, shared: Sequence[Tensor]) -> list[str]:
        """Names of tensors that were sent as they are; none where one of them was not."""
        found = [name for one in shared for name, value in self.sent.items() if value is one]
        return found if len(found) == len(shared) else []

    def terms(self, gradients: Sequence[Tensor | None]) -> Iterator[tuple[str, Term]]:
        """Each row's gradients by name, from those at the outputs."""
        for (names, terms), gradient in zip(self.met, gradients, strict=True):
            if gradient is not None:
                yield from zip(names, terms(gradient), strict=True)


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def noting(sent: Tensors) -> Iterator[Notes]:
    """Note all meetings with the tensors `sent` until the end of the block."""
    notes = Notes(sent)
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def meet(compute: Callable[..., Tensor], shared: Sequence[Tensor], terms: Terms) -> Tensor:
    """`compute(*shared)`, a row or more for each person; `terms` gives the gradients of `shared` from the result's."""
    notes = _notes.get()
    if notes is None or not (names := notes.names(shared)):
        return compute(*shared)
    output = compute(*(one.detach() for one in shared))
    if not output.requires_grad:
        output.requires_grad_()
    notes.outputs.append(output)
    notes.met.append((names, terms))
    return output
