"""Every kernel in plain PyTorch: slow, short, and the truth that the others are tested against.

Works for any device and any floating dtype.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import IndexOutOfRange
from slipstream.kernels.hashing import gate_draw
from slipstream.kernels.rounding import stochastic
from slipstream.kernels.signal import is_measured, measure
from slipstream.kernels.types import (
    DrawnLookups,
    Lookups,
    RowGradients,
    Rule,
    TableState,
    UpdateCounts,
    UpdateSettings,
)


def check_range(ids: Tensor, num_rows: int, feature: int) -> None:
    """Raise IndexOutOfRange unless all ids [N] are rows of the table that ``feature`` is looked up in."""
    bad = (ids < 0) | (ids >= num_rows)
    if bool(bad.any()):
        position = int(bad.nonzero()[0])
        raise IndexOutOfRange(
            f"feature {feature}: lookup {position} has id {int(ids[position])}, the table has {num_rows} rows",
            remedy="use ids from 0 to num_embeddings - 1",
        )


def feature_lookups(lookups: Lookups | DrawnLookups, feature: int) -> tuple[Tensor, Tensor, Tensor]:
    """One feature's lookups.

    Rows int64 [N], bag of each int64 [N], factor of each float64 [N]; padding is left out when there are offsets.
    """
    ids = lookups.ids
    if isinstance(lookups, DrawnLookups):
        own = slice(lookups.firsts[feature], lookups.firsts[feature] + lookups.counts[feature])
        return ids[own], lookups.samples[own], lookups.factors[own].double()
    if lookups.offsets is None:
        rows = ids[:, feature].to(torch.int64)
        return (
            rows,
            torch.arange(len(rows), device=ids.device),
            torch.ones(len(rows), dtype=torch.float64, device=ids.device),
        )
    size = lookups.batch_size
    offsets = lookups.offsets.to(torch.int64)[feature * size : (feature + 1) * size + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    rows = ids[first:last].to(torch.int64)
    bags = torch.repeat_interleave(torch.arange(size, device=ids.device), offsets.diff())
    factor = torch.ones(len(rows), dtype=torch.float64, device=ids.device)
    if lookups.sample_weights is not None:
        factor = lookups.sample_weights[first:last].double()
    used = rows != lookups.padding_of(feature)
    rows, bags, factor = rows[used], bags[used], factor[used]
    if lookups.mean:
        factor = factor / torch.bincount(bags, minlength=size).clamp(min=1)[bags]
    return rows, bags, factor


def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Gather rows and sum them by bag: [B, F, D] in ``out_dtype``; empty bags are zero.

    Args:
        weights: For each feature its table [R_f, D].
        lookups: The lookups.
        out_dtype: dtype of the result.

    Raises:
        IndexOutOfRange: An id is negative or not below its table's number of rows.
    """
    size, dim = lookups.batch_size, weights[0].shape[1]
    dtype = computed(weights[0].dtype)
    out = torch.zeros(size, lookups.num_features, dim, dtype=dtype, device=weights[0].device)
    for feature, weight in enumerate(weights):
        rows, bags, factor = feature_lookups(lookups, feature)
        check_range(rows, weight.shape[0], feature)
        out[:, feature].index_add_(0, bags, weight.detach()[rows].to(dtype) * factor.unsqueeze(1).to(dtype))
    return out.to(out_dtype)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that tables of one are computed in: float32 at least."""
    return dtype if dtype == torch.float64 else torch.float32


def row_update(
    tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
) -> UpdateCounts:
    """Gate, de-duplicate, reduce, apply the optimizer, write: in place on ``tables``.

    Every row's gradients are summed in the order of ``gradients``, then of samples.

    Raises:
        IndexOutOfRange: An id is outside its table; nothing has been written then.
    """
    counts = UpdateCounts([0] * len(tables), [0] * len(tables), [0] * len(tables), [0.0] * len(tables))
    work: list[tuple[int, Tensor, Tensor]] = []
    for position, table in enumerate(tables):
        rows_of, samples_of, grads_of = [], [], []
        for block in gradients:
            for feature, target in enumerate(block.tables):
                if target != position:
                    continue
                rows, bags, factor = feature_lookups(block.lookups, feature)
                check_range(rows, table.weight.shape[0], feature)
                used = rows != block.lookups.padding_of(feature)
                rows, bags, factor = rows[used], bags[used], factor[used]
                rows_of.append(rows)
                samples_of.append(bags)
                grad = block.grad[:, feature][bags].to(computed(table.weight.dtype))
                grads_of.append(grad * factor.unsqueeze(1).to(grad.dtype))
        if not rows_of:
            continue
        rows, grads = torch.cat(rows_of), torch.cat(grads_of)
        counts.lookups[position] = len(rows)
        if table.gate is not None:
            gate = table.gate[rows].to(torch.int64)
            samples = torch.cat(samples_of) if table.by_sample else None
            is_open = (gate == 255) | (gate_draw(rows, settings.step, table.seed, samples) < gate)
            rows, grads = rows[is_open], grads[is_open]
            counts.skipped[position] = counts.lookups[position] - len(rows)
        work.append((position, rows, grads))
    for position, rows, grads in work:
        unique, inverse = torch.unique(rows, return_inverse=True)
        total = torch.zeros(len(unique), grads.shape[1], dtype=grads.dtype, device=grads.device)
        total.index_add_(0, inverse, grads)
        total *= tables[position].scale
        if tables[position].by_sample:
            total *= _kept_weight(tables[position].gate, unique).unsqueeze(1).to(total.dtype)
        counts.rows[position] = len(unique)
        if settings.rule == Rule.NORM:
            counts.squared_norm[position] = float(total.double().square().sum())
        elif len(unique):
            _apply(tables[position], unique, total, settings)
    return counts


def _kept_weight(gate: Tensor | None, rows: Tensor) -> Tensor:
    """What the sum of the lookups that were kept is scaled by, float32 [N], where gates draw by the sample."""
    if gate is None:
        return torch.ones(len(rows), device=rows.device)
    level = gate[rows].to(torch.float32)
    return torch.where(level == 255, 1.0, 256.0 / level)


def _apply(table: TableState, rows: Tensor, grad: Tensor, s: UpdateSettings) -> None:
    weight = table.weight.data[rows].to(grad.dtype)
    measured = table.signal is not None and is_measured(s.step)
    before = weight if measured and s.rule != Rule.ADAM else None
    waited = torch.zeros(len(rows), 1, dtype=weight.dtype, device=rows.device)
    if table.last_step is not None:
        since = wrap_step(s.step - 1 - table.last_step[rows].to(torch.int64))
        waited = since.clamp(min=0).unsqueeze(1).to(weight.dtype)
        table.last_step[rows] = wrap_step(s.step)
    if s.decoupled:
        # In float64: next to 1 a float32 would spoil the power.
        weight = weight * ((1 - s.lr * s.weight_decay) ** (waited.double() + 1)).to(weight.dtype)
    elif s.weight_decay:
        grad = grad + s.weight_decay * weight
    if s.rule == Rule.SGD:
        if table.first is not None:
            grad = table.first[rows] * s.beta1 ** (waited + 1) + grad
            table.first[rows] = grad.to(table.first.dtype)
        weight = weight - s.lr * grad
    elif s.rule == Rule.ADAGRAD:
        assert table.first is not None
        total = table.first[rows] + grad.square()
        table.first[rows] = total.to(table.first.dtype)
        weight = weight - s.lr * grad / (total.sqrt() + s.eps)
    elif s.rule == Rule.ROWWISE_ADAGRAD:
        assert table.first is not None
        total = table.first[rows] + grad.square().mean(dim=1)
        table.first[rows] = total.to(table.first.dtype)
        weight = weight - s.lr * grad / (total.sqrt().unsqueeze(1) + s.eps)
    else:
        assert table.first is not None and table.second is not None
        first = table.first[rows] * s.beta1**waited
        second = table.second[rows] * s.beta2**waited
        first = first + (grad - first) * (1 - s.beta1)
        second = second + (grad.square() - second) * (1 - s.beta2)
        table.first[rows] = first.to(table.first.dtype)
        table.second[rows] = second.to(table.second.dtype)
        size = s.lr * (1 - s.beta2**s.step) ** 0.5 / (1 - s.beta1**s.step)
        weight = weight - size * first / (second.sqrt() + s.eps)
    if table.weight.dtype in (torch.bfloat16, torch.float16):
        weight = stochastic(weight, rows, table.weight.dtype, s.step, table.seed)
    table.weight.data[rows] = weight.to(table.weight.dtype)
    if measured:
        measure(table, rows, before, s)


def wrap_step(step: Any) -> Any:
    """A step number (int, or int64 tensor) in 32 bits, as ``last_step`` keeps it: beyond 2^31 it wraps."""
    return ((step + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def row_gradient_dense(gradients: Sequence[RowGradients], target: int, weight: Tensor, scale: float | Tensor) -> Tensor:
    """The gradient of one table as a dense tensor [R, D], as torch would have made it.

    To the bit: each lookup summed up by itself, and then the lookups, in the order of backward. Training amplifies
    rounding where gradients are as small as Adam's eps.
    """
    dense: Tensor | None = None
    for block in gradients:
        for feature, table in enumerate(block.tables):
            if table == target:
                rows, bags, factor = feature_lookups(block.lookups, feature)
                used = rows != block.lookups.padding_of(feature)
                grad = block.grad[:, feature][bags].to(weight.dtype) * factor.unsqueeze(1).to(weight.dtype)
                part = torch.zeros_like(weight).index_add_(0, rows[used], grad[used])
                dense = part if dense is None else dense.add_(part)
    if dense is None:
        return torch.zeros_like(weight)
    return dense if isinstance(scale, float) and scale == 1.0 else dense.mul_(scale)


def count(counts: Tensor, ids: Tensor, amount: float) -> None:
    """Add ``amount`` to ``counts[id]`` (float32 [R]) for each id, in place.

    Ids outside the table raise IndexOutOfRange.
    """
    ids = ids.reshape(-1).to(torch.int64)
    check_range(ids, counts.shape[0], 0)
    counts.index_add_(0, ids, torch.full((len(ids),), amount, dtype=counts.dtype, device=counts.device))


def dots(vectors: Tensor, ahead: bool = False) -> Tensor:
    """Dot products of all pairs of V vectors of a sample, in the order (1, 0), (2, 0), (2, 1), and so on.

    Args:
        vectors: [B, V, D]; bfloat16 is summed in float32.
        ahead: Whether the sample's first vector stands ahead of its products.

    Returns:
        [B, V (V - 1) / 2] of the type of the vectors; with ``ahead`` D more columns, the first ones.
    """
    rows, columns = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
    wide = vectors.float()
    products = (wide @ wide.transpose(1, 2))[:, rows, columns].to(vectors.dtype)
    return torch.cat([vectors[:, 0], products], dim=1) if ahead else products


def dots_gradients(vectors: Tensor, gradients: Tensor, ahead: bool = False) -> Tensor:
    """What :func:`dots` of these vectors hands back of the gradients of its result: [B, V, D] of their type."""
    batch, count, dim = vectors.shape
    rows, columns = torch.tril_indices(count, count, -1)
    square = torch.zeros(batch, count, count, device=vectors.device)
    square[:, rows, columns] = square[:, columns, rows] = gradients[:, dim if ahead else 0 :].float()
    made = square @ vectors.float()
    if ahead:
        made[:, 0] += gradients[:, :dim].float()
    return made.to(vectors.dtype)


def count_marked(marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """For each of B inputs the number of its lookups whose row is marked, int32 [B]; repeats count each time.

    Args:
        marks: uint8 [R_t] for each table, those of the F columns first, then those of the bags; not 0: marked.
        ids: int32 or int64 [B, F], any strides.
        bags: For each multi-hot feature ``values`` [N] and ``offsets`` [B + 1].

    Raises:
        IndexOutOfRange: An id is outside its table.
    """
    counts = torch.zeros(ids.shape[0], dtype=torch.int64, device=ids.device)
    for feature in range(ids.shape[1]):
        check_range(ids[:, feature], len(marks[feature]), feature)
        counts += marks[feature][ids[:, feature].to(torch.int64)] != 0
    for feature, (mark, (values, offsets)) in enumerate(zip(marks[ids.shape[1] :], bags, strict=True), ids.shape[1]):
        first, last = int(offsets[0]), int(offsets[-1])
        rows = values[first:last].to(torch.int64)
        check_range(rows, len(mark), feature)
        bag = torch.repeat_interleave(torch.arange(len(counts), device=ids.device), offsets.to(torch.int64).diff())
        counts.index_add_(0, bag, (mark[rows] != 0).to(torch.int64))
    return counts.to(torch.int32)


def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor | None, lr: float
) -> tuple[Tensor, Tensor, float]:
    """Logistic regression on-line with Adagrad: predicts all inputs, then learns from their labels one by one.

    Predicting all before any label is learned keeps labels out of their neighbours' predictions: where a click is
    followed by its non-clicks, one that learned at once would foresee each label's opposite.

    Args:
        table: float32 [S + 1 + n, 4], changed in place: for each slot weight, sum of squared gradients, lookups seen,
            nothing; then a row for the bias and one for each dense column.
        slots: int32 [L], slots of all lookups.
        starts: int64 [B + 1], where each input's slots begin.
        dense: float32 [B, n]; clipped to ±4.
        labels: float32 [B] in [0, 1].
        learn: bool [B], which inputs to learn from, the others are predicted alone; None: all.
        lr: Learning rate.

    Returns:
        float32 [B] the probability predicted before learning, float32 [B] how often the input's rarest slot was
        seen before (inf without lookups), and the sum of the predictions' log-losses, nats.
    """
    bias = table.shape[0] - dense.shape[1] - 1
    own = torch.arange(bias, table.shape[0])
    probability, seen = torch.empty_like(labels), torch.empty_like(labels)
    for b in range(labels.numel()):
        mine = slots[int(starts[b]) : int(starts[b + 1])].long()
        values = torch.cat([torch.ones(1), dense[b].clamp(-4.0, 4.0)])
        probability[b] = torch.sigmoid(table[mine, 0].sum() + (table[own, 0] * values).sum())
        seen[b] = table[mine, 2].min() if mine.numel() else float("inf")
    for b in range(labels.numel()) if learn is None else learn.nonzero().flatten().tolist():
        mine = slots[int(starts[b]) : int(starts[b + 1])].long()
        values = torch.cat([torch.ones(1), dense[b].clamp(-4.0, 4.0)])
        g = probability[b] - labels[b]
        for row, value in [*((int(s), torch.ones(())) for s in mine), *zip(own.tolist(), values, strict=True)]:
            table[row, 1] += (g * value) ** 2
            table[row, 0] -= lr * g * value / torch.sqrt(1.0 + table[row, 1])
        for s in mine.tolist():
            table[s, 2] += 1.0
    clamped = probability.clamp(1e-7, 1.0 - 1e-7)
    return probability, seen, float(torch.nn.functional.binary_cross_entropy(clamped, labels, reduction="sum"))
