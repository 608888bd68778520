"""What the masks of an answer are bound to: whoever is told anything else has masks that do not cancel."""

from dataclasses import fields, replace

import torch

from tessera.common.config.device import DeviceSettings
from tessera.common.protocol.masked.masking import terms
from tessera.common.protocol.messages import Ancestor, Masking, Task, pack_task, unpack_task
from tests.support.catalogues import small_settings

SETTINGS = DeviceSettings.of(small_settings())
INPUTS = {"counts": torch.arange(3.0)}
TASK = Task("train", "run", 3, (1, 2), ("image", "text"), "items", SETTINGS, masking=Masking(7, (0,), ()))


def test_masks_are_bound_to_all_that_a_task_says() -> None:
    """But for the name of its tensors, which may hold a device's own: what all are sent alike stands in its place."""
    other = {
        "kind": "power",
        "run": "other",
        "round": 4,
        "durable": (1,),
        "views": ("image", "id"),
        "catalogue": "others",
        "settings": DeviceSettings.of(small_settings(seed=1)),
        "selected": 2,
        "components": ((1.0, 0.0),),
        "masking": Masking(8, (0,), ()),
        "continues": (Ancestor("before", 3),),
    }
    assert {one.name for one in fields(Task)} == {*other, "tensors", "also"}
    bound = terms(TASK, "shared", INPUTS)
    for name, value in other.items():
        assert terms(replace(TASK, **{name: value}), "shared", INPUTS).task != bound.task, name
    assert terms(replace(TASK, tensors="0" * 64), "shared", INPUTS) == bound
    assert terms(TASK, "others", INPUTS).tensors != bound.tensors
    assert terms(TASK, "shared", {"counts": torch.ones(3)}).tensors != bound.tensors


def test_both_sides_bind_them_to_the_same() -> None:
    """A task that travelled, and one that was asked along with another, say the same as on the server."""
    sent = replace(TASK, components=((0.1**0.5, 0.9**0.5),))
    found, _, inputs = unpack_task(pack_task(sent, inputs=INPUTS))
    assert terms(found, "shared", inputs) == terms(sent, "shared", INPUTS)
