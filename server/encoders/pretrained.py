"""Adapts a pretrained encoder itself, which reads the items' texts, or looks at their pictures, anew in every round: by LoRA or
by IA3, through PEFT.

x -> x + (tower(content) - tower_0(content)) / s, where tower_0 is the encoder as it was and s the scale by which features were
standardised. So features may come from another run of the encoder, over longer texts, and the start is exact.

Contents go through the encoder some at a time, and activations are computed again on the way back (gradient checkpointing).
What the blocks below the first adapted one make of them is kept, see `trunk`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.content_encoders import IA3Settings, LoRASettings, PretrainedSettings
from tessera.common.registry.encoders import HUGGING_FACE_PREFIX, OPEN_CLIP
from tessera.common.towers.pretrained import Tower, load_tower, reads_pictures
from tessera.common.utils import counter_rng
from tessera.common.utils.torchvision_operators import define_missing_operators
from tessera.server.encoders.base import ContentEncoder, ContentInputs
from tessera.server.encoders.bottleneck import Bottleneck
from tessera.server.encoders.trunk import Trunk

CHUNK = 64
"""Texts or pictures that go through the encoder at once."""
USUAL = {
    "LORA": (("q_proj", "v_proj"), ("query", "value"), ("qkv",)),
    "IA3": (("k_proj", "v_proj", "c_fc"), ("k_proj", "v_proj", "fc1"), ("key", "value")),
}
"""Names of layers that are adapted in models that PEFT does not know, the first that are all there."""
FEEDFORWARD = ("c_fc", "fc1")
"""Of these the ones of which IA3 scales the input."""
BLOCK = re.compile(r"\.(\d+)\.")
"""The number of a block within a module's name."""


def lora(settings: LoRASettings, inputs: ContentInputs) -> ContentEncoder:
    """Low-rank changes of chosen linear maps (Hu et al. 2022), with B zero at the start."""
    define_missing_operators()  # PEFT imports torchvision
    from peft import LoraConfig

    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=settings.targets or None)
    return _adapted(settings, inputs, config)


def ia3(settings: IA3Settings, inputs: ContentInputs) -> ContentEncoder:
    """One factor for each channel of keys, values and the feed-forward layer's input (Liu et al. 2022), all 1 at the start."""
    define_missing_operators()
    from peft import IA3Config

    config = IA3Config(target_modules=settings.targets or None, feedforward_modules=settings.feedforward or None)
    return _adapted(settings, inputs, config)


def _adapted(settings: PretrainedSettings, inputs: ContentInputs, config: Any) -> ContentEncoder:
    """A modality that neither encoder reads, or of which nothing but features is at hand, gets a bottleneck."""
    tower = _tower_for(settings, inputs.modality) if any(inputs.contents) else None
    return Pretrained(settings, inputs, config, tower) if tower else Bottleneck(settings.beside, inputs)


def _tower_for(settings: PretrainedSettings, modality: str) -> Tower | None:
    """The encoder that reads a modality, of the two that settings may name. Raises `DataError`."""
    for name in (one.removeprefix(HUGGING_FACE_PREFIX) for one in (settings.tower, settings.image_tower) if one):
        if name.startswith(f"{OPEN_CLIP}:"):
            if modality in ("image", "text"):
                from tessera.common.towers.open_clip import load_clip_tower

                return load_clip_tower(name, modality)
        elif modality == ("image" if reads_pictures(name) else "text"):
            return load_tower(name)
    return None


class Pretrained(ContentEncoder):
    """An encoder under an adapter of PEFT's. Raises `DataError` where its vectors are of another width than the features,
    `ConfigError` where there is nothing in it that the adapter's targets name."""

    rows: Tensor

    def __init__(self, settings: PretrainedSettings, inputs: ContentInputs, config: Any, tower: Tower) -> None:
        from peft import inject_adapter_in_model

        super().__init__(settings, inputs)
        self.scale = inputs.scale
        if tower.width != inputs.features.shape[1]:
            raise DataError(
                f"{tower.name} makes {tower.width} numbers of each {tower.reads}, the features of modality "
                f"{inputs.modality!r} have {inputs.features.shape[1]}: encode the dataset with it (tessera data encode --model)"
            )
        there = {row: content for row, content in enumerate(inputs.contents) if content}
        rows = sorted(there, key=lambda row: len(str(there[row])))  # texts of one length together
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self._contents = tower.inputs([there[row] for row in rows], settings.tokens)
        self._drawn = max(1, round(settings.share * len(rows)))
        if self._drawn < len(rows):
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.salt = int(torch.randint(2**31, ()))
        _fill_targets(config, tower, settings.layers)
        try:
            inject_adapter_in_model(config, tower.model)
        except ValueError as error:  # for targets that are not there
            raise ConfigError(f"views.encoder: {tower.name} cannot be adapted: {error}") from None
        trained = {name: value for name, value in tower.named_parameters() if value.requires_grad}
        self.adapter = nn.ParameterDict({name.replace(".", "/"): value for name, value in trained.items()})
        self._tower = (tower,)  # in a tuple: what is frozen in it is no state of this module
        self._trunk = Trunk.of(tower, len(rows))
        self._before: Tensor | None = None
        self._read_last: tuple[tuple[int, ...], Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Add to the features what the encoder says otherwise than at the start."""
        if self._before is None:
            with torch.no_grad(), _unadapted(self._tower[0]):
                self._before = self._read_all(features.device)
        now = self._read_some(features.device) if torch.is_grad_enabled() else self._as_they_are(features.device)
        return features.index_add(0, self.rows, ((now - self._before) / self.scale).to(features.dtype))

    def stepped(self) -> None:
        """Draw other items for the next step."""
        if "steps" in self._buffers:
            self.get_buffer("steps").add_(1)

    def drawn(self) -> Tensor:
        """Places of the contents that the coming step's gradient goes through, in their order, [n_drawn]: each is as likely as
        any other. By the run's seed and the number of steps alone, so that a resumed run draws the same."""
        places = torch.arange(len(self._contents))
        if self._drawn == len(places):
            return places
        draws = counter_rng.uniform(counter_rng.key("drawn share", self.salt, int(self.get_buffer("steps"))), places)
        return draws.argsort(stable=True)[: self._drawn].sort().values

    def _read_some(self, device: torch.device) -> Tensor:
        """Read all contents, of which the gradient reaches the drawn ones, as many times as large as they are fewer."""
        drawn = self.drawn()
        if len(drawn) == len(self._contents):
            return self._read_all(device)
        everything = self._as_they_are(device)
        part = self._read_places(drawn, device)
        return everything.index_add(0, drawn.to(device), (part - part.detach()) * (len(everything) / len(drawn)))

    @torch.no_grad()
    def _as_they_are(self, device: torch.device) -> Tensor:
        """What the encoder says of all contents, once between two steps."""
        versions = tuple(value._version for value in self.adapter.values())
        if self._read_last is None or self._read_last[0] != versions:
            self._read_last = versions, self._read_all(device)
        return self._read_last[1]

    def _read_all(self, device: torch.device) -> Tensor:
        return self._read_places(torch.arange(len(self._contents)), device)

    def _read_places(self, places: Tensor, device: torch.device) -> Tensor:
        chunks = zip(torch.split(places, CHUNK), self._contents.take(places).chunks(CHUNK), strict=True)
        return torch.cat([self._read(some, chunk.to(device)) for some, chunk in chunks])

    def _read(self, places: Tensor, inputs: Any) -> Tensor:
        read: Tensor = (
            checkpoint(self._trunk.read, places, inputs, use_reentrant=False)
            if torch.is_grad_enabled()
            else self._trunk.read(places, inputs)
        )
        return read

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move what is frozen along; elsewhere the same texts are other numbers, in their last digits."""
        self._before = self._read_last = None
        self._trunk.clear()
        self._tower[0]._apply(fn)  # type: ignore[no-untyped-call]
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


@contextmanager
def _unadapted(tower: Tower) -> Iterator[None]:
    """The encoder as it was, until the end of the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in tower.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def _fill_targets(config: Any, tower: Tower, layers: Sequence[int]) -> None:
    """PEFT's usual targets, or ours, where none are named, in the blocks `layers`. Raises `ConfigError` for a kind of model
    that neither knows, or for blocks that it does not have."""
    from peft.utils import constants

    kind = str(getattr(getattr(tower.model, "config", None), "model_type", tower.name.split(":")[0]))
    method = config.peft_type.value
    there = {name.rpartition(".")[2] for name, module in tower.model.named_modules() if isinstance(module, nn.Linear)}
    if config.target_modules is None:
        known = getattr(constants, f"TRANSFORMERS_MODELS_TO_{method}_TARGET_MODULES_MAPPING").get(kind)
        known = known or next((names for names in USUAL[method] if there.issuperset(names)), None)
        if not known:
            raise ConfigError(f"views.encoder: name the layers of a {kind} that are adapted, as targets")
        config.target_modules = set(known)
    if getattr(config, "feedforward_modules", ()) is None:
        known = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, FEEDFORWARD)
        config.feedforward_modules = {name for name in known if name in config.target_modules}
    if layers:
        config.target_modules = _within(tower, config.target_modules, layers)
    if layers and getattr(config, "feedforward_modules", ()):
        config.feedforward_modules = _within(tower, config.feedforward_modules, layers)


def _within(tower: Tower, targets: Iterable[str], layers: Sequence[int]) -> set[str]:
    """Full names of the modules that `targets` name, in the blocks `layers`. Raises `ConfigError` where there are none."""
    found = {
        name
        for name, _ in tower.model.named_modules()
        if any(name.endswith(f".{target}") for target in targets)
        and (block := BLOCK.search(name))
        and int(block[1]) in layers
    }
    if not found:
        raise ConfigError(
            f"views.encoder.layers: {tower.name} has none of {', '.join(targets)} in blocks {list(layers)}"
        )
    return found
