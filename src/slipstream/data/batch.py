"""What travels from the data to the model: :class:`Inputs` inside a :class:`Batch`.

Letters of the shapes: ``B`` samples in the batch, ``F`` one-hot features, ``N`` ids of one bag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels.inputs import select_bags


class Bag(NamedTuple):
    """A multi-hot feature of ``B`` samples, laid out as for ``EmbeddingBag(include_last_offset=True)``.

    Sample ``b`` holds ``values[offsets[b]:offsets[b + 1]]``; a bag may be empty::

        values  = [7, 2, 5]        sample 0: 7, 2
        offsets = [0, 2, 2, 3]     sample 1: nothing, sample 2: 5
    """

    values: Tensor
    """int32 ``[N]``, row ids in the feature's table."""
    offsets: Tensor
    """int64 ``[B + 1]``, begins at 0 and ends at ``N``."""

    def select(self, rows: Tensor) -> Bag:
        """The bags of the samples ``rows`` (int64 ``[K]``), in that order."""
        return Bag(*select_bags(self.values, self.offsets, rows))

    def narrow(self, start: int, stop: int) -> Bag:
        """The bags of the samples ``start`` to ``stop``; ``values`` is a view."""
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Bag(self.values[first:last], offsets - first if first else offsets)


class Inputs(NamedTuple):
    """What a model's ``forward`` takes."""

    dense: Tensor
    """float32 ``[B, n_dense]``; ``n_dense`` may be 0."""
    ids: Tensor
    """int32 ``[B, F]``, the row id in each one-hot feature's table."""
    bags: tuple[Bag, ...] = ()
    """One per multi-hot feature."""


@dataclass(slots=True)
class Batch:
    """Some samples with their labels.

    Batches of a store are on the CPU and may be views of a memory map: do not write into them.
    """

    inputs: Inputs
    """The features."""
    labels: Tensor
    """float32 ``[B]``."""
    index: Tensor
    """int64 ``[B]``, the sample's position in its store.

    Policies hash it, so a decision does not depend on how samples are batched.
    """
    weights: Tensor
    """float32 ``[B]``, the weight of each sample's loss; ones unless an input policy set them."""
    time: Tensor | None = None
    """int64 ``[B]``, unix seconds, or None when the data has no time."""
    carried: dict[str, Tensor] | None = None
    """Tensors ``[B, ...]`` by name that travel with the samples, for models that take other things than ``inputs``."""
    logit_offset: Tensor | None = None
    """float32 ``[B]``, added to the logits in the loss, never in a prediction: what an input policy's choice by label
    made of the odds. None: nothing, and the weights correct for what was left out."""

    def __len__(self) -> int:
        return self.labels.numel()

    def _each(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        inputs = self.inputs
        bags = tuple(Bag(fn(bag.values), fn(bag.offsets)) for bag in inputs.bags)
        time = None if self.time is None else fn(self.time)
        carried = None if self.carried is None else {name: fn(column) for name, column in self.carried.items()}
        logit_offset = None if self.logit_offset is None else fn(self.logit_offset)
        columns = fn(self.labels), fn(self.index), fn(self.weights), time, carried, logit_offset
        return Batch(Inputs(fn(inputs.dense), fn(inputs.ids), bags), *columns)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same samples on a device; tensors that are there already are not copied.

        Args:
            device: Where to.
            non_blocking: Do not wait for the copy; needs pinned memory (see :meth:`pin_memory`) to have an effect.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same samples in page-locked memory, from which a GPU copies by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        found: list[Tensor] = []
        self._each(lambda tensor: found.append(tensor) or tensor)
        return found

    def select(self, rows: Tensor) -> Batch:
        """The samples ``rows``: int64 positions ``[K]`` (any order, repeats allowed) or a bool mask ``[B]``. Copies."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        return Batch(
            Inputs(
                self.inputs.dense.index_select(0, rows),
                self.inputs.ids.index_select(0, rows),
                tuple(bag.select(rows) for bag in self.inputs.bags),
            ),
            self.labels.index_select(0, rows),
            self.index.index_select(0, rows),
            self.weights.index_select(0, rows),
            None if self.time is None else self.time.index_select(0, rows),
            None if self.carried is None else {name: c.index_select(0, rows) for name, c in self.carried.items()},
            None if self.logit_offset is None else self.logit_offset.index_select(0, rows),
        )

    def narrow(self, start: int, stop: int) -> Batch:
        """The samples ``start`` to ``stop`` as views."""
        return Batch(
            Inputs(
                self.inputs.dense[start:stop],
                self.inputs.ids[start:stop],
                tuple(bag.narrow(start, stop) for bag in self.inputs.bags),
            ),
            self.labels[start:stop],
            self.index[start:stop],
            self.weights[start:stop],
            None if self.time is None else self.time[start:stop],
            None if self.carried is None else {name: column[start:stop] for name, column in self.carried.items()},
            None if self.logit_offset is None else self.logit_offset[start:stop],
        )

    def split(self, n: int) -> tuple[Batch, Batch]:
        """The first ``n`` samples and the rest, both views.

        Raises:
            ConfigError: ``n`` is not between 0 and the number of samples.
        """
        if not 0 <= n <= len(self):
            raise ConfigError(f"cannot split a batch of {len(self)} samples after {n}")
        return self.narrow(0, n), self.narrow(n, len(self))

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """One batch of the samples of all, in order. A single batch is returned as it is.

        Raises:
            ConfigError: There is no batch, only some have a time or logit offsets, or they carry different things.
        """
        if not batches:
            raise ConfigError("concat needs at least one batch")
        if len(batches) == 1:
            return batches[0]
        times = [batch.time for batch in batches if batch.time is not None]
        if len(times) not in (0, len(batches)):
            raise ConfigError("cannot join batches with and without time")
        logit_offset = [batch.logit_offset for batch in batches if batch.logit_offset is not None]
        if len(logit_offset) not in (0, len(batches)):
            raise ConfigError("cannot join batches with and without logit offsets")
        carried = [batch.carried or {} for batch in batches]
        if any(part.keys() != carried[0].keys() for part in carried):
            raise ConfigError("cannot join batches that carry different things")
        inputs = [batch.inputs for batch in batches]
        return Batch(
            Inputs(
                torch.cat([part.dense for part in inputs]),
                torch.cat([part.ids for part in inputs]),
                tuple(_concat_bags([part.bags[i] for part in inputs]) for i in range(len(inputs[0].bags))),
            ),
            torch.cat([batch.labels for batch in batches]),
            torch.cat([batch.index for batch in batches]),
            torch.cat([batch.weights for batch in batches]),
            torch.cat(times) if times else None,
            {name: torch.cat([part[name] for part in carried]) for name in carried[0]} or None,
            torch.cat(logit_offset) if logit_offset else None,
        )


def _concat_bags(bags: Sequence[Bag]) -> Bag:
    shifted, total = [bags[0].offsets[:1]], 0
    for bag in bags:
        shifted.append(bag.offsets[1:] + total)
        total += bag.values.numel()
    return Bag(torch.cat([bag.values for bag in bags]), torch.cat(shifted))
