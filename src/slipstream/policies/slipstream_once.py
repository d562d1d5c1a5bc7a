"""Slipstream as published: one order, one snapshot block, one decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.data.batch import Bag, Inputs
from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, TrainingData
from slipstream.policies.hot_split import HotSplit, split_inputs, weights_of
from slipstream.restored import check_inputs, whole_number
from slipstream.staleness.stale_inputs import HotSnapshot, Rule, checked_marks, stale_inputs

if TYPE_CHECKING:
    from slipstream.policies.slipstream import SlipstreamConfig

_STREAM = 0x5A3
"""Mixed into the seed of the sampling block."""


class Once:
    """The course of one training: where it stands in the planned order, and what is known of the rows.

    Args:
        config: The policy's settings.
    """

    def __init__(self, config: SlipstreamConfig) -> None:
        self.config = config
        self.model: nn.Module | None = None
        self._tables: Mapping[str, Gated] = {}
        self._used: list[Gated] = []  # the table of each column, then of each bag
        self._seed = 0
        self._samples = 0  # of an epoch; 0: not planned
        self._passed = 0  # of all epochs
        self._snapshot_at = 0
        self._decide_at = 0
        self._hot: list[Tensor] = []
        self._sample: Inputs | None = None
        self._snapshot: HotSnapshot | None = None
        self._report: dict[str, Any] = {}
        self._dropped = 0

    def warm_up(self) -> None:
        """Nothing of its own."""

    def attach(self, tables: Mapping[str, Gated], seed: int) -> None:
        """Keeps the tables."""
        self._tables, self._seed = tables, seed

    def plan(self, data: TrainingData) -> Tensor:
        """Splits the inputs, places the two snapshots, and draws the sample; returns the order."""
        config = self.config
        split = split_inputs(
            "slipstream",
            data,
            self._tables,
            self.model,
            hot_bytes=config.hot_bytes,
            sample_share=config.sample_share,
            seed=self._seed,
        )
        _rule(config).check(split.most_lookups, split.num_bags, split.most_in_every_bag)
        self._place(split, data.batch_size)
        order = torch.cat([split.cold, split.hot])
        left = order[self._decide_at :]
        size = min(max(1, round(config.sample_rate * split.hot.numel())), left.numel())
        drawn = np.random.default_rng((self._seed, _STREAM)).choice(left.numel(), size, replace=False)
        drawn.sort()
        self._sample = _lookups_alone(data.take(left[torch.as_tensor(drawn, dtype=torch.int64)]).inputs)
        self._used, self._hot, self._samples = split.tables, split.marks, order.numel()
        self._report = {**split.report, "sampled_inputs": size}
        return order

    def _place(self, split: HotSplit, batch_size: int) -> None:
        """Positions in the order at which hot rows are copied and compared.

        Raises:
            ConfigError: No hot batch would be left after the second; says what is allowed.
        """
        # The batch that holds the last cold and the first hot inputs counts as cold.
        first = -(-split.cold.numel() // batch_size) * batch_size
        samples = split.cold.numel() + split.hot.numel()
        batches = max(0, -(-(samples - first) // batch_size))
        window = max(1, round(self.config.snapshot_share * batches))
        start, most = self.config.snapshot_start, batches - window - 1
        if start > most:
            raise ConfigError(
                f"{split.hot.numel()} of {samples} inputs are hot, {batches} batches: snapshot_start={start} with a "
                f"window of {window} leaves none to skip",
                remedy=f"set snapshot_start in [0, {most}]"
                if most >= 0
                else "raise hot_bytes, lower snapshot_share, or use more data",
            )
        self._snapshot_at = first + start * batch_size
        self._decide_at = first + (start + window) * batch_size

    def dropped(self, inputs: Inputs) -> Tensor | None:
        """Which inputs to drop, bool [B]; None for none. Inputs come in the planned order."""
        size = inputs.ids.shape[0]
        if not self._samples or not size:
            return None
        position = self._passed % self._samples
        if self._passed < self._samples:
            self._observe(position)
        self._passed += size
        snapshot = self._snapshot
        if snapshot is None or not snapshot.stale or position + size <= self._decide_at:
            return None
        dropped = stale_inputs(snapshot.stale, inputs, _rule(self.config))
        dropped[: max(0, self._decide_at - position)] = False
        self._dropped += int(torch.count_nonzero(dropped))
        return dropped

    def _observe(self, position: int) -> None:
        """Takes the snapshot, and decides, when it is time."""
        if self._snapshot is None and position >= self._snapshot_at:
            self._snapshot = HotSnapshot(self._weights(), self._hot)
        elif self._sample is not None and self._snapshot is not None and position >= self._decide_at:
            if self.config.budget < 1:
                target = 1 - self.config.budget
                self._snapshot.decide(self._weights(), self._sample, _rule(self.config), target, self.config.band)
            self._sample = None

    def _weights(self) -> list[Tensor]:
        return weights_of(self._used)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, dicts and lists of them."""
        state: dict[str, Any] = {
            "samples": self._samples,
            "passed": self._passed,
            "dropped": self._dropped,
            "snapshot_at": self._snapshot_at,
            "decide_at": self._decide_at,
            "hot": list(self._hot),
            "tables": names_of(self._used, self._tables),
            "report": self._report,
        }
        if self._sample is not None:
            state["sample"] = inputs_state(self._sample)
        if self._snapshot is not None:
            state["snapshot"] = self._snapshot.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        check_mode(state, "once")
        self._samples, self._passed = whole_number(state, "samples"), whole_number(state, "passed")
        self._dropped = whole_number(state, "dropped")
        self._snapshot_at, self._decide_at = whole_number(state, "snapshot_at"), whole_number(state, "decide_at")
        self._used, self._report = [self._tables[name] for name in state["tables"]], dict(state["report"])
        self._hot = checked_marks(state["hot"], self._weights())
        self._sample = inputs_from(state["sample"]) if "sample" in state else None
        self._snapshot = HotSnapshot.from_state(state["snapshot"], self._weights()) if "snapshot" in state else None

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Begins anew."""
        check_mode(state, "once")

    def report(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"planned": self._samples > 0, **self._report, "dropped": self._dropped, **found(self._snapshot)}


def _rule(config: SlipstreamConfig) -> Rule:
    return Rule(config.alpha, config.alpha_per_bag)


def found(snapshot: HotSnapshot | None) -> dict[str, Any]:
    """What a decision found, as plain numbers."""
    if snapshot is None or snapshot.found is None:
        return {}
    threshold = snapshot.found
    return {
        "threshold": threshold.value,
        "bisection_steps": threshold.steps,
        "share_of_sample_dropped": threshold.share if threshold.value is not None else 0.0,
        "stale_rows": snapshot.num_stale,
    }


def check_mode(state: Mapping[str, Any], mode: str) -> None:
    """Raise ConfigError if a state is of the other mode."""
    if state["mode"] != mode:
        raise ConfigError(f"the state is of mode {state['mode']!r}, not {mode!r}")


def names_of(used: Sequence[Gated], tables: Mapping[str, Gated]) -> list[str]:
    """The parameter names of some tables."""
    names = {id(table): name for name, table in tables.items()}
    return [names[id(table)] for table in used]


def _lookups_alone(inputs: Inputs) -> Inputs:
    return Inputs(inputs.dense[:, :0], inputs.ids, inputs.bags)


def inputs_state(inputs: Inputs) -> dict[str, Any]:
    """Ids and bags of inputs, as tensors."""
    bags: Sequence[Bag] = inputs.bags
    return {"ids": inputs.ids, "bags": [{"values": bag.values, "offsets": bag.offsets} for bag in bags]}


def inputs_from(state: Mapping[str, Any]) -> Inputs:
    """What :func:`inputs_state` saved; no dense columns."""
    ids: Tensor = state["ids"]
    check_inputs(ids, [(bag["values"], bag["offsets"]) for bag in state["bags"]], len(ids))
    bags = tuple(Bag(bag["values"], bag["offsets"]) for bag in state["bags"])
    return Inputs(torch.empty(ids.shape[0], 0), ids, bags)
