"""The GPU back end: hands tensors' addresses to the Triton kernels. float32, bfloat16 and float16 tables.

Nothing here waits for the device. Shapes of all launches follow from the shapes of the inputs alone, so a call can be
captured in a CUDA graph, once the caches below are warm; the step's settings are read from device memory, and
:func:`write_settings` sets them anew before a replay. What a captured update keeps from its capture: the scales, and
everything that a :class:`~slipstream.kernels.types.TableState` points to. What a call counted and measured stays on
the device until somebody reads it (:class:`~slipstream.kernels.cuda_counts.DeviceCounts`).

Results are the same bits in every run. Sums are in sample order up to ``CHUNK`` lookups of a row, and beyond that in
chunks (see :mod:`slipstream.kernels.cuda_dedup`).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Kernels are launched by subscripts and keywords that pyright cannot follow.
# pyright: reportMissingTypeStubs=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportUnknownLambdaType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
import triton.language as tl
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels import (
    cuda_count,
    cuda_dedup,
    cuda_errors,
    cuda_pool,
    cuda_scout,
    cuda_tables,
    cuda_triples,
    cuda_update,
    reference_triples,
)
from slipstream.kernels.cuda_counts import DeviceCounts
from slipstream.kernels.cuda_tables import Tables, device_integers, prepared
from slipstream.kernels.signal import corrections
from slipstream.kernels.types import (
    DrawnLookups,
    Lookups,
    RowGradients,
    Rule,
    TableSet,
    TableState,
    UpdateSettings,
)

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Element types of tables (and of gradients), and Triton's names of them."""
TILE = 2048
"""Elements of the tile that a program pools."""
UPDATE_TILE = 1024
"""Elements of the tile that a program updates: it holds the row, its state and its gradient."""
SAMPLES = 512
"""Samples of which a program makes keys."""

__all__ = ["count", "count_marked", "hardest", "hash_lookups", "pool", "row_update", "scout", "write_settings"]


Call = TypeVar("Call", bound=Callable[..., Any])


def _beside(tensor_of: Callable[..., Tensor]) -> Callable[[Call], Call]:
    """Has a function launch its kernels on the GPU of a tensor among its arguments, whichever is the current one."""

    def decorate(function: Call) -> Call:
        @wraps(function)
        def run(*arguments: Any, **others: Any) -> Any:
            with torch.cuda.device_of(tensor_of(*arguments)):
                return function(*arguments, **others)

        return cast(Call, run)

    return decorate


def _power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def _integer(ids: Tensor) -> Tensor:
    return ids if ids.dtype in (torch.int32, torch.int64) else ids.to(torch.int64)


def _together(device: torch.device, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise UnsupportedOption(
                f"the {name} are on {tensor.device}, the tables on {device}",
                remedy=f"send the batch to the model's device: batch.to({str(device)!r})",
            )


def _whole(lookups: Lookups | DrawnLookups) -> Lookups:
    if isinstance(lookups, DrawnLookups):
        raise UnsupportedOption("lookups drawn on the CPU cannot update tables on a GPU", remedy="keep tables in place")
    return lookups


def _weights_of(lookups: Lookups) -> Tensor | None:
    """The factors of lookups, float32 and contiguous.

    Raises:
        UnsupportedOption: There is not one for each id.
    """
    if lookups.sample_weights is None:
        return None
    weights = lookups.sample_weights.detach().to(torch.float32).contiguous()
    if weights.numel() != lookups.ids.numel():
        raise UnsupportedOption(f"{weights.numel()} sample weights for {lookups.ids.numel()} ids")
    return weights


@lru_cache(maxsize=512)
def _features(
    addresses: tuple[int, ...], rows: tuple[int, ...], paddings: tuple[int, ...], device: torch.device
) -> Tensor:
    """int64 [F, 3] on the device, kept: a lookup's tables are the same in every step."""
    return device_integers([list(fields) for fields in zip(addresses, rows, paddings, strict=True)], device)


@lru_cache(maxsize=512)
def _kept_integers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return device_integers(list(numbers), device)


@lru_cache(maxsize=64)
def _kept_corrections(beta1: float, beta2: float, device: torch.device) -> Tensor:
    return corrections(beta1, beta2).to(device)


@_beside(lambda weights, *_: weights[0])
def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`slipstream.kernels.reference.pool`; ids outside their table give zeros and are raised later."""
    first, size, count = weights[0], lookups.batch_size, lookups.num_features
    dim = first.shape[1]
    out = torch.empty(size, count, dim, dtype=out_dtype, device=first.device)
    if out.numel() == 0:
        return out
    _together(first.device, ids=lookups.ids, offsets=lookups.offsets, sample_weights=lookups.sample_weights)
    for weight in weights:
        if weight.dtype != first.dtype or weight.shape[1] != dim or not weight.is_contiguous():
            raise UnsupportedOption(
                f"tables of one call are contiguous with rows of {dim} {first.dtype}, one has rows of "
                f"{weight.shape[1]} {weight.dtype} with strides {weight.stride()}",
                remedy="look tables of another kind up apart, and set weight.data = weight.data.contiguous()",
            )
    addresses = tuple(weight.data_ptr() for weight in weights)
    padding = lookups.padding_rows()
    paddings = (padding,) * count if isinstance(padding, int) else tuple(padding)
    features = _features(addresses, tuple(len(weight) for weight in weights), paddings, first.device)
    ids, flag = _integer(lookups.ids), cuda_errors.flag(first.device)
    block_d = min(_power_of_2(dim), 256)
    block = max(TILE // block_d, 1)
    itemsize = first.element_size()
    shape: dict[str, Any] = {
        "D": dim,
        "TYPE": TYPES[first.dtype],
        "SIZE": itemsize,
        "ALIGNED": dim * itemsize % 16 == 0 and all(address % 16 == 0 for address in addresses),
        "BLOCK_D": block_d,
    }
    columns = _tiles(dim, block_d)
    if lookups.offsets is None:
        cuda_pool.pool_one_hot[(_tiles(size * count, block), columns)](
            features, ids, out, flag, size, count, *ids.stride(), **shape, BLOCK=block
        )
    else:
        ids, offsets, factors = ids.contiguous(), _integer(lookups.offsets).contiguous(), _weights_of(lookups)
        block = max(block // 4, 1)  # bags of several lookups keep a program busy
        cuda_pool.pool_bags[(_tiles(size * count, block), columns)](
            features, ids, offsets, ids if factors is None else factors, out, flag, size, count, ids.numel(),
            WEIGHTED=factors is not None, MEAN=lookups.mean, **shape, BLOCK=block,
        )  # fmt: skip
    cuda_errors.after_call(first.device)
    return out


@_beside(lambda tables, *_: tables[0].weight)
def row_update(
    tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
) -> DeviceCounts:
    """See :func:`slipstream.kernels.reference.row_update`; lookups outside their table are left out, raised later."""
    device = tables[0].weight.device
    cuda_errors.poll(device)
    state = prepared(tables)
    gradients = [block for block in gradients if block.grad.numel() and max(block.tables) >= 0]
    sizes = [block.lookups.ids.numel() for block in gradients]
    total = sum(sizes)
    counts = torch.zeros(len(tables), cuda_dedup.COUNTS, dtype=torch.int64, device=device)
    if total == 0:
        return DeviceCounts(counts, tables)
    cuda_tables.write_settings(state, settings)
    found = _keys(state, gradients, sizes, counts)
    narrow = total < 1 << 31
    keys, order = torch.sort(found.keys, stable=True)
    block = 1024
    heads = torch.empty(total, dtype=torch.int32 if narrow else torch.int64, device=device)
    cuda_dedup.mark_heads[(_tiles(total, block),)](keys, heads, total, state.num_rows, BLOCK=block)
    ranks = torch.cumsum(heads, 0, dtype=heads.dtype)
    starts = torch.empty(total + 1, dtype=heads.dtype, device=device)
    cuda_dedup.find_starts[(_tiles(total, block),)](keys, ranks, starts, total, state.num_rows, BLOCK=block)
    dim, block_d = state.dim, _power_of_2(state.dim)
    chunks = _tiles(total, cuda_dedup.CHUNK)
    partials = torch.empty(2 * chunks, dim, dtype=torch.float32, device=device)
    factors = found.sources if found.factors is None else found.factors
    shape: dict[str, Any] = {"D": dim, "FACTORS": found.factors is not None, "BLOCK_D": block_d}
    cuda_dedup.sum_long_segments[(chunks,)](
        ranks, starts, order, found.sources, factors, partials, total, **shape,
        TYPE=found.type, ALIGNED=found.aligned, BLOCK=min(max(TILE // block_d, 1), cuda_dedup.CHUNK),
    )  # fmt: skip
    norms = torch.empty(total if settings.rule == Rule.NORM else 0, dtype=torch.float64, device=device)
    signal = state.measures and settings.rule != Rule.NORM
    young = state.settings
    if signal and settings.rule == Rule.ADAM:
        young = _kept_corrections(settings.beta1, settings.beta2, device)
    block = max(UPDATE_TILE // block_d, 1)
    cuda_update.update_rows[(_tiles(total, block),)](
        state.records, state.scales(tables), state.settings, young, keys, ranks, starts, order, found.sources, factors,
        partials, norms, total, **shape,
        T=len(tables), RULE=int(settings.rule), DECOUPLED=settings.decoupled, DECAY=settings.weight_decay != 0.0,
        SIGNAL=signal, TYPE=TYPES[state.dtype], SIZE=state.itemsize, GRAD=found.type, ALIGNED=state.aligned,
        GRAD_ALIGNED=found.aligned, BLOCK=block, BLOCK_T=_power_of_2(len(tables)),
    )  # fmt: skip
    if isinstance(tables, TableSet):
        tables.totals = counts.clone() if tables.totals is None else tables.totals.add_(counts)
    cuda_errors.after_call(device)
    return DeviceCounts(counts, tables, keys, ranks, state.bases, norms)


def write_settings(tables: Sequence[TableState], settings: UpdateSettings) -> None:
    """Sets the step's numbers that a captured update of these tables (a TableSet) reads, before the graph is replayed.

    The rule, the kind of weight decay and whether there is any stay as they were captured.
    """
    cuda_tables.write_settings(prepared(tables), settings)


class _Keyed(NamedTuple):
    """The lookups of an update, N."""

    keys: Tensor
    """int32 or int64 [N]."""
    sources: Tensor
    """int64 [N], addresses of their gradients."""
    factors: Tensor | None
    """float32 [N], or None when all are 1."""
    type: Any
    """Triton's name of the gradients' type."""
    aligned: bool
    """Whether every gradient begins at a multiple of 16 bytes."""
    alive: list[Tensor]
    """What the addresses lead to."""


def _keys(state: Tables, gradients: Sequence[RowGradients], sizes: Sequence[int], counts: Tensor) -> _Keyed:
    """Makes the keys; counts lookups and skipped ones.

    Lookups are numbered backward pass after backward pass, feature after feature, sample after sample.
    """
    device, total, none = counts.device, sum(sizes), state.num_rows
    grads: list[Tensor] = []
    every = [_whole(block.lookups) for block in gradients]
    same = {block.grad.dtype for block in gradients}
    dtype = next(iter(same)) if len(same) == 1 and same <= TYPES.keys() else torch.float32
    for block, lookups in zip(gradients, every, strict=True):
        _together(device, ids=lookups.ids, offsets=lookups.offsets, gradients=block.grad)
        grad = block.grad.to(dtype)
        grads.append(grad if grad.stride(2) == 1 else grad.contiguous())
    itemsize = grads[0].element_size()
    aligned = all(
        grad.data_ptr() % 16 == 0 and grad.stride(0) * itemsize % 16 == 0 and grad.stride(1) * itemsize % 16 == 0
        for grad in grads
    )
    bags = any(lookups.offsets is not None for lookups in every)
    key_type = torch.int32 if none < (1 << 31) - 1 else torch.int64
    # A bag may leave lookups out.
    keys = torch.full((total,), none, dtype=key_type, device=device)
    sources = torch.empty(total, dtype=torch.int64, device=device)
    weighted = any(lookups.sample_weights is not None or lookups.mean for lookups in every)
    factors = torch.ones(total, dtype=torch.float32, device=device) if weighted or bags else None
    flag, begin = cuda_errors.flag(device), 0
    for block, lookups, grad, size in zip(gradients, every, grads, sizes, strict=True):
        ids, samples, features = _integer(lookups.ids), lookups.batch_size, lookups.num_features
        padding = lookups.padding_rows()
        paddings = (padding,) * features if isinstance(padding, int) else tuple(padding)
        where = (_kept_integers(tuple(block.tables), device), _kept_integers(paddings, device))
        strides = grad.stride(0) * itemsize, grad.stride(1) * itemsize
        mine, own = keys[begin : begin + size], sources[begin : begin + size]
        if lookups.offsets is None:
            cuda_dedup.keys_one_hot[(_tiles(samples, SAMPLES), features)](
                state.records, state.settings, *where, ids, grad.data_ptr(), mine, own, counts, flag,
                samples, *ids.stride(), *strides, none, BLOCK=SAMPLES,
            )  # fmt: skip
        else:
            assert factors is not None
            ids, offsets, weights = ids.contiguous(), _integer(lookups.offsets).contiguous(), _weights_of(lookups)
            cuda_dedup.keys_bags[(_tiles(samples, SAMPLES // 4), features)](
                state.records, state.settings, *where, ids, offsets, ids if weights is None else weights,
                grad.data_ptr(), mine, own, factors[begin : begin + size], counts, flag,
                samples, ids.numel(), *strides, none,
                WEIGHTED=weights is not None, MEAN=lookups.mean, BLOCK=SAMPLES // 4,
            )  # fmt: skip
        begin += size
    return _Keyed(keys, sources, factors, TYPES[dtype], aligned, grads)


@_beside(lambda counts, *_: counts)
def count(counts: Tensor, ids: Tensor, amount: float) -> None:
    """See :func:`slipstream.kernels.reference.count`; float32 or int32 counts, ids outside raise later."""
    flat = _integer(ids).reshape(-1).contiguous()
    _together(counts.device, ids=flat)
    if flat.numel():
        cuda_count.count_rows[(_tiles(flat.numel(), 1024),)](
            counts, flat, cuda_errors.flag(counts.device), flat.numel(), len(counts), float(amount), BLOCK=1024
        )
    cuda_errors.after_call(counts.device)


@_beside(lambda _, ids, *__: ids)
def count_marked(marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """See :func:`slipstream.kernels.reference.count_marked`; ids outside count as not marked and raise later."""
    size, features = ids.shape
    out = torch.zeros(size, dtype=torch.int32, device=ids.device)
    if size == 0:
        return out
    _together(ids.device, marks=marks[0] if marks else None)
    kept = [mark.contiguous() for mark in marks]
    records = device_integers([[mark.data_ptr(), len(mark)] for mark in kept] or [[0, 0]], ids.device)
    flag, columns = cuda_errors.flag(ids.device), _integer(ids)
    if features:
        block_f = _power_of_2(features)
        block = max(1024 // block_f, 1)
        cuda_count.count_marked_one_hot[(_tiles(size, block),)](
            records, columns, out, flag, size, features, *columns.stride(), BLOCK=block, BLOCK_F=block_f
        )
    for place, (values, offsets) in enumerate(bags, start=features):
        cuda_count.count_marked_bags[(_tiles(size, 128),)](
            records, _integer(values).contiguous(), _integer(offsets).contiguous(), out, flag, size, values.numel(),
            place, BLOCK=128,
        )  # fmt: skip
    cuda_errors.after_call(ids.device)
    return out


@_beside(lambda user_weight, *_: user_weight)
def hardest(user_weight: Tensor, item_weight: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """See :func:`slipstream.kernels.reference_triples.hardest`; ids outside their table raise later."""
    reference_triples.check_candidates(user_weight, item_weight, users, items)
    device, dim = user_weight.device, user_weight.shape[1]
    _together(device, items=items, users=users)
    size, candidates = items.shape
    out = torch.empty(size, dtype=torch.int64, device=device)
    if size:
        weights = user_weight.detach().contiguous(), item_weight.detach().contiguous()
        ids = _integer(items)
        block_d, itemsize = min(_power_of_2(dim), 256), user_weight.element_size()
        block = max(TILE // block_d, 1)
        cuda_triples.hardest[(_tiles(size, block),)](
            *(weight.data_ptr() for weight in weights), _integer(users).contiguous(), ids, out,
            cuda_errors.flag(device), size, candidates, *(len(weight) for weight in weights), *ids.stride(),
            D=dim, TYPE=TYPES[user_weight.dtype], SIZE=itemsize,
            ALIGNED=dim * itemsize % 16 == 0 and all(weight.data_ptr() % 16 == 0 for weight in weights),
            BLOCK=block, BLOCK_D=block_d,
        )  # fmt: skip
    cuda_errors.after_call(device)
    return out


@_beside(lambda ids, *_: ids)
def hash_lookups(ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], bits: int) -> tuple[Tensor, Tensor]:
    """See :func:`slipstream.kernels.scout.hash_lookups`; each bag's offsets cover its values."""
    size, features = ids.shape
    columns = _integer(ids)
    starts = torch.zeros(size + 1, dtype=torch.int64, device=ids.device)
    lengths = torch.full((size,), features, dtype=torch.int64, device=ids.device)
    wide = [(_integer(values).contiguous(), offsets.to(torch.int64).contiguous()) for values, offsets in bags]
    for _, offsets in wide:
        lengths += offsets.diff()
    torch.cumsum(lengths, 0, out=starts[1:])
    total = size * features + sum(values.numel() for values, _ in wide)
    slots = torch.empty(total, dtype=torch.int32, device=ids.device)
    if size and features:
        cuda_scout.hash_columns[(_tiles(size * features, 1024),)](
            slots, starts, columns, size, features, *columns.stride(), bits, BLOCK=1024
        )
    ends = starts[:-1] + features
    for place, (values, offsets) in enumerate(wide, start=features):
        if size:
            cuda_scout.hash_bag[(_tiles(size, 128),)](slots, ends, place, values, offsets, size, bits, BLOCK=128)
    return slots, starts


@_beside(lambda table, *_: table)
def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor | None, lr: float
) -> tuple[Tensor, Tensor, float]:
    """See :func:`slipstream.kernels.reference.scout`; the host waits for the loss."""
    probability, seen = torch.empty_like(labels), torch.empty_like(labels)
    size, columns = dense.shape
    bias = table.shape[0] - columns - 1
    loss = 0.0
    if size:
        learn = torch.ones_like(labels, dtype=torch.uint8) if learn is None else learn.to(torch.uint8)
        dense, labels = dense.contiguous(), labels.contiguous()
        cuda_scout.predict[(_tiles(size, 128),)](
            table, slots, starts, dense, probability, seen, size, columns, bias, BLOCK=128
        )
        cuda_scout.learn[(1,)](
            table, slots, starts, dense, labels, learn, probability, size, columns, bias, lr,
            num_warps=1,
        )  # fmt: skip
        clamped = probability.clamp(1e-7, 1.0 - 1e-7)
        loss = float(torch.nn.functional.binary_cross_entropy(clamped, labels, reduction="sum"))
    return probability, seen, loss
