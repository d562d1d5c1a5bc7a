"""Kept inputs wait here until they fill a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slipstream.data.batch import Bag, Batch, Inputs


class Packer:
    """A queue of inputs: pieces of any size go in, batches of the size asked for come out, in order."""

    def __init__(self) -> None:
        self._pieces: list[Batch] = []
        self.waiting = 0
        """Inputs in the queue."""

    def add(self, piece: Batch) -> None:
        """Appends inputs."""
        if len(piece):
            self._pieces.append(piece)
            self.waiting += len(piece)

    def take(self, size: int) -> Batch:
        """The first ``size`` inputs; there must be as many."""
        taken: list[Batch] = []
        missing = size
        while missing:
            piece = self._pieces[0]
            if len(piece) > missing:
                piece, self._pieces[0] = piece.split(missing)
            else:
                self._pieces.pop(0)
            taken.append(piece)
            missing -= len(piece)
        self.waiting -= size
        return Batch.concat(taken)

    def rest(self) -> Batch | None:
        """All inputs that wait, or None if there are none."""
        return self.take(self.waiting) if self.waiting else None

    def state_dict(self) -> dict[str, Any]:
        """The inputs that wait, as tensors; empty if there are none."""
        if not self.waiting:
            return {}
        batch = Batch.concat(self._pieces)
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
        if batch.carried is not None:
            state["carried"] = {name: column.clone() for name, column in batch.carried.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the inputs of a state in place of its own."""
        self._pieces = []
        self.waiting = 0
        if not state:
            return
        time: Tensor | None = state.get("time")
        bags = tuple(Bag(bag["values"], bag["offsets"]) for bag in state["bags"])
        self.add(
            Batch(
                inputs=Inputs(state["dense"], state["ids"], bags),
                labels=state["labels"],
                index=state["index"],
                weights=state["weights"],
                time=time,
                carried=state.get("carried"),
            )
        )
