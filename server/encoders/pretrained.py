"""Adapts a pretrained text encoder itself, which reads the items' texts anew in every round: by LoRA or by IA3, through PEFT.

x -> x + (tower(text) - tower_0(text)) / s, where tower_0 is the encoder as it was and s the scale by which features were
standardised. So features may come from another run of the encoder, over longer texts, and the start is exact.

Texts go through the encoder some at a time, and their activations are computed again on the way back (gradient checkpointing):
memory does not grow with the catalogue.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.content_encoders import IA3Settings, LoRASettings, PretrainedSettings
from tessera.common.towers.pretrained import TextTower, Tokens, load_text_tower
from tessera.common.utils import counter_rng
from tessera.common.utils.torchvision_operators import define_missing_operators
from tessera.server.encoders.base import ContentEncoder, ContentInputs
from tessera.server.encoders.bottleneck import Bottleneck

CHUNK = 64
"""Texts that go through the encoder at once."""


def lora(settings: LoRASettings, inputs: ContentInputs) -> ContentEncoder:
    """Low-rank changes of chosen linear maps (Hu et al. 2022), with B zero at the start."""
    define_missing_operators()  # PEFT imports torchvision
    from peft import LoraConfig

    layers = {"layers_to_transform": list(settings.layers)} if settings.layers else {}
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, target_modules=settings.targets or None, **layers
    )
    return _adapted(settings, inputs, config)


def ia3(settings: IA3Settings, inputs: ContentInputs) -> ContentEncoder:
    """One factor for each channel of keys, values and the feed-forward layer's input (Liu et al. 2022), all 1 at the start."""
    define_missing_operators()
    from peft import IA3Config

    config = IA3Config(target_modules=settings.targets or None, feedforward_modules=settings.feedforward or None)
    return _adapted(settings, inputs, config)


def _adapted(settings: PretrainedSettings, inputs: ContentInputs, config: Any) -> ContentEncoder:
    """A modality without texts gets a bottleneck: its encoder is not at hand."""
    return Pretrained(settings, inputs, config) if inputs.texts else Bottleneck(settings.beside, inputs)


class Pretrained(ContentEncoder):
    """A text encoder under an adapter of PEFT's. Raises `DataError` where its vectors are of another width than the features,
    `ConfigError` where there is nothing in it that the adapter's targets name."""

    rows: Tensor

    def __init__(self, settings: PretrainedSettings, inputs: ContentInputs, config: Any) -> None:
        from peft import inject_adapter_in_model

        super().__init__(settings, inputs)
        tower, texts, self.scale = load_text_tower(settings.tower), inputs.texts or (), inputs.scale
        if tower.width != inputs.features.shape[1]:
            raise DataError(
                f"{settings.tower} makes {tower.width} numbers of a text, the features of modality {inputs.modality!r} have "
                f"{inputs.features.shape[1]}: encode the dataset with it (tessera data encode --model {settings.tower})"
            )
        rows = sorted((row for row, text in enumerate(texts) if text), key=lambda row: len(texts[row]))
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self._tokens = tower.tokens([texts[row] for row in rows], settings.tokens)
        self._drawn = max(1, round(settings.share * len(rows)))
        if self._drawn < len(rows):
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.salt = int(torch.randint(2**31, ()))
        _fill_targets(config, tower)
        try:
            inject_adapter_in_model(config, tower.model)
        except ValueError as error:  # for targets that are not there
            raise ConfigError(f"views.encoder: {settings.tower} cannot be adapted: {error}") from None
        trained = {name: value for name, value in tower.named_parameters() if value.requires_grad}
        self.adapter = nn.ParameterDict({name.replace(".", "/"): value for name, value in trained.items()})
        self._tower = (tower,)  # in a tuple: what is frozen in it is no state of this module
        self._before: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Add to the features what the encoder says otherwise than at the start."""
        if self._before is None:
            with torch.no_grad(), _unadapted(self._tower[0]):
                self._before = self._read_all(features.device)
        now = self._read_some(features.device) if torch.is_grad_enabled() else self._read_all(features.device)
        return features.index_add(0, self.rows, ((now - self._before) / self.scale).to(features.dtype))

    def stepped(self) -> None:
        """Draw other items for the next step."""
        if "steps" in self._buffers:
            self.get_buffer("steps").add_(1)

    def drawn(self) -> Tensor:
        """Places of the texts that the coming step's gradient goes through, in their order, [n_drawn]: each text is as likely
        as any other. By the run's seed and the number of steps alone, so that a resumed run draws the same."""
        places = torch.arange(len(self._tokens))
        if self._drawn == len(places):
            return places
        draws = counter_rng.uniform(counter_rng.key("drawn share", self.salt, int(self.get_buffer("steps"))), places)
        return draws.argsort(stable=True)[: self._drawn].sort().values

    def _read_some(self, device: torch.device) -> Tensor:
        """Read all texts, of which the gradient reaches the drawn ones, as many times as large as they are fewer."""
        drawn = self.drawn()
        if len(drawn) == len(self._tokens):
            return self._read_all(device)
        with torch.no_grad():
            everything = self._read_all(device)
        part = torch.cat([self._read(chunk.to(device)) for chunk in self._tokens.take(drawn).chunks(CHUNK)])
        return everything.index_add(0, drawn.to(device), (part - part.detach()) * (len(everything) / len(drawn)))

    def _read_all(self, device: torch.device) -> Tensor:
        return torch.cat([self._read(chunk.to(device)) for chunk in self._tokens.chunks(CHUNK)])

    def _read(self, tokens: Tokens) -> Tensor:
        read: Tensor = (
            checkpoint(self._tower[0], tokens, use_reentrant=False)
            if torch.is_grad_enabled()
            else self._tower[0](tokens)
        )
        return read

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move what is frozen along; elsewhere the same texts are other numbers, in their last digits."""
        self._before = None
        self._tower[0]._apply(fn)  # type: ignore[no-untyped-call]
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


@contextmanager
def _unadapted(tower: TextTower) -> Iterator[None]:
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


def _fill_targets(config: Any, tower: TextTower) -> None:
    """PEFT's usual targets, where none are named. Raises `ConfigError` for a kind of model that it does not know."""
    from peft.utils import constants

    kind = str(tower.model.config.model_type)  # type: ignore[union-attr]
    if config.target_modules is None:
        known = getattr(constants, f"TRANSFORMERS_MODELS_TO_{config.peft_type.value}_TARGET_MODULES_MAPPING")
        if kind not in known:
            raise ConfigError(f"views.encoder: name the layers of a {kind} that are adapted, as targets")
        config.target_modules = set(known[kind])
    if getattr(config, "feedforward_modules", ()) is None:
        config.feedforward_modules = set(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, ()))
