"""Runs read back for comparison: ``result.json`` and ``config.yaml`` of run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from slipstream.errors import DataError

REQUIRED = ("policy", "auc", "log_loss", "seconds", "samples_per_second")


@dataclass(frozen=True)
class Run:
    """One finished training."""

    name: str
    """Name of the run folder, made unique by its parents' names."""
    result: Mapping[str, Any]
    """The contents of ``result.json``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, nested."""

    @property
    def policy(self) -> str:
        """Name of the skipping policy."""
        return policy_name(self.result["policy"])

    def number(self, key: str) -> float | None:
        """A figure of the result, None where the run has none; dots lead into its parts, as in ``ranking.ndcg``."""
        value: Any = self.result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) else None


class Measure(NamedTuple):
    """The figure by which runs are compared."""

    key: str
    """Its place in a result."""
    title: str
    """Its name."""


def measure(runs: Sequence[Run]) -> Measure:
    """NDCG of the ranked lists where every run has them, else AUC."""
    lengths = {run.number("ranking.k") for run in runs}
    length = lengths.pop() if len(lengths) == 1 else None
    return Measure("auc", "AUC") if length is None else Measure("ranking.ndcg", f"NDCG@{length:.0f}")


def policy_name(policy: Any) -> str:
    """The name in a policy's configuration, which may be the name alone."""
    return str(policy["name"]) if isinstance(policy, Mapping) else str(policy)


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read finished runs.

    Args:
        folders: Run folders, each written by ``slipstream train --out``; the order is kept.

    Raises:
        DataError: If a folder holds no result, or one that lacks a figure.
    """
    paths = [Path(folder) for folder in folders]
    names = _distinct_names(paths)
    return [_load(path, name) for path, name in zip(paths, names, strict=True)]


def _load(folder: Path, name: str) -> Run:
    file = folder / "result.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            "no finished run", file=file, remedy="name a folder given to `slipstream train --out`"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"not a result ({error})", file=file) from error
    missing = [key for key in REQUIRED if not isinstance(result, dict) or key not in result]
    if missing:
        raise DataError(f"lacks {', '.join(missing)}", file=file, remedy="train the run again")
    config_file = folder / "config.yaml"
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8")) or {} if config_file.exists() else {}
    except yaml.YAMLError as error:
        raise DataError(f"not YAML ({str(error).splitlines()[0]})", file=config_file) from error
    return Run(name=name, result=result, config=config)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def baseline(runs: Sequence[Run]) -> Run:
    """The run others are measured against: the first one that skips nothing, else the first."""
    return next((run for run in runs if run.policy == "none"), runs[0])


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ, by dotted name, with one value per run (``–`` where it has none)."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = sorted({key for settings in flat for key in settings} - {"out"})
    rows = [(key, [settings.get(key, "–") for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs
