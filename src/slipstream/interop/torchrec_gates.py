"""Row gates on TorchRec's tables: lookups of frozen rows take a path without backward.

FBGEMM updates rows inside its backward pass and knows no gates. But it updates only what was looked up: so lookups of
rows whose gate is shut are taken out of the batch that it sees, pooled by themselves without a gradient, and added to
its output. For sums that is the same forward pass, and nothing more is sent between ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from slipstream.errors import NotInstalled, UnsupportedOption
from slipstream.interop.torchrec import kernels
from slipstream.kernels import registry
from slipstream.policies import PSSE
from slipstream.policies.base import OPEN, Gated

try:
    from fbgemm_gpu.split_embedding_configs import SparseType  # pyright: ignore[reportMissingImports]
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (  # pyright: ignore[reportMissingImports]
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # pyright: ignore[reportMissingImports]
        SplitTableBatchedEmbeddingBagsCodegen,
    )
    from torchrec.distributed.batched_embedding_kernel import (  # pyright: ignore[reportMissingImports]
        BaseBatchedEmbedding,
        BaseBatchedEmbeddingBag,
    )
except ImportError as error:
    raise NotInstalled("slipstream.interop.torchrec_gates", "slipstream-rec[torchrec]") from error

_STREAM = 0x7EC
"""Mixed into the seed of the gates' draws."""


class GatedShard:
    """The rows of a TorchRec table that this rank holds, as policies see a table.

    Attributes:
        name: The table's.
        first_row: Row of the table that is row 0 here.
        gate: uint8 [R], or None while every row is open.
        lookups: Lookups that reached these rows in training, of all ranks' samples.
        skipped: Those of them that FBGEMM did not see.
        listeners: Called with (shard, ids int64 [n]) in every forward pass of a training step.
    """

    def __init__(self, name: str, first_row: int, weight: Tensor) -> None:
        self.name, self.first_row, self.weight = name, first_row, weight
        self.gate: Tensor | None = None
        self.lookups = self.skipped = 0
        self.listeners: list[Callable[[Any, Tensor], None]] = []

    @property
    def num_rows(self) -> int:
        """R."""
        return self.weight.shape[0]

    def open_gate(self) -> Tensor:
        """The gate, made (all rows open) if there is none yet."""
        if self.gate is None:
            self.gate = torch.full((self.num_rows,), OPEN, dtype=torch.uint8, device=self.weight.device)
        return self.gate

    def shut(self, ids: Tensor, seed: int, step: int) -> Tensor | None:
        """Which of these lookups, int64 [n], the gates keep from an update in this step, bool [n]; None for none."""
        if self.gate is None:
            return None
        gates = self.gate[ids]
        if bool((gates == OPEN).all()):
            return None
        key = (seed ^ _STREAM) + (zlib.crc32(self.name.encode()) << 16)
        # By the row's number in the whole table: the same wherever the row lies.
        draws = registry.hash_uniform((ids + self.first_row).contiguous(), key, step)
        return (gates != OPEN) & (draws * 256 >= gates)


class RowGates:
    """Gates for the rows of a sharded model's tables, on this rank's shards.

    ::

        gates = RowGates(model)     # model = DistributedModelParallel(...)
        skipper = sl.Skipper(model, gates.together(PSSE(0.9)), batch_size=1024, tables=gates.tables)

    A row policy decides on each rank about the rows that lie there; it sees all lookups of them, whichever rank's
    sample they came from. Input policies decide alike everywhere and do not need this.

    Args:
        model: What ``DistributedModelParallel`` made.
        seed: Key of the draws of gates between 0 and 255.

    Raises:
        UnsupportedOption: A table is pooled by mean inside FBGEMM or not at all, is cut by columns, is not float32, or
            is looked up by another kernel than FBGEMM's fused one; says which.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        self.seed = seed
        self.shards: dict[str, GatedShard] = {}
        found = [m for m in kernels(model) if isinstance(m, BaseBatchedEmbeddingBag | BaseBatchedEmbedding)]
        _refuse_alike(next((why for kernel in found if (why := _problem(kernel)) is not None), ""))
        for kernel in found:
            self._take_over(kernel)

    @property
    def tables(self) -> Mapping[str, Gated]:
        """The shards by table, or by table and first row where a table is cut."""
        return self.shards

    @staticmethod
    def together(policy: PSSE) -> PSSE:
        """Has the cut fall among the rows of all ranks: histograms of scores are added up at each decision (1.5 MB).

        Without it each rank keeps the share of its own rows' accesses.

        Raises:
            ConfigError: A setting of the policy needs all rows on one rank.
        """

        def reduce(array: npt.NDArray[Any]) -> None:
            dist.all_reduce(torch.from_numpy(array))

        policy.decide_over(reduce)
        return policy

    def _take_over(self, module: Any) -> None:
        fbgemm, configs = module.emb_module, module.config.embedding_tables
        shards: list[GatedShard] = []
        for config, weight in zip(configs, fbgemm.split_embedding_weights(), strict=True):
            metadata = config.local_metadata
            first = metadata.shard_offsets[0] if metadata is not None and metadata.shard_offsets else 0
            shard = GatedShard(config.name, first, weight.detach())
            cut = config.local_rows != config.num_embeddings
            self.shards[f"{config.name}[{first}]" if cut else config.name] = shard
            shards.append(shard)
        fbgemm.forward = _Split(fbgemm.forward, [shards[t] for t in fbgemm.feature_table_map], self.seed)  # type: ignore[method-assign]


def _problem(module: Any) -> str | None:
    """Why the tables of one of TorchRec's kernels cannot have gates, if so."""
    fbgemm, configs = module.emb_module, module.config.embedding_tables
    why = None
    if isinstance(module, BaseBatchedEmbedding):
        why = "is not pooled, and gates need sums"
    elif not isinstance(fbgemm, SplitTableBatchedEmbeddingBagsCodegen):
        why = f"is looked up by {type(fbgemm).__name__}, whose rows are not updated inside FBGEMM's backward"
    elif fbgemm.pooling_mode != PoolingMode.SUM:
        why = "is pooled by mean, which lookups taken out would change"
    elif fbgemm.weights_precision != SparseType.FP32:
        why = f"holds {fbgemm.weights_precision.name} numbers, and the path without backward reads float32"
    elif any(config.local_cols != config.embedding_dim for config in configs):
        why = "is cut by columns, so a row's gate would have to be the same on several ranks"
    return None if why is None else f"table {configs[0].name!r} {why}"


def _refuse_alike(problem: str) -> None:
    """Raise UnsupportedOption on all ranks if one of them has a problem with a table of its own."""
    mine = torch.frombuffer(bytearray(problem.encode()[:512].ljust(512)), dtype=torch.uint8)
    of_all = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, mine)
    for letters in of_all:
        if found := letters.numpy().tobytes().decode(errors="replace").strip():
            raise UnsupportedOption(
                f"{found}; it cannot have row gates",
                remedy="use PoolingType.SUM, float32, the fused kernel and table_wise or row_wise sharding, or skip "
                "inputs instead of rows",
            )


class _Lookups(NamedTuple):
    """Lookups of F features of B samples, as FBGEMM takes them."""

    ids: Tensor
    lengths: Tensor
    """int64 [F · B]."""
    weights: Tensor | None

    def of(self, chosen: Tensor) -> _Lookups:
        """Some of them, bool [n]."""
        places = torch.repeat_interleave(torch.arange(self.lengths.numel()), self.lengths)[chosen]
        lengths = torch.bincount(places, minlength=self.lengths.numel())
        return _Lookups(self.ids[chosen], lengths, None if self.weights is None else self.weights[chosen])

    def offsets(self, like: Tensor) -> Tensor:
        """[F · B + 1]."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)]).to(like.dtype)


class _Split:
    """FBGEMM's forward pass, with the lookups of shut rows taken out of it in training."""

    def __init__(self, forward: Callable[..., Tensor], shards: list[GatedShard], seed: int) -> None:
        self._forward, self._shards, self._seed = forward, shards, seed
        self._steps = 0

    def __call__(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **more: Any
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return self._forward(indices, offsets, per_sample_weights, **more)
        all_of_them = _Lookups(indices.long(), offsets.long().diff(), per_sample_weights)
        samples = all_of_them.lengths.numel() // len(self._shards)
        ends = offsets[::samples].tolist() if samples else [0] * (len(self._shards) + 1)
        shut = torch.zeros(indices.numel(), dtype=torch.bool, device=indices.device)
        for feature, shard in enumerate(self._shards):
            part = slice(int(ends[feature]), int(ends[feature + 1]))
            ids = all_of_them.ids[part]
            for listener in shard.listeners:
                listener(shard, ids)
            found = shard.shut(ids, self._seed, self._steps)
            shard.lookups += ids.numel()
            if found is not None:
                shut[part] = found
                shard.skipped += int(found.sum())
        self._steps += 1
        if not bool(shut.any()):
            return self._forward(indices, offsets, per_sample_weights, **more)
        live, frozen = all_of_them.of(~shut), all_of_them.of(shut)
        pooled = self._forward(live.ids.to(indices.dtype), live.offsets(offsets), live.weights, **more)
        with torch.no_grad():
            still = self._pooled(frozen, samples)
        return pooled + still.to(pooled.dtype)

    def _pooled(self, lookups: _Lookups, samples: int) -> Tensor:
        """Sums of rows, float32 [B, sum of the features' D], without a gradient."""
        parts: list[Tensor] = []
        lengths = lookups.lengths.split(samples)
        sizes = [int(own.sum()) for own in lengths]
        weights = [None] * len(sizes) if lookups.weights is None else lookups.weights.split(sizes)
        for shard, ids, own, by in zip(self._shards, lookups.ids.split(sizes), lengths, weights, strict=True):
            ends = torch.cat([own.new_zeros(1), own.cumsum(0)])
            parts.append(
                functional.embedding_bag(
                    ids, shard.weight, ends, mode="sum", per_sample_weights=by, include_last_offset=True
                )
            )
        return torch.cat(parts, dim=1)
