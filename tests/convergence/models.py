"""Twins: one model with torch's embedding modules and one with ours, and the batches that both see."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slipstream.embedding import convert

Data = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Model(nn.Module):
    """Three tables: ids with padding, two features of one table, bags by mean; with duplicates and empty bags."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.items = nn.Embedding(50, 8, padding_idx=3, sparse=sparse)
        self.users = nn.Embedding(20, 8, sparse=sparse)
        self.tags = nn.EmbeddingBag(7, 8, mode="mean", sparse=sparse)
        for table in (self.items, self.users, self.tags):
            nn.init.normal_(table.weight, std=0.2)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, ids: Tensor, users: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        pair = self.users(users)
        parts = [self.items(ids).mean(1), pair[:, 0], pair[:, 1], self.tags(values, offsets)]
        return self.head(torch.cat(parts, dim=1)).squeeze(1)

    def tables(self) -> list[nn.Parameter]:
        return [self.items.weight, self.users.weight, self.tags.weight]

    def dense(self) -> list[nn.Parameter]:
        return list(self.head.parameters())


def twins(sparse: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Model, Model]:
    torch.manual_seed(0)
    plain = Model(sparse).to(dtype)
    ours = copy.deepcopy(plain)
    convert(ours)
    return plain, ours


def batches(count: int, size: int = 16, dtype: torch.dtype = torch.float32) -> Iterator[Data]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = (50 * torch.rand(size, 3, generator=generator).square()).long()
        users = torch.randint(0, 20, (size, 2), generator=generator)
        lengths = torch.randint(0, 4, (size,), generator=generator)
        values = torch.randint(0, 7, (int(lengths.sum()),), generator=generator)
        labels = torch.randint(0, 2, (size,), generator=generator).to(dtype)
        yield ids, users, values, lengths.cumsum(0) - lengths, labels


def losses(model: nn.Module, data: Data) -> list[Tensor]:
    """Two losses over one forward pass."""
    *inputs, labels = data
    out = model(*inputs)
    return [nn.functional.binary_cross_entropy_with_logits(out, labels), 0.1 * nn.functional.softplus(-out).mean()]


def distance(one: Tensor, other: Tensor) -> float:
    """|one - other| relative to |one|."""
    return float((one - other).double().norm() / one.double().norm().clamp(min=1e-30))
