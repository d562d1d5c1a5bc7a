"""Slipstream for streams: hot rows, snapshots and threshold are decided anew every few batches ([ours])."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, TrainingData
from slipstream.policies.hot_split import weights_of
from slipstream.policies.slipstream_once import check_mode, found, inputs_from, inputs_state, names_of
from slipstream.policies.table_map import tables_of_inputs
from slipstream.restored import whole_number
from slipstream.staleness.growth import grow_rows
from slipstream.staleness.hot_rows import add_accesses, hot_inputs, lookups_of, rows_within, top_rows
from slipstream.staleness.popularity import PopularityCounts, make_counts
from slipstream.staleness.stale_inputs import HotSnapshot, Rule, checked_marks, stale_inputs

if TYPE_CHECKING:
    from slipstream.policies.slipstream import SlipstreamConfig


class Periodic:
    """Counts what passes, and decides from time to time.

    Args:
        config: The policy's settings.
    """

    def __init__(self, config: SlipstreamConfig) -> None:
        self.config = config
        self.model: nn.Module | None = None
        self._by_name: Mapping[str, Gated] = {}
        self._tables: list[Gated] = []
        self._counts: list[PopularityCounts] = []
        self._batches = 0
        self._hot: list[Tensor] = []
        self._snapshot: HotSnapshot | None = None
        self._sample: list[Inputs] = []
        self._decisions = 0
        self._dropped = 0
        self._last: dict[str, Any] = {}

    def warm_up(self) -> None:
        """Loads the counting."""
        counts = make_counts(2, self.config.half_life)
        counts.add(torch.ones(1, dtype=torch.int32))

    def attach(self, tables: Mapping[str, Gated], seed: int) -> None:
        """Keeps the tables; counting begins with the first batch, which tells which column each belongs to."""
        self._by_name = tables

    def plan(self, data: TrainingData) -> None:
        """Leaves the order as it is."""

    def dropped(self, inputs: Inputs) -> Tensor | None:
        """Which inputs to drop, bool [B]; None for none."""
        if not inputs.ids.shape[0]:
            return None
        if not self._tables:
            self._count_for(tables_of_inputs("slipstream", self._by_name, self.model, inputs))
        rule = Rule(self.config.alpha, self.config.alpha_per_bag)
        rule.check(int(lookups_of(inputs).max()) if not inputs.bags else rule.alpha or 0, len(inputs.bags))
        phase = self._batches % self.config.every
        settled = self.config.decisions is not None and self._decisions >= self.config.decisions
        if settled:
            phase = self.config.every
        if phase == 0 and self._batches:
            self._take_snapshot()
        elif phase == self.config.window and self._snapshot is not None:
            self._decide(rule)
        self._batches += 1
        for counts in self._counts:
            counts.advance(1)
        add_accesses(self._counts, inputs)
        snapshot = self._snapshot
        if snapshot is None:
            return None
        if phase < self.config.window:
            self._keep_for_sample(inputs)
            return None
        if not snapshot.stale:
            return None
        dropped = stale_inputs(snapshot.stale, inputs, rule) & hot_inputs(self._hot, inputs)
        self._dropped += int(torch.count_nonzero(dropped))
        return dropped

    def _count_for(self, tables: list[Gated]) -> None:
        self._tables = tables
        self._counts = [make_counts(table.num_rows, self.config.half_life) for table in tables]

    def _take_snapshot(self) -> None:
        """Chooses the hot rows by their counts and copies them; nothing is dropped until the decision."""
        k = rows_within(self.config.hot_bytes, [table.weight.shape[1] for table in self._tables])
        self._hot = top_rows([counts.scores for counts in self._counts], k)
        self._snapshot = HotSnapshot(weights_of(self._tables), self._hot)
        self._sample = []

    def _keep_for_sample(self, inputs: Inputs) -> None:
        """Keeps the first hot inputs of the batch, as many as make the sample over the whole window."""
        share = -(-self.config.sample_size // self.config.window)
        rows = hot_inputs(self._hot, inputs).nonzero().squeeze(1)[:share]
        ids, bags = inputs.ids.index_select(0, rows), tuple(bag.select(rows) for bag in inputs.bags)
        self._sample.append(Inputs(torch.empty(rows.numel(), 0), ids, bags))

    def _decide(self, rule: Rule) -> None:
        """Finds T, and with it the stale rows; without a hot input in the window none is stale."""
        sample = _joined(self._sample)
        if self._snapshot is not None and self.config.budget < 1 and sample is not None and sample.ids.shape[0]:
            target = 1 - self.config.budget
            self._snapshot.decide(weights_of(self._tables), sample, rule, target, self.config.band)
            self._decisions += 1
            self._last = found(self._snapshot)
        self._sample = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, dicts and lists of them."""
        state: dict[str, Any] = {
            "counts": [counts.state_dict() for counts in self._counts],
            "batches": self._batches,
            "decisions": self._decisions,
            "dropped": self._dropped,
            "hot": list(self._hot),
            "tables": names_of(self._tables, self._by_name),
            "last": self._last,
        }
        sample = _joined(self._sample)
        if sample is not None:
            state["sample"] = inputs_state(sample)
        if self._snapshot is not None:
            state["snapshot"] = self._snapshot.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        check_mode(state, "periodic")
        self._check_tables(state)
        self._count_for([self._by_name[name] for name in state["tables"]])
        for counts, saved in zip(self._counts, state["counts"], strict=True):
            counts.load_state_dict(saved)
        self._batches, self._decisions = whole_number(state, "batches"), whole_number(state, "decisions")
        self._dropped, self._last = whole_number(state, "dropped"), dict(state["last"])
        self._hot = checked_marks(state["hot"], weights_of(self._tables))
        self._sample = [inputs_from(state["sample"])] if "sample" in state else []
        self._snapshot = (
            HotSnapshot.from_state(state["snapshot"], weights_of(self._tables)) if "snapshot" in state else None
        )

    def _check_tables(self, state: Mapping[str, Any]) -> None:
        if unknown := set(state["tables"]) - set(self._by_name):
            raise ConfigError(f"the state is of tables that the model does not have: {', '.join(sorted(unknown))}")

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """New rows were never looked up, and are cold until the next snapshot."""
        # In the state's order, that of the data's columns, which need not be the model's.
        self._check_tables(state)
        sizes = [rows[name] for name in state["tables"]]
        counts = [
            {**saved, "scores": grow_rows(saved["scores"], size)}
            for saved, size in zip(state["counts"], sizes, strict=True)
        ]
        hot = [grow_rows(mark, size) for mark, size in zip(state["hot"], sizes, strict=False)]
        grown: dict[str, Any] = {**state, "counts": counts, "hot": hot}
        if "snapshot" in state:
            snapshot = state["snapshot"]
            marked = [{**table, "num_rows": size} for table, size in zip(snapshot["tables"], sizes, strict=True)]
            grown["snapshot"] = {**snapshot, "tables": marked}
        self.load_state_dict(grown)

    def report(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"decisions": self._decisions, "dropped": self._dropped, **self._last}


def _joined(pieces: list[Inputs]) -> Inputs | None:
    """The inputs of all pieces."""
    if not pieces:
        return None
    nothing = [torch.empty(piece.ids.shape[0]) for piece in pieces]
    index = [torch.empty(piece.ids.shape[0], dtype=torch.int64) for piece in pieces]
    return Batch.concat([Batch(p, n, i, n) for p, n, i in zip(pieces, nothing, index, strict=True)]).inputs
