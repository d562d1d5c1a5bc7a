"""A small training on synthetic data, for policies to be watched in."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slipstream import optim
from slipstream.data.batch import Batch, Inputs
from slipstream.embedding import Embedding
from slipstream.policies.base import Policy
from slipstream.policies.skipper import Skipper
from slipstream.testing.watch import Watched, check


def synthetic(samples: int, rows: int, seed: int) -> Batch:
    """Two one-hot features of skewed popularity, a dense column, a time, and labels that can be learned."""
    draws = torch.Generator().manual_seed(seed)
    ids = (rows * torch.rand(samples, 2, generator=draws) ** 3).int()
    taste = torch.randn(2, rows, generator=draws)
    logits = taste[0, ids[:, 0].long()] + taste[1, ids[:, 1].long()]
    index = torch.arange(samples)
    return Batch(
        Inputs(torch.randn(samples, 1, generator=draws), ids),
        labels=(torch.rand(samples, generator=draws) < torch.sigmoid(2 * logits)).float(),
        index=index,
        weights=torch.ones(samples),
        time=1_700_000_000 + 10 * index,
    )


class _Model(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.user = Embedding(rows, 8)
        self.item = Embedding(rows, 8)
        self.top = nn.Linear(17, 1)

    def forward(self, inputs: Inputs) -> Tensor:
        vectors = [self.user(inputs.ids[:, 0]), self.item(inputs.ids[:, 1]), inputs.dense]
        return self.top(torch.cat(vectors, dim=1)).squeeze(1)


class Data:
    """The samples as ``Policy.plan`` may read them."""

    def __init__(self, batch: Batch, batch_size: int) -> None:
        self._batch, self.batch_size = batch, batch_size

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self._batch)

    def take(self, positions: Tensor) -> Batch:
        """The samples at some positions."""
        return self._batch.select(positions)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All of them, in order."""
        for start in range(0, self.num_samples, batch_size):
            yield self._batch.narrow(start, min(start + batch_size, self.num_samples))


class Run:
    """One training."""

    def __init__(self, policy: Policy, data: Batch, batch_size: int, rows: int, seed: int) -> None:
        check(bool(policy.name), type(policy).__name__, "has no name")
        self.policy = Watched(policy)
        self.policy.warm_up()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _Model(rows)
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01)
        self.skipper = Skipper(
            self.model,
            self.policy,
            batch_size=batch_size,
            seed=seed,
            total_samples=len(data),
            adds_logit_offset=True,
        )
        self.pieces = Data(data, batch_size)
        order = self.skipper.plan(self.pieces)
        if order is not None:
            self.pieces = Data(data.select(order), batch_size)
        self.trace: list[Tensor] = []
        self._passed = 0

    def train(self, pieces: int | None = None) -> None:
        """The next pieces of the data, or all that are left."""
        batches = list(self.pieces.batches(self.pieces.batch_size))[self._passed :]
        batches = batches if pieces is None else batches[:pieces]
        for batch in batches:
            for kept in self.skipper.push(batch):
                self._step(kept)
        self._passed += len(batches)

    def _step(self, batch: Batch) -> None:
        self.trace.append(batch.index.clone())
        self.optimizer.zero_grad()
        logits = self.model(batch.inputs)
        logits = logits if batch.logit_offset is None else logits + batch.logit_offset
        losses = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        self.skipper.observe(batch, losses)
        (losses * batch.weights).mean().backward()
        self.optimizer.step()

    def gates(self) -> dict[str, Tensor]:
        """The gates by table."""
        return {name: table.gate for name, table in self.skipper.tables.items() if table.gate is not None}

    def work(self) -> list[int]:
        """Inputs seen and kept, lookups and skipped updates."""
        tables = self.skipper.tables.values()
        lookups, skipped = sum(table.lookups for table in tables), sum(table.skipped for table in tables)
        return [self.skipper.inputs_seen, self.skipper.inputs_kept, lookups, skipped]

    def share_since(self, before: list[int]) -> float:
        """Inputs kept times row updates done, as a share of all."""
        seen, kept, lookups, skipped = (now - then for now, then in zip(self.work(), before, strict=True))
        return kept / max(seen, 1) * (1.0 - skipped / max(lookups, 1))

    def state(self) -> dict[str, Any]:
        """Everything, copied."""
        parts = {"model": self.model, "optimizer": self.optimizer, "skipper": self.skipper}
        state: dict[str, Any] = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return state | {"steps": len(self.trace), "passed": self._passed}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over copies of a state."""
        state = copy.deepcopy(dict(state))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipper.load_state_dict(state["skipper"])
        self._passed = state["passed"]
