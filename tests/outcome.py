"""What a training leaves that a resumed one must leave too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def outcome(run: Path) -> Any:
    """Weights, metrics and result of a run folder, but for times."""
    metrics = [_without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {name: value.numpy().tobytes() for name, value in load_file(run / "model.safetensors").items()}
    return weights, metrics, _without_times(json.loads((run / "result.json").read_text()))


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        timed = ("seconds", "samples_per_second")
        return {key: _without_times(value) for key, value in tree.items() if not key.endswith(timed)}
    return [_without_times(entry) for entry in tree] if isinstance(tree, list) else tree
