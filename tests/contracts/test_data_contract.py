"""Every converter and every encoder of the registries, those of installed packages too, is held to its contract."""

from pathlib import Path

from tessera.common.encoders import Encoder, make_encoder
from tessera.common.encoders.towers import KINDS, encoder_path, save_encoder
from tessera.common.registry.converters import CONVERTERS
from tessera.common.registry.encoders import ENCODERS, HUGGING_FACE, OPEN_CLIP
from tessera.common.towers.transformer import SIZES
from tessera.testing.data_tools import ConverterContract, EncoderContract
from tests.support.small_towers import tiny_text_tower


class Encoders(EncoderContract):
    """Towers are saved first, as they begin."""

    def make(self, folder: Path) -> Encoder:
        if self.name == HUGGING_FACE:
            return make_encoder(str(tiny_text_tower(folder)))
        if "towers" not in ENCODERS[self.name].options:
            return make_encoder(self.name)
        for kind, tower in KINDS.items():
            save_encoder(tower(SIZES[self.name]), encoder_path(folder, self.name, kind), {})
        return make_encoder(self.name, towers=folder, device="cpu")


for converter in CONVERTERS:
    name = f"TestConverter{converter.title()}"
    globals()[name] = type(name, (ConverterContract,), {"name": converter})
for encoder in ENCODERS:
    if encoder != OPEN_CLIP:
        name = f"TestEncoder{encoder.title()}"
        globals()[name] = type(name, (Encoders,), {"name": encoder})
