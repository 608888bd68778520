"""A run's metrics as any other program reads them: one JSON object a line."""

import json
from pathlib import Path
from typing import Any


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of the metrics in the folder `run`, none where it has none yet."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
