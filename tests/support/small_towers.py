"""Small encoders with random weights, as transformers and open_clip read them."""

import json
from pathlib import Path

import torch

from tessera.common.utils.torchvision_operators import define_missing_operators

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def tiny_text_tower(folder: Path, width: int = 16, layers: int = 2, heads: int = 2, spread: float = 0.3) -> Path:
    """A BERT of a few thousand weights that spells words out."""
    define_missing_operators()
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * width, max_position_embeddings=64, initializer_range=spread,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def tiny_picture_tower(folder: Path, kind: str = "vit", width: int = 16) -> Path:
    """A vision transformer, or a convolutional network, of a few thousand weights for pictures of 16 by 16."""
    define_missing_operators()
    from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    if kind == "vit":
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width, image_size=16,
            patch_size=8, initializer_range=0.3,
        )  # fmt: skip
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, width], depths=[1, 1])).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, width: int = 16) -> str:
    """An open_clip model with random weights, by the name that settings have: open_clip:MODEL:CHECKPOINT."""
    define_missing_operators()
    import open_clip

    folder.mkdir(parents=True)
    config = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "layers": 2, "heads": 2},
    }
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    torch.save(model.state_dict(), folder / "weights.pt")
    return f"open_clip:tiny-clip:{folder / 'weights.pt'}"
