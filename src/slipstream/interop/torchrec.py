"""Checkpoints of TorchRec's sharded models, with the policy's state, that any number of ranks can go on from.

Tables and their fused optimizer's state are written by every rank, each its shards, with torch's distributed
checkpoints (DCP), which cut them anew where another number of ranks, or another plan, reads them.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from slipstream import distributed
from slipstream.data.atomic import replace_folder
from slipstream.errors import CheckpointError, ConfigError, DataError, NotInstalled, OutputError
from slipstream.training.checkpoint.tree import join_tree, split_tree

try:
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # pyright: ignore[reportMissingImports]
        SplitTableBatchedEmbeddingBagsCodegen,
    )
except ImportError as error:
    raise NotInstalled("slipstream.interop.torchrec", "slipstream-rec[torchrec]") from error

_TREE = "extra_tree"
_TENSOR = "extra_tensor"
_STEPS = "fbgemm_steps"
_DAMAGED = (ArithmeticError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError)
"""What reading DCP's index raises where it is damaged, beside what pickle itself says."""


def save_checkpoint(path: str | Path, model: nn.Module, extra: Mapping[str, Any]) -> None:
    """Writes a checkpoint; every rank must call it, and see the folder.

    ::

        save_checkpoint("runs/step-100", model, {
            "optimizer": optimizer.state_dict(), "skipper": skipper.state_dict(), "batches": batches_done})

    It is written under another name and renamed, so a folder of this name holds a whole checkpoint.

    Args:
        path: The folder; replaced if it is there.
        model: What ``DistributedModelParallel`` made.
        extra: What is the same on all ranks: the dense part's optimizer, the skipper's state, the place in the data.
            Nested dicts, lists and tuples of tensors, numbers, texts and None.

    Raises:
        ConfigError: ``extra`` is not the same on all ranks: its tensors differ in name, dtype or shape.
        OutputError: It cannot be written; on all ranks, whichever of them could not.
    """
    path, flat = Path(path), _flat(extra)
    _check_same(flat)
    if dist.get_rank() == 0:  # the others write once they have the token
        _remove_partials(path)
    token = torch.tensor([secrets.randbits(32)])
    dist.broadcast(token, src=0)
    partial = path.with_name(f".{path.name}.partial-{int(token):x}")
    steps = torch.tensor([max((int(fbgemm.iter_cpu) for fbgemm in _fbgemm(model)), default=0)])
    dist.all_reduce(steps, dist.ReduceOp.MAX)  # a rank may hold no table
    reason = ""
    try:
        save({**_sharded(model), **flat, _STEPS: steps}, checkpoint_id=partial)
        if dist.get_rank() == 0:
            replace_folder(partial, path)
    except CheckpointException as error:  # DCP raises it on all ranks
        reason = _first_reason(error)
    except (OSError, DataError) as error:
        reason = str(error)
    if _anyone(bool(reason)):  # nobody waits for a rank that gave up
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(path, OSError(reason or "another rank could not"))


def load_checkpoint(path: str | Path, model: nn.Module) -> Any:
    """Reads a checkpoint into a model of the same tables, on any number of ranks; every rank must call it.

    The folder is one that torch's DCP reads: load only what you trust.

    Args:
        path: The folder.
        model: What ``DistributedModelParallel`` made; its fused optimizer's state is read too.

    Returns:
        What was given as ``extra``.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another model.
    """
    path = Path(path)
    sharded, stored = _sharded(model), {}
    refused: CheckpointError | None = None
    try:
        stored = _index(path, sharded)
    except CheckpointError as error:
        refused = error
    if _anyone(refused is not None):
        raise refused or CheckpointError(f"{path}: another rank cannot read it", remedy="have all ranks see the folder")
    extra: dict[str, Tensor] = {}
    for name, entry in stored.items():
        if name.startswith((_TREE, _TENSOR)) and isinstance(entry, TensorStorageMetadata):
            extra[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    steps = torch.zeros(1, dtype=torch.int64)
    state = {**sharded, **extra, _STEPS: steps}
    try:
        load(state, checkpoint_id=path)
    except CheckpointException as error:
        raise CheckpointError(f"{path}: cannot be loaded ({_first_reason(error)})") from error
    model.load_state_dict(
        {name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")}
    )
    for fbgemm in _fbgemm(model):
        fbgemm.set_optimizer_step(int(steps))
        fbgemm.iter_cpu.copy_(steps)
    tree = json.loads(extra[_TREE].numpy().tobytes())
    named = {name.removeprefix(f"{_TENSOR}/"): value for name, value in extra.items() if name != _TREE}
    return join_tree(tree, named)


def _index(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, by name.

    Raises:
        CheckpointError: It cannot be read, or lacks something.
    """
    if not (path / ".metadata").is_file():
        raise CheckpointError(
            f"{path}: holds no checkpoint", remedy="name a folder that save_checkpoint has written, and all ranks see"
        )
    try:
        stored = dict(FileSystemReader(path).read_metadata().state_dict_metadata)
    except (*_DAMAGED, UnpicklingError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its index (.metadata) is damaged ({type(error).__name__})", remedy="go on from another checkpoint"
        ) from error
    missing = sorted(wanted.keys() - stored.keys())
    if missing or _TREE not in stored:
        lacks = missing[0] if missing else _TREE
        raise CheckpointError(f"{path}: has no {lacks}", remedy="load it into the model that was saved")
    return stored


def _anyone(failed: bool) -> bool:
    """Whether any rank has failed; every rank must call it."""
    count = torch.tensor([int(failed)])
    dist.all_reduce(count)
    return bool(count.item())


def _remove_partials(path: Path) -> None:
    """Removes what a save of this name that was killed has left; what cannot be removed does no harm."""
    for entry in path.parent.glob(".*.partial-*"):
        if re.fullmatch(rf"\.{re.escape(path.name)}\.partial-[0-9a-f]+", entry.name) and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)


def _check_same(flat: Mapping[str, Tensor]) -> None:
    """Raise ConfigError where a rank has other tensors, of which DCP would keep one rank's."""
    kinds = sorted((name, str(t.dtype), list(t.shape)) for name, t in flat.items() if name != _TREE)
    digest = bytearray(sha256(json.dumps(kinds).encode()).digest())
    if distributed.same_everywhere({"extra": torch.frombuffer(digest, dtype=torch.uint8)}):
        raise ConfigError(
            "extra holds other tensors on some ranks, and a checkpoint keeps it once",
            remedy="give what is the same on all; a policy that gates rows of shards is each rank's own to save",
        )


def _first_reason(error: CheckpointException) -> str:
    """What went wrong on the first rank that failed."""
    return str(next(iter(error.failures.values()), (error,))[0]).splitlines()[0]


def _sharded(model: Any) -> dict[str, Any]:
    """The model's parameters, and the fused optimizers' states, by name: shards that DCP reads into in place."""
    found = {f"model/{name}": value for name, value in model.state_dict().items()}
    for key, states in model.fused_optimizer.state_dict()["state"].items():
        found |= {f"fused/{key}/{name}": value for name, value in states.items()}
    return found


def kernels(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that look rows up for a sharded model's tables; TorchRec keeps them out of ``modules()``."""
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):
            yield from lookup.modules()


def _fbgemm(model: nn.Module) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    """FBGEMM's modules, which count the optimizer's steps (Adam's corrections need them) outside of its state."""
    return [module for module in kernels(model) if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]


def _flat(extra: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tree as JSON in bytes, and its tensors by name: DCP pickles whatever is no tensor."""
    tree, tensors = split_tree(extra)
    text = torch.frombuffer(bytearray(json.dumps(tree).encode()), dtype=torch.uint8).clone()
    return {_TREE: text, **{f"{_TENSOR}/{name}": value for name, value in tensors.items()}}
