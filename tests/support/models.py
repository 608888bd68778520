"""Small models with random weights as transformers and open_clip write them, and a federation that is asked in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.common.config.loading import overlaid, parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.text_questions import TextQuestions
from tessera.common.utils.torchvision_operators import define_missing_operators
from tessera.deploy.executors.run import make_job
from tessera.deploy.job import Job

COLOURS = ("red", "blue", "green", "grey")
SHAPES = ("ring", "cone", "disc", "cube")
N_ITEMS = 40


def language_model(folder: Path, family: str = "llama", width: int = 32, layers: int = 4, seed: int = 0) -> Path:
    """A language model of bytes: a Llama, a Qwen2, a SmolLM3 or, for pictures too, a Llava around a Llama."""
    define_missing_operators()
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        SmolLM3Config,
        SmolLM3ForCausalLM,
    )

    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 2 * width, "initializer_range": 0.1, "eos_token_id": 256,
        "pad_token_id": 256, "bos_token_id": None, "max_position_embeddings": 512,
    }  # fmt: skip
    if family == "llava":
        from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

        seen = CLIPVisionConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        )
        model: Any = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=seen, text_config=LlamaConfig(**common), image_token_index=300)
        )
    else:
        kinds = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
        }
        config, of = kinds[family]
        model = of(config(**common))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bare.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<end>")


def text_dataset(folder: Path, n_clients: int = 3, written: bool = False) -> Path:
    """A dataset of questions in words about coloured shapes; clients are asked about different attributes."""
    ids = tuple(f"i{number:02d}" for number in range(N_ITEMS))
    colours = [COLOURS[number % 4] for number in range(N_ITEMS)]
    shapes = [SHAPES[(number // 4) % 4] for number in range(N_ITEMS)]
    titles = tuple(
        f"{colour} {shape} {number}" for number, (colour, shape) in enumerate(zip(colours, shapes, strict=True))
    )
    texts = tuple(f"a {colour} thing in the shape of a {shape}" for colour, shape in zip(colours, shapes, strict=True))
    Catalogue(ids, titles, texts, ("",) * N_ITEMS).save(folder)
    (folder / "dataset.json").write_text("{}")
    for client in range(n_clients):
        lines: list[tuple[str, str, Sequence[str], str]] = []
        for number in range(N_ITEMS):
            lines.append((f"colour-{client}", f"colour of {titles[number]}", COLOURS, colours[number]))
            lines.append((f"shape-{client}", f"shape of {titles[number]}", SHAPES[: 2 + client % 3], shapes[number]))
            if written:
                lines.append((f"tell-{client}", f"tell of {ids[number]}", (), texts[number]))
        kept = [line for line in lines if not line[2] or line[3] in line[2]]
        order = np.random.default_rng(client).permutation(len(kept))
        whole = TextQuestions.of([kept[place] for place in order])
        rows = torch.arange(len(whole))
        whole.take(rows[8:]).save(folder / "questions" / f"client-{client:02d}" / "train.jsonl")
        whole.take(rows[:8]).save(folder / "questions" / f"client-{client:02d}" / "test.jsonl")
    return folder


def text_settings(models: dict[str, str], **changes: Any) -> Settings:
    """A few quick rounds with these models as classes."""
    mosaic = {
        "classes": list(models), "models": models, "rank": 4, "steps": 4, "batch": 4,
        "method": {"name": "fedmosaic", "blocks": 2},
    }  # fmt: skip
    changes = overlaid({"mosaic": mosaic, "evaluation": {"every": 1, "baselines": False}}, changes)
    data = {"folder": "words", "kind": "text-questions"}
    content = {"name": "words", "data": data, "strategy": "fedmosaic", "rounds": 2, "device": "cpu"}
    return parse_settings(content | changes, "test")


def text_job(dataset: Path, run_dir: Path, models: dict[str, str], nodes: int = 3, **changes: Any) -> Job:
    """A job on a dataset of questions in words."""
    federation = {"nodes": nodes, **changes.pop("federation", {})}
    return make_job(text_settings(models, federation=federation, **changes), dataset, run_dir, False, overwrite=False)
