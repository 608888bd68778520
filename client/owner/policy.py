"""What a device answers: its owner's `policy.yaml`, in the device's folder, written with safe defaults where there is none.

It is read before anything is answered. A file that is damaged, or says what no policy can, refuses everything.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from tessera.client.device_folder import POLICY
from tessera.common.config.loading import read_yaml
from tessera.common.config.yaml_text import load_yaml
from tessera.common.errors import ConfigError
from tessera.common.privacy.between import LEAST
from tessera.common.protocol.masked.key_list import public_key
from tessera.common.protocol.messages import Kind
from tessera.common.registry.component import Amount, Fraction, FrozenSettings, Natural, Positive, Rate, Step
from tessera.common.registry.registry import nearest
from tessera.common.utils.atomic_files import PRIVATE, write_bytes

HEADER = """\
# What this device answers when a server asks. `tessera device policy show` says what each line means, `set` changes one, and
# `check` looks for mistakes. It is read anew for each message; a file with mistakes refuses everything.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)


class Policy(FrozenSettings):
    """What a device answers, and what not."""

    answers: tuple[Kind, ...] = KINDS
    """Kinds of task that are answered: counts of items, products for a spectral start, steps that find
    what people go by, training, evaluation, baselines, and
    the note of which round was selected, for which nothing is sent."""
    secure: Literal["required", "preferred"] = "preferred"
    """required: nothing leaves but in secure sums. preferred: an answer of this device alone may leave too, where it is a sum
    over enough `people`."""
    people: Positive = LEAST
    """Smallest number of people in a sum: on this device, or in a secure sum on all of its devices. A device of one person
    therefore answers in secure sums alone. Sums over fewer than 64 say more of each person than what is popular does. Nor may
    fewer come or go between two sums of the same, such as item counts: their difference would be these people's."""
    devices: Positive = 2
    """Smallest number of devices in a secure sum."""
    newcomers: Literal["few", "none", "any"] = "few"
    """Devices in a secure sum whose keys were not there when this device first saw any, and that its owner did not admit by
    `tessera device keys admit`. few: fewer than a third of a group, who together learn nothing. any: a server could invent
    devices, and read this one's answers."""
    operator: str = ""
    """The public key of an operator, as in operator.key.pub ("ssh-ed25519 ..."): in secure sums are then none but devices on
    the list that this operator signed, see `tessera federate sign`."""
    adapters: bool = True
    """Whether adapters of this device's own tower may be sent, with FedMosaic and `combined`: they are no sum."""
    cold_users: bool = False
    """Whether a server may leave people out by its settings (data.cold_users), which tells people apart by difference."""
    max_asks_per_day: Positive = 2000
    """Answers in 24 hours."""
    max_repeats: Positive = 9
    """Answers to the same ask of a round: a server asks again what was lost, and a resumed run repeats its last round."""
    max_rounds: Positive = 2000
    """Rounds of a run."""
    max_local_epochs: Positive = 50
    """Local steps in a round."""
    max_next_item_samples: Positive = 64
    """Events asked for in a local step."""
    max_negatives: Positive = 1000
    """Sampled negatives of an event."""
    max_clip: Step = 100.0
    """Largest bound of a person's gradients, where they are clipped; a run that does not clip promises nothing."""
    min_noise_multiplier: Amount = 0.0
    """Least noise on a person's gradients as a multiple of the clip; above 0, training without clip and noise is refused."""
    max_noise_share: Fraction = 0.5
    """Largest share of a secure sum's devices whose noise a server may count on: above a half, a server that lies about who
    answered can be left with less noise than is counted."""
    max_epsilon: Amount | None = None
    """Budget of all noised answers together; with one, training without noise is refused, and all that is exact outside secure
    sums. Counts of items and evaluations in secure sums are exact, and not in it. Empty: none."""
    delta: Annotated[Rate, Field(gt=0)] = 1e-5
    """Delta at which epsilon is counted."""
    max_basis_columns: Positive = 256
    """Columns that one product of a spectral start may have."""
    max_power_asks: Natural = 40
    """Products for a spectral start in a run; 0 refuses it."""
    max_aspect_asks: Natural = 100
    """Steps in a run that find sides of items which people go by; 0 refuses them."""
    people_per_column: Amount = 4.0
    """Outside secure sums, how many people there must be for each column that a run's products have had together. With as many
    columns as people histories come out."""
    item_people: Positive = 5
    """Outside secure sums, items that fewer people here have are left out of a spectral start."""

    @field_validator("operator")
    @classmethod
    def _is_key(cls, line: str) -> str:
        """The key without a comment, as it is compared."""
        if line:
            public_key(line)
        return " ".join(line.split()[:2])


def read_policy(folder: Path) -> Policy:
    """A device's policy; its file is written where there is none. Raises `ConfigError` that names the file and each bad key."""
    path = folder / POLICY
    try:
        stat = path.stat()
    except FileNotFoundError:
        write_policy(folder, Policy())
        stat = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return _read(path, stat.st_mtime_ns, stat.st_ino, stat.st_size)


def write_policy(folder: Path, policy: Policy, note: str = "") -> None:
    """Write a policy, all of it, so that it does not change with the defaults of a later version. Raises `StorageError`.

    `note` are lines of comment that come first.
    """
    content = yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_bytes(folder / POLICY, (note + HEADER + content).encode(), PRIVATE)


def parse_policy(content: dict[str, Any], source: str) -> Policy:
    """Check what stands in a policy's file. Raises `ConfigError` that names `source`, and the nearest known key."""
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        problems = [_explain(one["type"], ".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from None


def changed(policy: Policy, change: str) -> Policy:
    """The policy with one change "KEY=VALUE", the value as in YAML. Raises `ConfigError`."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{change!r}: write KEY=VALUE, such as people=20")
    try:
        return parse_policy(policy.model_dump(mode="json") | {key: load_yaml(value)}, change)
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: {value!r} is not a YAML value: {error}") from None


@lru_cache(maxsize=64)
def _read(path: Path, changed: int, file: int, size: int) -> Policy:
    return parse_policy(read_yaml(path), str(path))


def _explain(kind: str, key: str, message: str) -> str:
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    return f"unknown key {key!r}; the nearest known one is {nearest(key, list(Policy.model_fields))!r}"
