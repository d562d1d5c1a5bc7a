"""What kernels take: lookups, the state of a table, the settings of an update rule."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NO_PADDING = -(1 << 63)
"""Padding row of a feature that has none. Not -1: an id of -1 is an error, and must not be left out in silence."""


class Rule(enum.IntEnum):
    """The optimizer that a row update applies; ``NORM`` writes nothing and only measures the gradient."""

    NORM = 0
    SGD = 1
    ADAGRAD = 2
    ROWWISE_ADAGRAD = 3
    ADAM = 4


@dataclass(frozen=True, slots=True)
class Lookups:
    """The lookups of one forward pass: B samples, F features, every feature with its own table.

    Attributes:
        ids: Rows, int32 or int64. Without ``offsets`` shape [B, F] (any strides), one lookup a sample and feature.
            With ``offsets`` shape [N], the lookups of
            feature 0, sample 0, then feature 0, sample 1, and so on.
        offsets: None, or int32/int64 [F * B + 1]: bag (f, b) holds ``ids[offsets[f * B + b] : offsets[f * B + b +
            1]]``.
        num_features: F.
        sample_weights: None, or float32 [N]: the factor of each lookup (only with ``offsets``).
        mean: Divide each bag by its number of lookups (only with ``offsets``).
        padding: For each feature the row that never gets a gradient (and, with ``offsets``, is left out of its bag),
            or -1.
    """

    ids: Tensor
    offsets: Tensor | None
    num_features: int
    sample_weights: Tensor | None = None
    mean: bool = False
    padding: tuple[int, ...] = ()

    @property
    def batch_size(self) -> int:
        """B, the number of samples."""
        if self.offsets is None:
            return self.ids.shape[0]
        return (self.offsets.numel() - 1) // self.num_features

    def version(self) -> int:
        """A number that changes when the ids, offsets or sample weights are changed in place."""
        tensors = (self.ids, self.offsets, self.sample_weights)
        return sum(t._version for t in tensors if t is not None and not t.is_inference())

    def padding_of(self, feature: int) -> int:
        """The padding row of a feature, NO_PADDING for none."""
        row = self.padding[feature] if self.padding else -1
        return NO_PADDING if row < 0 else row

    def padding_rows(self) -> int | list[int]:
        """The padding rows of all features, or NO_PADDING when none has one."""
        return [self.padding_of(feature) for feature in range(self.num_features)] if self.padding else NO_PADDING


@dataclass(frozen=True, slots=True)
class DrawnLookups:
    """Some of the lookups of a forward pass, drawn one by one; the CPU's kernels take them in place of all.

    Attributes:
        ids: Rows, int64 [N], no padding; the room of a feature may be longer than what was drawn.
        samples: int64 [N]: the sample of each.
        factors: float32 [N]: what its gradient is multiplied by.
        firsts: For each feature the place of its first lookup.
        counts: For each feature how many lookups it has.
        dropped: For each feature how many were not drawn.
        batch_size: B, the number of samples.
    """

    ids: Tensor
    samples: Tensor
    factors: Tensor
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    dropped: tuple[int, ...]
    batch_size: int

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.counts)

    def padding_of(self, feature: int) -> int:
        """NO_PADDING: it is left out."""
        return NO_PADDING


@dataclass(frozen=True, slots=True)
class RowGradients:
    """Lookups with the gradient of their pooled output, and the table that each feature reads.

    Attributes:
        lookups: The lookups of one forward pass.
        grad: float32 [B, F, D], gradient of the pooled output; the last dimension is contiguous.
        tables: For each feature the position of its table in the list given to the update, or -1 to leave the feature
            out.
    """

    lookups: Lookups | DrawnLookups
    grad: Tensor
    tables: tuple[int, ...]


@dataclass(slots=True)
class TableState:
    """A table as a row update sees it: R rows of D elements.

    Attributes:
        weight: float32 [R, D], contiguous; or float64, bfloat16 or float16, which some back ends take. Below float32
            rows are computed in float32 and rounded stochastically (see :mod:`slipstream.kernels.rounding`).
        first: Optimizer state: [R, D] (SGD momentum, Adagrad sum, Adam first moment) or [R] (row-wise Adagrad sum),
            or None; float32, or float64 as the weight.
        second: [R, D] (Adam second moment), or None.
        gate: uint8 [R], or None when every row is open: 255 always updates, 0 never, g between them with probability
            g / 256.
        by_sample: Whether gates between 0 and 255 draw for each sample's lookups of a row instead of once for the row;
            what is left of the row's gradient is then scaled by 256 / g, which keeps its expectation.
        last_step: int32 [R], the step of each row's last update (only for ``catch_up``), or None.
        scale: Factor on the gradients (loss scaling, clipping); a scalar tensor where it is not to be waited for.
        seed: Key of the gate's hash.
        signal: uint16 [R], what some steps measure (see :mod:`slipstream.kernels.signal`), or None: measure nothing.
            With ``second`` it is that of the moments, else that of the trail.
        trail: float32 [R, 5]: decayed sums of a row's change, projected on 4 elements, and of its length; or None.
    """

    weight: Tensor
    first: Tensor | None = None
    second: Tensor | None = None
    gate: Tensor | None = None
    last_step: Tensor | None = None
    scale: float | Tensor = 1.0
    seed: int = 0
    signal: Tensor | None = None
    trail: Tensor | None = None
    by_sample: bool = False


class TableSet(list[TableState]):
    """The tables of an update, kept from step to step, so that a back end prepares them once.

    Attributes:
        prepared: The back end's own form of them. Set it to None when a tensor of a table is replaced.
        totals: int64 [T, 2] on a GPU, or None: lookups and skipped of all updates so far.
    """

    prepared: Any = None
    totals: Tensor | None = None


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """Settings of an update rule for one optimizer step.

    Attributes:
        rule: The optimizer.
        step: 1-based optimizer step; with ``seed`` it keys the gate's hash.
        lr: Learning rate.
        eps: Added to the denominator.
        beta1: Adam's first decay, or SGD's momentum.
        beta2: Adam's second decay.
        weight_decay: L2 factor, or decoupled decay with ``decoupled``.
        decoupled: AdamW's weight decay: shrink the row by ``lr * weight_decay``.
    """

    rule: Rule
    step: int = 1
    lr: float = 0.0
    eps: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False


@dataclass(slots=True)
class UpdateCounts:
    """What a row update did, per table.

    Attributes:
        lookups: Lookups that reached a table (padding left out).
        skipped: Those of them whose row's gate was shut.
        rows: Distinct rows updated.
        squared_norm: Sum of squares of the reduced, scaled gradient (rule ``NORM`` only).
        totals: Where the tables are a TableSet on a GPU, int64 [T, 2]: lookups and skipped of all its updates so far,
            to be read when somebody asks. Else None.
    """

    lookups: list[int]
    skipped: list[int]
    rows: list[int]
    squared_norm: list[float]
    totals: Tensor | None = None

    def device_squared_norm(self) -> Tensor | None:
        """``squared_norm`` on the GPU, float64 [T], without waiting; None elsewhere."""
        return None
