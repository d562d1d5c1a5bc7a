"""A small model, batches with known numbers, and a policy with chosen probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.embedding import Embedding
from slipstream.policies import Policy


class TwoTables(nn.Module):
    """Two embeddings and a sum: the least that has tables."""

    def __init__(self, rows: int = 50, dim: int = 4) -> None:
        super().__init__()
        self.user = Embedding(rows, dim)
        self.item = Embedding(rows, dim)

    def forward(self, inputs: Inputs) -> Tensor:
        return (self.user(inputs.ids[:, 0]) * self.item(inputs.ids[:, 1])).sum(1)


class Chosen(Policy):
    """Keeps input i with the probability at place ``i % len(probabilities)``."""

    name = "chosen"
    skips_inputs = True

    def __init__(self, probabilities: list[float]) -> None:
        self.probabilities = torch.tensor(probabilities)

    def keep_probability(self, batch: Batch) -> Tensor:
        return self.probabilities[batch.index % len(self.probabilities)]


def make_batch(start: int, size: int, *, rows: int = 50, with_bag: bool = False, with_time: bool = True) -> Batch:
    """Inputs ``start … start + size − 1``; every value tells the input's number."""
    index = torch.arange(start, start + size)
    bags = ()
    if with_bag:
        lengths = index % 3
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        bags = (Bag(torch.repeat_interleave(index, lengths).int(), offsets),)
    return Batch(
        inputs=Inputs(
            dense=index[:, None].float(), ids=torch.stack([index % rows, index * 7 % rows], dim=1).int(), bags=bags
        ),
        labels=(index % 2).float(),
        index=index,
        weights=torch.ones(size),
        time=index * 10 if with_time else None,
    )


def pieces(total: int, size: int, **kwargs: bool) -> list[Batch]:
    """``total`` inputs in batches of ``size``."""
    return [make_batch(start, min(size, total - start), **kwargs) for start in range(0, total, size)]
