"""What a training leaves that a resumed one must leave too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def outcome(run: Path) -> Any:
    """Model, metrics and result of a run folder, but for times."""
    metrics = [_without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    model = (run / "model.safetensors").read_bytes()
    return model, metrics, _without_times(json.loads((run / "result.json").read_text()))


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        timed = ("seconds", "samples_per_second")
        return {key: _without_times(value) for key, value in tree.items() if not key.endswith(timed)}
    return [_without_times(entry) for entry in tree] if isinstance(tree, list) else tree
