"""Where tensors are computed: CPU or CUDA."""

import torch

from common.errors import ConfigError


def resolve_device(wanted: str) -> torch.device:
    """Turn auto, cpu or cuda into a device. Raises `ConfigError` when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device: cuda was asked for, but this machine's torch sees no CUDA device; use auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
