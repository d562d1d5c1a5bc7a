"""What FAE and Slipstream share: which inputs are hot, found in passes over the data before training."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.data.batch import Inputs
from slipstream.policies.base import Gated, TrainingData
from slipstream.policies.table_map import tables_of_inputs
from slipstream.staleness.hot_rows import add_accesses, hot_inputs, lookups_of, rows_within, top_rows
from slipstream.staleness.popularity import ExactCounts

_PIECE = 65_536
"""Inputs read at a time."""
_PROBED = 1024
"""Inputs whose ids are known to be rows, for the model to be asked with."""
_STREAM = 0xFAE
"""Mixed into the seed of the sample."""


class HotSplit(NamedTuple):
    """Hot rows and inputs."""

    tables: list[Gated]
    """That of each column, then of each bag."""
    marks: list[Tensor]
    """uint8 [R_t] for each of them: 1 for hot rows."""
    cold: Tensor
    """int64: positions of the inputs with a cold lookup, rising."""
    hot: Tensor
    """int64: positions of the others, rising."""
    most_lookups: int
    """Of any input."""
    num_bags: int
    """Multi-hot features."""
    most_in_every_bag: int
    """The least, over the multi-hot features, of the lookups of the longest bag."""

    @property
    def report(self) -> dict[str, float]:
        """Plain numbers."""
        inputs = self.cold.numel() + self.hot.numel()
        rows = sum(mark.numel() for mark in self.marks)
        hot_rows = sum(int(mark.sum(dtype=torch.int64)) for mark in self.marks)
        return {"share_of_rows_hot": hot_rows / rows, "share_of_inputs_hot": self.hot.numel() / max(inputs, 1)}


def split_inputs(
    name: str,
    data: TrainingData,
    tables: Mapping[str, Gated],
    model: nn.Module | None,
    *,
    hot_bytes: int,
    sample_share: float,
    seed: int,
) -> HotSplit:
    """Counts accesses in a sample of the inputs, marks the hottest rows, and tells hot inputs from cold ones.

    Drawn with replacement, counted per row over all tables, the top K kept. [paper, code] Rows that the sample did
    not hold have the count 0, and are hot only where the budget holds them too. [ours]

    Args:
        name: The policy's, for messages.
        data: The training samples.
        tables: By parameter name.
        model: Tells which table belongs to which column.
        hot_bytes: Budget of the hot rows.
        sample_share: Share of the inputs to draw; at least one is.
        seed: Of the sample.

    Raises:
        ConfigError: The tables do not fit the inputs, or the budget holds no row.
    """
    some = torch.arange(0, data.num_samples, max(1, data.num_samples // _PROBED))
    sample = data.take(some).inputs
    used, columns = tables_of_inputs(name, tables, model, sample), sample.ids.shape[1]
    k = rows_within(hot_bytes, [table.weight.shape[1] for table in used])
    counts = [ExactCounts(table.num_rows) for table in used]
    draws = max(1, round(sample_share * data.num_samples))
    drawn = np.random.default_rng((seed, _STREAM)).integers(0, data.num_samples, draws)
    for piece in torch.from_numpy(np.sort(drawn)).split(_PIECE):
        add_accesses(counts, data.take(piece).inputs)
    marks = top_rows([count.scores for count in counts], k)
    hot, lookups, longest = [torch.empty(0, dtype=torch.bool)], 0, [0] * (len(used) - columns)
    for inputs in _inputs(data):
        hot.append(hot_inputs(marks, inputs))
        lookups = max(lookups, int(lookups_of(inputs).max()))
        lengths = [int(bag.offsets.diff().max()) for bag in inputs.bags]
        longest = [max(pair) for pair in zip(longest, lengths, strict=True)]
    is_hot = torch.cat(hot)
    cold, warm = (~is_hot).nonzero().squeeze(1), is_hot.nonzero().squeeze(1)
    return HotSplit(used, marks, cold, warm, lookups, len(longest), min(longest, default=0))


def _inputs(data: TrainingData) -> Iterator[Inputs]:
    for batch in data.batches(_PIECE):
        yield batch.inputs


def interleave(first: Tensor, second: Tensor, runs: int, multiple: int) -> Tensor:
    """Alternates runs of two lists: a run of the first, a run of the second, and so on.

    Args:
        first: int64.
        second: int64.
        runs: Of each.
        multiple: Runs but the last hold a multiple of so many.
    """
    parts: list[Tensor] = []
    for i in range(runs):
        for items in (first, second):
            parts.append(items[_cut(items, i, runs, multiple) : _cut(items, i + 1, runs, multiple)])
    return torch.cat(parts)


def _cut(items: Tensor, run: int, runs: int, multiple: int) -> int:
    size = items.numel()
    return size if run == runs else size * run // runs // multiple * multiple


def weights_of(tables: Sequence[Gated]) -> list[Tensor]:
    """Their weights."""
    return [table.weight for table in tables]
