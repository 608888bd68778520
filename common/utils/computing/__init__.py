"""How numbers are computed on the machine at hand."""

from typing import Literal

Precision = Literal["float32", "bfloat16", "auto"]
"""Of training's matrix products."""
