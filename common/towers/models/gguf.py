"""Turns a GGUF file, in which a language model is quantised, into a folder that transformers and Tessera read."""

from importlib.util import find_spec
from pathlib import Path

import torch

from tessera.common.errors import ConfigError, DataError
from tessera.common.utils.torchvision_operators import define_missing_operators

SUFFIX = ".gguf"


def convert_gguf(file: Path, target: Path) -> None:
    """Write config, weights in bfloat16 and tokenizer of the model in `file` to the folder `target`: seconds to minutes.

    Raises `ConfigError` where the package gguf is missing, `DataError` for a file that cannot be read as a language model.
    """
    if find_spec("gguf") is None:
        raise ConfigError(f"{file} is read with the package gguf, which is not installed: pip install 'tessera[words]'")
    define_missing_operators()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever its readers raise
        reason = str(error).strip().splitlines()
        raise DataError(f"no language model can be read from {file}: {reason[0] if reason else error!r}") from None
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        config.pop(name, None)
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
