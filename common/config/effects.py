"""Finds settings that have no effect beside the others: whoever sets one has something in mind that would not happen.

Each rule says for some keys when they do nothing, and why. A file that sets such a key is refused with the reason; what is
written out leaves such keys out, so that it can be read again.
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tessera.common.registry.backbones import BACKBONES, nothing
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.converters import CONVERTED, CONVERTERS
from tessera.common.registry.defences import AttackersSettings
from tessera.common.registry.losses import LOSSES, WPCLSettings
from tessera.common.registry.strategies import STRATEGIES, TOWER_GROUPS, VIEWS_GROUPS
from tessera.common.secure.groups import FEWEST, SMALLEST, group_sizes

if TYPE_CHECKING:
    from tessera.common.config.settings import Settings

CONVERSION = ("min_user_events", "min_item_events", "min_rating", "user_share", "shop_seed", "encode")
"""Settings of the data that say how raw ones are converted."""
SPLITS = {
    "time": ("validation_from", "test_from"),
    "random": ("validation_share", "test_share", "split_seed"),
    "everything": ("validation_share", "split_seed"),
}
"""What the splits that need more than their name use."""
MASKABLE = ("float32", "int16")
"""Formats of gradients that can be added up under masks."""
Reasons = dict[str, str]
"""Why a key has no effect, by dotted key."""


def without_effect(settings: "Settings") -> Reasons:
    """Everything that has no effect in these settings, whether it was set or not: groups as a whole, or single keys."""
    return {key: why for rule in RULES for key, why in rule(settings).items()}


def set_without_effect(settings: "Settings") -> Reasons:
    """Of these, the keys that somebody set."""
    found: Reasons = {}
    for key, why in without_effect(settings).items():
        *groups, last = key.split(".")
        owner: Any = settings
        for group in groups:
            owner = getattr(owner, group)
        value = getattr(owner, last)
        if isinstance(value, BaseModel) and not isinstance(value, ComponentSettings):  # a whole group
            found |= {f"{key}.{name}": why for name in type(value).model_fields if name in value.model_fields_set}
        elif last in owner.model_fields_set:
            found[key] = why
    return found


def prune(content: dict[str, Any], keys: Iterable[str]) -> None:
    """Take dotted keys out of nested settings, those that are there."""
    for key in keys:
        *groups, last = key.split(".")
        place: Any = content
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)


def backbone_lacks(backbone: ComponentSettings, loss: ComponentSettings | None = None) -> str:
    """What a loss, or looking at each view by itself where none is given, needs of a backbone that it has not; "" where
    nothing is missing."""
    spec, known = BACKBONES[backbone.name], BACKBONES.known().items()
    if loss and LOSSES[loss.name].next_item and not spec.asks_next:
        able = ", ".join(name for name, one in known if one.asks_next)
        return f"needs a backbone that scores by the events before: {able}, not {backbone.name}"
    if (loss is None or LOSSES[loss.name].views_alone) and not spec.views_alone:
        able = ", ".join(name for name, one in known if one.views_alone)
        return f"needs a backbone that compares by each view alone: {able}, not {backbone.name}"
    return ""


def no_secure_sums(settings: "Settings") -> str:
    """Why devices' answers cannot be masked under these settings, and what works instead; "" where they can."""
    name, federation = settings.strategy.name, settings.federation
    if not settings.strategy_spec.has_sums:
        able = _and(one for one, spec in STRATEGIES.known().items() if spec.has_sums)
        return f"strategy {name} weighs each device's adapters by itself, which no sum can: {able} can be masked"
    if federation.nodes < FEWEST:
        return f"a sum of fewer than {FEWEST} devices hides none of them: set federation.nodes to {FEWEST} or more"
    if settings.wire.gradients not in MASKABLE:
        return f"masks add up whole tensors, and wire.gradients {settings.wire.gradients} is none: set it to int16 or float32"
    if settings.wire.gradients != "float32" and settings.privacy.distributed:
        return "distributed noise is counted in words of 32 bits: set wire.gradients to float32"
    if isinstance(federation.defence, AttackersSettings):
        return _too_few_groups(settings, federation.defence.attackers)
    return ""


def _too_few_groups(settings: "Settings", attackers: int) -> str:
    """Why a defence cannot tell attackers from others where it sees sums of groups alone; "" where it can."""
    federation, needed = settings.federation, 2 * attackers + 1
    sizes = group_sizes(federation.nodes, settings.privacy.group)
    groups = len(sizes) if federation.asked >= federation.nodes else math.ceil(federation.asked / max(sizes))
    if groups >= needed:
        return ""
    return (
        f"federation.defence {federation.defence.name} against {attackers} compares the sums of {needed} groups at least, and "
        f"a round has {groups}: set privacy.group to {SMALLEST} and ask {needed * SMALLEST} nodes, or leave one of the two out"
    )


def _conversion(settings: "Settings") -> Reasons:
    """Options of a conversion that data of this kind do not go through."""
    found, kind = Reasons(), settings.data.kind
    used = () if kind == CONVERTED else CONVERTERS[kind].options
    for key in CONVERSION:
        if key not in used:
            users = [name for name, spec in CONVERTERS.known().items() if key in spec.options]
            found[f"data.{key}"] = f"data of the kind {kind} do not use it, those of {_and(users)} do"
    return found


def _split(settings: "Settings") -> Reasons:
    """What only other splits use."""
    used, found = SPLITS.get(settings.data.split, ()), Reasons()
    for key in ("validation_from", "test_from", "validation_share", "test_share", "split_seed"):
        if key not in used:
            able = _and(name for name, keys in SPLITS.items() if key in keys)
            found[f"data.{key}"] = f"data.split {settings.data.split} does not use it, {able} would"
    return found


def _groups(settings: "Settings") -> Reasons:
    """Groups that the strategy does not read."""
    name, found = settings.strategy.name, Reasons()
    for group in sorted((VIEWS_GROUPS | TOWER_GROUPS) - settings.strategy_spec.groups):
        users = _and(one for one, spec in STRATEGIES.known().items() if group in spec.groups)
        found[group] = f"strategy {name} does not use it, {users} do"
    return found


def _spectral_start(settings: "Settings") -> Reasons:
    views, found = settings.views, Reasons()
    if not views.spectral_rounds and not views.start_from:
        keys = ("views.spectral_scale", "views.unseen_scale")
        found |= dict.fromkeys(keys, "it is for views.spectral_rounds above 0, or views.start_from")
    if not views.spectral_rounds and not views.fold_in:
        found["views.spectral_min_people"] = "it is for views.spectral_rounds above 0, or views.fold_in"
    if (views.spectral_rounds or views.start_from) and views.modalities == ():
        found["views.unseen_scale"] = "new items are placed by what they show, and views.modalities is empty"
    return found


def _start(settings: "Settings") -> Reasons:
    """Sizes of what is not there, or is overwritten."""
    views, found = settings.views, Reasons()
    history = BACKBONES[settings.local.backbone.name].history
    if views.modalities == ():
        found["views.content_scale"] = "it is for modalities, and views.modalities is empty"
    elif views.spectral_rounds or views.start_from:
        found["views.content_scale"] = (
            "the start (views.spectral_rounds or start_from) sets the size of all projections"
        )
    if not views.item_ids and not history:
        able = _and(name for name, spec in BACKBONES.known().items() if spec.history)
        found["views.id_scale"] = f"it is for item embeddings: with views.item_ids, or the backbone {able}"
    if not views.item_ids and not views.spectral_rounds and not views.start_from:
        found["views.id_dim"] = "it is for views.item_ids"
    return found


def _facets(settings: "Settings") -> Reasons:
    """Gates of blocks that nobody finds, and constants of gates that there are not."""
    views, local, found = settings.views, settings.local, Reasons()
    if views.facets < 2:
        found |= dict.fromkeys(("local.gate", "views.facet_steps"), "it is for views.facets above 1")
    if views.facets < 2 or local.gate != "softmax":
        found["local.gate_sharpness"] = "it is for local.gate softmax"
    return found


def _people_groups(settings: "Settings") -> Reasons:
    """How people are divided, where they are not."""
    groups, found = settings.local.groups, Reasons()
    if not groups.count:
        keys = ("by", "after", "rank", "smallest", "lloyd_rounds")
        return dict.fromkeys((f"local.groups.{key}" for key in keys), "it is for local.groups.count above 0")
    if not groups.by_sums:
        found["local.groups.lloyd_rounds"] = "it is for local.groups.by states or mixture"
    return found


def _head(settings: "Settings") -> Reasons:
    """The rate of a head that nobody shares."""
    backbone = settings.local.backbone
    if BACKBONES[backbone.name].shared(settings.views.dim, backbone) or settings.local.groups.count:
        return {}
    able = _and(name for name, spec in BACKBONES.known().items() if spec.shared is not nothing)
    return {"server.head_learning_rate": f"backbone {backbone.name} shares no head, {able} do"}


def _objective(settings: "Settings") -> Reasons:
    """What parts of a loss need that weigh nothing in it."""
    loss, found = settings.local.loss, Reasons()
    if isinstance(loss, WPCLSettings):
        if not loss.penalty:
            keys = ("penalty_slope", "hold_strong")
            found |= dict.fromkeys((f"local.loss.{key}" for key in keys), "it is for local.loss.penalty above 0")
        if not loss.relation:
            keys = ("relation_temperature", "guide")
            found |= dict.fromkeys((f"local.loss.{key}" for key in keys), "it is for local.loss.relation above 0")
        if not loss.penalty and not loss.relation:
            found["local.loss.drawn_items"] = "nothing is compared: local.loss.penalty and relation are 0"
    return found


def _history(settings: "Settings") -> Reasons:
    """What changes the history that is read, where nothing reads it, and how views are weighed, where there is one."""
    local, found = settings.local, Reasons()
    routed = _several_views(settings)
    if local.route == "uniform" and not routed:
        found["local.route"] = "there is a single view: nothing is weighed"
    if local.prior and (local.route == "uniform" or not routed):
        found["local.prior"] = "it is for several views that a router weighs (local.route history)"
    elif local.prior and settings.privacy.noise_multiplier:
        found["local.prior"] = (
            "it takes a sum of people's that privacy.noise_multiplier does not noise, and none is asked for"
        )
    if not (routed and local.route == "history") and not getattr(local.backbone, "private_vector", True):
        why = "nothing private is learnt: there is no router (local.route history, of several views), nor a private_vector"
        found |= {f"local.{key}": why for key in ("learning_rate", "optimizer", "weight_decay")}
    if BACKBONES[local.backbone.name].reads_history or (routed and local.route == "history"):
        return found
    readers = _and(name for name, spec in BACKBONES.known().items() if spec.reads_history)
    why = f"nothing reads the history: the router does where there are several views, and the backbones {readers} do"
    return found | {f"local.{key}": why for key in ("recency", "history_mask") if getattr(local, key)}


def _wire(settings: "Settings") -> Reasons:
    """What shortens the gradients of several views, where there is one."""
    return (
        {} if _several_views(settings) else {"wire.explained": "there is a single view: its gradient is all there is"}
    )


def _privacy(settings: "Settings") -> Reasons:
    """How noise is added and counted, where there is none."""
    found, privacy = Reasons(), settings.privacy
    if not privacy.noise_multiplier:
        keys = ("noise", "noise_share", "delta", "max_epsilon")
        found |= dict.fromkeys((f"privacy.{key}" for key in keys), "it is for privacy.noise_multiplier above 0")
    elif privacy.noise == "local":
        found["privacy.noise_share"] = "it is for privacy.noise distributed: each person's own noise is enough for them"
    return found


def _questions(settings: "Settings") -> Reasons:
    """What only concerns people and their events, or only questions."""
    people, questions = "devices that answer questions", "only devices that answer questions (data.kind questions)"
    if settings.asks_questions:
        keys = ["fraction", "data.split", "data.cold_items", "data.cold_users"]
        keys += [f"evaluation.{key}" for key in ("ks", "patience", "history_at_test", "sampled_candidates")]
        return dict.fromkeys(keys, f"{people} do not use it")
    keys = ["steps", "batch", "stream", "questions", "signature.every", "signature.of"]
    keys += ["method.gate_by_instruction", "method.branch_dropout"] if settings.mosaic.pq is not None else []
    return {f"mosaic.{key}": f"{questions} use it" for key in keys}


def _adapters(settings: "Settings") -> Reasons:
    """Bounds on what is not sent."""
    found = Reasons()
    if not settings.strategy_spec.has_views:
        found["federation.largest_gradient"] = (
            f"strategy {settings.strategy.name} sends no gradients: see mosaic.largest"
        )
    if not settings.strategy_spec.defended:
        able = _and(name for name, spec in STRATEGIES.known().items() if spec.defended)
        found["federation.defence"] = f"strategy {settings.strategy.name} has no gradients to defend, {able} have"
    return found | _places(settings)


def _places(settings: "Settings") -> Reasons:
    """What concerns P and Q, likeness and what is sent, for methods that have none of it."""
    mosaic, found = settings.mosaic, Reasons()
    method, pq = mosaic.method.name, mosaic.pq
    if mosaic.method_spec.shares == "nothing":
        found["mosaic.largest"] = f"method {method} sends nothing"
    if mosaic.method_spec.shares != "relevant":
        found["mosaic.signature"] = f"method {method} does not weigh by likeness"
    if pq is None or not pq.blocks:
        why = (
            f"method {method} has no P and Q" if pq is None else "no layer carries P and Q with mosaic.method.blocks 0"
        )
        found |= {"mosaic.share": why, "mosaic.alignment": why}
        if pq is not None:
            keys = ("union", "queries_and_keys", "alignment")
            found |= dict.fromkeys((f"mosaic.method.{key}" for key in keys), why)
    elif pq.alignment != "paper":
        found["mosaic.alignment.orthogonality"] = "it is for mosaic.method.alignment paper"
    if pq is not None and pq.gate == "none":
        keys = ("gate_per", "gate_start", "branch_dropout")
        found |= dict.fromkeys((f"mosaic.method.{key}" for key in keys), "branches are never mixed with gate none")
    if pq is not None and pq.alignment == "random":
        found["mosaic.alignment"] = "it is for towers that are aligned, and mosaic.method.alignment is random"
    elif pq is not None and settings.in_words:
        found["mosaic.alignment"] = "models are aligned on the titles and texts of the items"
    return found


RULES: tuple[Callable[["Settings"], Reasons], ...] = (
    _conversion,
    _split,
    _groups,
    _spectral_start,
    _start,
    _facets,
    _people_groups,
    _head,
    _objective,
    _history,
    _wire,
    _privacy,
    _questions,
    _adapters,
)


def _several_views(settings: "Settings") -> bool:
    """Whether there is more than one view, as far as settings tell: a catalogue may have any number of modalities."""
    views = settings.views
    if views.single and views.modalities is None:
        return True
    shown = len(views.modalities or ()) + views.item_ids if views.single else 0
    return len(views.operators) + shown + settings.strategy_spec.has_towers > 1


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
