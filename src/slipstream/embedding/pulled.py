"""XDL-style tables: each batch pulls every row it needs once, and pushes one gradient a row back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from slipstream.embedding.collection import BagLike, PlainEmbeddingCollection


class PulledEmbeddingCollection(PlainEmbeddingCollection):
    """The tables of a parameter server in one process, over torch's operators. [ours], after XDL [paper].

    A forward pass de-duplicates the batch's ids table by table, pulls the distinct rows, and looks up in what was
    pulled; backward sums the gradients of a row's repeats there, and a sparse gradient of distinct rows is pushed to
    the table by any of torch's optimizers that take one. Synchronous; no network, no servers, no parity claimed.
    Arguments, interface and ``state_dict`` keys are those of :class:`PlainEmbeddingCollection`.
    """

    def forward(self, ids: Tensor, bags: Sequence[BagLike] = ()) -> Tensor:
        """See :meth:`EmbeddingCollection.forward`."""
        parts = [self._rows(name, ids[:, feature]) for feature, name in enumerate(self.one_hot_names)]
        for name, bag in zip(self.multi_hot_names, bags, strict=True):
            places, pulled = self._pull(name, bag.values)
            offsets, mode = bag.offsets.to(places.dtype), self.tables[name].mode
            parts.append(functional.embedding_bag(places, pulled, offsets, mode=mode, include_last_offset=True))
        return torch.stack(parts, dim=1)

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        places, pulled = self._pull(name, ids)
        return pulled.index_select(0, places)

    def _pull(self, name: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """For each id its place among the distinct rows, and those rows, [U, D]."""
        distinct, places = torch.unique(ids, return_inverse=True)
        return places, functional.embedding(distinct, self.tables[name].weight, sparse=True)
