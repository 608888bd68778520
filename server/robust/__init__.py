"""How the server makes one out of many updates: by their sum, or so that a few hostile devices have little say."""

from functools import partial

from tessera.common.protocol.messages import Task
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.defences import DEFENCES, AttackersSettings
from tessera.common.registry.registry import resolve
from tessera.server.robust.claims import Claims
from tessera.server.robust.combine import Combiner, Defended, Sum


def combiner(defence: ComponentSettings, task: Task, claims: Claims) -> Combiner:
    """What combines the answers to a task: a plain sum, or with a defence, where they are gradients, what lets the attackers
    that it assumes neither weigh more than anybody else nor say more than anybody else."""
    if task.kind != "train" or not isinstance(defence, AttackersSettings):
        return Sum()
    make = partial(resolve(DEFENCES[defence.name].implementation), defence.attackers)
    bound = claims.largest(defence.attackers)
    return Defended(make, bound.weight(task)) if bound else Defended(make)
