"""Kept inputs wait here until they fill a batch: each is copied once, out of the batch in which it came."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.errors import ConfigError
from slipstream.kernels.inputs import Columns, append_bags
from slipstream.restored import check_inputs, checked_tensor


class _Filling:
    """A batch that is being filled, with room for inputs like those of another."""

    def __init__(self, like: Batch, capacity: int) -> None:
        self.count = 0
        self.capacity = capacity
        self._to = [tensor.new_empty((capacity, *tensor.shape[1:])) for tensor in _columns(like)]
        self._columns = Columns(self._to)
        self._has_time, self._has_logit_offset = like.time is not None, like.logit_offset is not None
        self._carried = list(like.carried or {})
        self._bags = [
            Bag(bag.values.new_empty(0), torch.zeros(capacity + 1, dtype=torch.int64)) for bag in like.inputs.bags
        ]

    def put(self, batch: Batch, rows: Tensor) -> None:
        """Copies inputs ``rows`` (int64 [K]) of a batch; there must be room.

        Raises:
            ConfigError: The batch is of another kind than those before it.
        """
        if (batch.time is not None) != self._has_time:
            raise ConfigError("cannot join batches with and without time")
        if (batch.logit_offset is not None) != self._has_logit_offset:
            raise ConfigError("cannot join batches with and without logit offsets")
        if list(batch.carried or {}) != self._carried or len(batch.inputs.bags) != len(self._bags):
            raise ConfigError("cannot join batches that carry different things")
        self._columns.put(_columns(batch), rows, self.count)
        for i, (bag, to) in enumerate(zip(batch.inputs.bags, self._bags, strict=True)):
            self._bags[i] = Bag(append_bags(*bag, rows, *to, self.count), to.offsets)
        self.count += rows.numel()

    def batch(self) -> Batch:
        """What was put in, as views."""
        dense, ids, labels, index, weights, *others = (tensor[: self.count] for tensor in self._to)
        time = others.pop(0) if self._has_time else None
        logit_offset = others.pop(0) if self._has_logit_offset else None
        carried = dict(zip(self._carried, others, strict=True)) or None
        bags = tuple(bag.narrow(0, self.count) for bag in self._bags)
        return Batch(Inputs(dense, ids, bags), labels, index, weights, time, carried, logit_offset)


def _columns(batch: Batch) -> list[Tensor]:
    columns = [batch.inputs.dense, batch.inputs.ids, batch.labels, batch.index, batch.weights]
    columns += [column for column in (batch.time, batch.logit_offset) if column is not None]
    return [*columns, *(batch.carried or {}).values()]


class Packer:
    """A queue of inputs: some of each batch go in, batches of one size come out, in order."""

    def __init__(self) -> None:
        self._full: deque[Batch] = deque()
        self._filling: _Filling | None = None
        self.waiting = 0
        """Inputs in the queue."""

    def add(self, batch: Batch, rows: Tensor, size: int) -> None:
        """Appends copies of some of a batch's inputs.

        Args:
            batch: Where they are.
            rows: int64 [K], which.
            size: Inputs of the batches that come out; the same in every call.

        Raises:
            ConfigError: The batch is of another kind than those that wait.
        """
        done = 0
        while done < rows.numel():
            filling = self._filling = self._filling or _Filling(batch, size)
            part = rows[done : done + size - filling.count]
            filling.put(batch, part)
            done += part.numel()
            self.waiting += part.numel()
            if filling.count == size:
                self._full.append(filling.batch())
                self._filling = None

    def take(self) -> Batch | None:
        """The first full batch, or None if there is none."""
        if not self._full:
            return None
        batch = self._full.popleft()
        self.waiting -= len(batch)
        return batch

    def rest(self) -> Batch | None:
        """All inputs that wait, or None if there are none."""
        if not self.waiting:
            return None
        batch = Batch.concat(self._waiting())
        self._full.clear()
        self._filling = None
        self.waiting = 0
        return batch

    def _waiting(self) -> list[Batch]:
        return [*self._full, *(() if self._filling is None else (self._filling.batch(),))]

    def state_dict(self) -> dict[str, Any]:
        """The inputs that wait, as tensors; empty if there are none."""
        if not self.waiting:
            return {}
        batch = Batch.concat(self._waiting())
        state: dict[str, Any] = {
            "dense": batch.inputs.dense.clone(),
            "ids": batch.inputs.ids.clone(),
            "bags": [{"values": bag.values.clone(), "offsets": bag.offsets.clone()} for bag in batch.inputs.bags],
            "labels": batch.labels.clone(),
            "index": batch.index.clone(),
            "weights": batch.weights.clone(),
        }
        if batch.time is not None:
            state["time"] = batch.time.clone()
        if batch.logit_offset is not None:
            state["logit_offset"] = batch.logit_offset.clone()
        if batch.carried is not None:
            state["carried"] = {name: column.clone() for name, column in batch.carried.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any], size: int | None) -> None:
        """Takes over the inputs of a state in place of its own, for batches of ``size`` (None: of no inputs yet)."""
        self._full.clear()
        self._filling = None
        self.waiting = 0
        if not state or size is None:
            return
        _check_kinds(state)
        time: Tensor | None = state.get("time")
        bags = tuple(Bag(bag["values"], bag["offsets"]) for bag in state["bags"])
        batch = Batch(
            inputs=Inputs(state["dense"], state["ids"], bags),
            labels=state["labels"],
            index=state["index"],
            weights=state["weights"],
            time=time,
            carried=state.get("carried"),
            logit_offset=state.get("logit_offset"),
        )
        self.add(batch, torch.arange(len(batch)), size)


def _check_kinds(state: Mapping[str, Any]) -> None:
    """Whether the columns of a state are as many as its inputs, and of the types that compiled code takes."""
    size = len(state["index"])
    check_inputs(state["ids"], [(bag["values"], bag["offsets"]) for bag in state["bags"]], size)
    kinds = dict.fromkeys(("labels", "weights", "logit_offset"), torch.float32)
    for name, dtype in {**kinds, "index": torch.int64, "time": torch.int64}.items():
        if name in state:
            checked_tensor(state[name], f"waiting {name}", (size,), dtype)
    dense: Tensor = state["dense"]
    others = [dense, *state.get("carried", {}).values()]
    if dense.dtype != torch.float32 or dense.dim() != 2 or any(len(column) != size for column in others):
        raise ConfigError("the state's waiting inputs have columns of another length or type")
