"""Runs read back: ``result.json``, ``config.yaml`` and ``metrics.jsonl`` of run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream import documents
from slipstream.errors import DataError
from slipstream.report.log import RunLog, read_log

RESULT, CONFIG, METRICS = "result.json", "config.yaml", "metrics.jsonl"
Figure = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Point(_Shape):
    samples: Figure
    auc: Share | None = None


class _Bin(_Shape):
    samples: int
    predicted: Share
    observed: Share


class _Bucket(_Shape):
    auc: Share | None = None


class _Named(_Shape):
    name: str


class _Result(_Shape):
    """What is relied on of ``result.json``; other versions may have written more."""

    policy: str | _Named
    auc: Share | None
    log_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    calibration: Figure | None = None
    share_of_inputs_trained: Figure | None = None
    share_of_row_updates_skipped: Figure | None = None
    learning_curve: list[_Point] | None = None
    by_popularity: dict[str, _Bucket] | None = None
    reliability: list[_Bin] | None = None
    phase_seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    machine: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    commit: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Run:
    """One training, finished or not."""

    name: str
    """Name of the run folder, made unique by its parents' names."""
    result: Mapping[str, Any]
    """The contents of ``result.json``; nothing while the training is not over."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration, nested."""
    log: RunLog = field(default_factory=RunLog)
    """What the training noted on its way."""

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return bool(self.result)

    @property
    def policy(self) -> str:
        """Name of the skipping policy."""
        return policy_name((self.result or self.config).get("policy") or "none")

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
    return [_finished(path, name) for path, name in zip(paths, names, strict=True)]


def open_run(folder: str | Path, log: RunLog | None = None) -> Run:
    """Read a run that need not be over.

    Args:
        folder: The run folder.
        log: What its ``metrics.jsonl`` holds, if that was read already.

    Raises:
        DataError: It is no run folder, or a file in it cannot be read.
    """
    folder = Path(folder)
    (name,) = _distinct_names([folder])
    if not any((folder / file).exists() for file in (RESULT, CONFIG, METRICS)):
        what = "no such folder" if not folder.exists() else "is no run folder"
        raise DataError(what, file=folder, remedy="name a folder given to `slipstream train --out`")
    result = _result(folder / RESULT) if (folder / RESULT).exists() else {}
    return Run(name, result, _config(folder / CONFIG), read_log(folder / METRICS) if log is None else log)


def _finished(folder: Path, name: str) -> Run:
    file = folder / RESULT
    if not file.exists():
        raise DataError("no finished run", file=file, remedy="name a folder given to `slipstream train --out`")
    return Run(name, _result(file), _config(folder / CONFIG), read_log(folder / METRICS))


def _result(file: Path) -> dict[str, Any]:
    result = documents.read_json(file)
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = f"lacks {where}" if problem["type"] == "missing" else f"is no result ({where}: {problem['msg']})"
        raise DataError(said, file=file, remedy="train the run again") from error
    return result


def _config(file: Path) -> dict[str, Any]:
    config = documents.read_yaml(file) if file.exists() else None
    if config is not None and not isinstance(config, dict):
        remedy = "take the file away to go on without settings"
        raise DataError("holds no settings by name", file=file, remedy=remedy)
    return config or {}


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)) and depth < max(map(len, parts)):
        depth += 1
    # A folder's name need not be text.
    names = ["/".join(part[-depth:]) for part in parts]
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def baseline(runs: Sequence[Run]) -> Run:
    """The run others are measured against: the first one that skips nothing, else the first."""
    return next((run for run in runs if run.policy == "none"), runs[0])


def unlike(runs: Sequence[Run]) -> str:
    """Why differences between the runs mean nothing, as the end of a sentence on them; empty where they may."""
    if len({run.result["dataset"] for run in runs if run.result.get("dataset")}) > 1:
        return "are of different data"
    scored = {f"{run.result.get('mode')} {run.result.get('samples_scored')}" for run in runs if run.result}
    return "were scored on different samples (mode, holdout or max_samples)" if len(scored) > 1 else ""


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ, by dotted name, with one value per run (``–`` where it has none)."""
    flat = [dict(settings(run)) for run in runs]
    keys = sorted({key for own in flat for key in own} - {"out"})
    rows = [(key, [own.get(key, "–") for own in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def settings(run: Run) -> list[tuple[str, str]]:
    """All settings of a run, by dotted name."""
    return _flatten(run.config)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs
