"""``--continue``: a finished training goes on with other data, the next hour or day, and with the rows that it adds.

What is carried on: weights, optimizer state, gates, signals and counts of the tables, and all that the policy knows.
The new training has its own schedule, position, metrics and result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.documents import read_json
from slipstream.embedding import tables
from slipstream.errors import CheckpointError, ConfigError, DataError
from slipstream.kernels import reference
from slipstream.staleness.growth import grow_rows
from slipstream.training.checkpoint.folder import CheckpointFolder
from slipstream.training.checkpoint.manifest import CheckpointManifest, encode_manifest
from slipstream.training.config import TrainConfig, load_config
from slipstream.training.loop import Trainer
from slipstream.training.run_folder import CONFIG, MODEL, RESULT
from slipstream.training.saved import read_wanted
from slipstream.training.state import check_optimizer, load_tables

OPEN = 255
_MUST_AGREE = ("model", "engine", "optimizer.name", "optimizer.dense_name", "optimizer.untouched", "policy.name")
_OF_POLICIES = tuple(f"policy.{name}" for name in ("policy", "inputs.name", "rows.name", "score", "scores", "mode"))
"""Settings of some policies that decide what is carried on; one that the policy does not have, or did not, agrees."""
_ABSENT = "(none)"


def continue_from(trainer: Trainer, run: Path) -> None:
    """Gives a new trainer what a finished run has learned.

    Args:
        trainer: Of the new data and configuration; not yet run.
        run: The run folder.

    Raises:
        ConfigError: The run's model, optimizer or policy is another one; other ranks have another run at this path.
        DataError: The new data was encoded otherwise than the run's, and does not extend its vocabulary.
        CheckpointError: The run holds no checkpoint of its end, or one that is not the state of such a training.
    """
    loaded = CheckpointFolder(run).newest()
    if loaded is None or not loaded.manifest.finished:
        raise CheckpointError(
            f"{run} holds no checkpoint of a finished training",
            remedy=f"finish it with --resume {run}" if loaded is not None else "train it with checkpoint.final=true",
        )
    if trainer.ranks is not None:  # each reads it on its own machine; the manifest has checksums of everything
        same = "copy one run to all machines, or name a folder that all see"
        trainer.ranks.check_same("runs to continue from", encode_manifest(loaded.manifest)[1], same)
    _check(loaded.manifest.config, trainer.config)
    read_wanted(run / MODEL).check(trainer.store)
    trainer.earlier_data = earlier_data(run, loaded.manifest)
    if trainer.ranks is not None:  # folders of earlier runs may be on one machine alone
        trainer.earlier_data = trainer.ranks.broadcast({"data": trainer.earlier_data})["data"]
    with loaded.taken_over():
        _take_over(trainer, loaded.state["trainer"], seen=trainer.store.fingerprint in trainer.earlier_data)


def earlier_data(run: Path, manifest: CheckpointManifest) -> list[str]:
    """Fingerprints of the data that a run, and those that it continues, were trained on.

    Args:
        run: Its folder.
        manifest: Of its last checkpoint, which lists what came before. Older ones do not: then as far as those runs'
            folders are found.
    """
    found, before = [str(manifest.data.get("fingerprint"))], manifest.config.get("continue_from")
    listed = manifest.data.get("earlier")
    if isinstance(listed, list):
        return [*found, *map(str, listed)]
    been = {run.resolve()}
    while isinstance(before, str) and Path(before).resolve() not in been:
        been.add(Path(before).resolve())
        try:
            result, config = read_json(Path(before) / RESULT), load_config(Path(before) / CONFIG)
        except (ConfigError, DataError):  # gone or damaged: of the rest nobody knows any more
            break
        found.append(str(result.get("dataset")) if isinstance(result, dict) else "")
        before = None if config.continue_from is None else str(config.continue_from)
    return found


def _take_over(trainer: Trainer, state: Mapping[str, Any], *, seen: bool) -> None:
    own = trainer.model.state_dict()
    trainer.model.load_state_dict(
        {
            name: torch.cat([value, own[name][len(value) :]]) if value.shape != own[name].shape else value
            for name, value in state["model"].items()
        }
    )
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        _load_optimizer(optimizer, saved)
        check_optimizer(optimizer)
    rows = {name: table.num_rows for name, table in tables(trainer.model).items()}
    grown = {name: _grown_table(entry, rows[name]) for name, entry in state["tables"].items()}
    if not trainer.skipper.policy.skips_rows:  # nobody would open them again
        grown = {name: {**entry, "gate": None} for name, entry in grown.items()}
    load_tables(trainer.model, grown)
    trainer.skipper.continue_from(state["skipper"], rows, seen=seen)


def _check(saved: Mapping[str, Any], config: TrainConfig) -> None:
    now = config.model_dump(mode="json")
    if config.row_cache_bytes is not None:
        raise ConfigError("cannot continue with tables in host memory", remedy="leave row_cache_bytes out")
    for path in (*_MUST_AGREE, *_OF_POLICIES):
        before, after = _setting(saved, path), _setting(now, path)
        if before != after and not (path in _OF_POLICIES and _ABSENT in (before, after)):
            raise ConfigError(
                f"cannot continue: {path} was {before!r}, now it is {after!r}", remedy="leave it as it was"
            )


def _setting(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """States alone: rates and other settings are those of the new configuration."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for position, values in saved["state"].items():
        rows = len(parameters[position]) if parameters[position].dim() else 0
        now = int(values["step"]) if "step" in values else 0
        state[position] = {
            name: grow_rows(value, rows, reference.wrap_step(now) if name == "last_step" else 0)
            if isinstance(value, Tensor) and value.dim() and len(value) < rows
            else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _grown_table(saved: Mapping[str, Any], rows: int) -> dict[str, Any]:
    fills = {"gate": OPEN, "signal": 0, "trail": 0}
    return {
        name: value if name not in fills or value is None else grow_rows(value, rows, fills[name])
        for name, value in saved.items()
    }
