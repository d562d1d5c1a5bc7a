"""Tables in host memory with 10 % of their rows on the card, against reading all rows through the bus."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slipstream import optim
from slipstream.bench.gpu import Bench, timed
from slipstream.bench.gpu_systems import LEARNING_RATE
from slipstream.bench.gpu_tables import held
from slipstream.bench.gpu_workload import scaled, zipf_ids
from slipstream.bench.systems import EPS
from slipstream.embedding import CachedEmbeddingCollection, TableConfig
from slipstream.embedding.row_bytes import row_bytes

CACHED = 0.1
"""Share of the rows that the card holds."""


def cached(bench: Bench, dim: int, size: int) -> None:
    """With and without a cache, by the same code: without, every row of a step comes and goes back."""
    rows = scaled(min(bench.plan.host_rows, bench.plan.most_rows))
    found: dict[str, float] = {}
    for name, keeps in (("cached", True), ("all through the bus", False)):
        with held(lambda k=keeps: _Step(bench, rows, dim, size, keeps=k)) as step:
            seconds = timed(bench, step.step, bench.limit(2))
            moved = step.tables.bytes
            found[name] = bench.note(
                f"host memory, {name}",
                seconds,
                dim=dim,
                batch_size=size,
                bytes_per_step=round(moved.total / step.steps),
                share_on_the_card=round(moved.hits / (moved.hits + moved.misses), 4),
            )
    bench.record.conditions["rows_host"] = sum(rows)
    bench.record.ratios["host_cached"] = found["all through the bus"] / found["cached"]


class _Step:
    def __init__(self, bench: Bench, rows: Sequence[int], dim: int, size: int, *, keeps: bool) -> None:
        device = bench.plan.device
        draw = torch.Generator().manual_seed(bench.seed)
        self.ids = [zipf_ids(rows, size, draw) for _ in range(bench.plan.host_batches)]
        slots = max(int(sum(rows) * CACHED), self.ids[0].numel())  # a batch must fit, however few rows a trial has
        self.tables = CachedEmbeddingCollection(
            [TableConfig(f"c{number}", count, dim) for number, count in enumerate(rows)],
            budget_bytes=slots * row_bytes(dim, 2 * dim),
            device=device,
        )
        self.optimizer = optim.Adam(self.tables.parameters(), lr=LEARNING_RATE, eps=EPS)
        self.tables.attach(self.optimizer)
        self.grad = torch.randn(size, len(rows), dim, generator=draw).div_(size).to(device)
        self.keeps, self.steps = keeps, 0

    def step(self, number: int) -> None:
        """Forward, backward, update; the next batch's rows come meanwhile, where they stay."""
        if self.keeps:
            self.tables.look_ahead(self.ids[(number + 1) % len(self.ids)])
        self.tables(self.ids[number % len(self.ids)]).backward(self.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if not self.keeps:
            self.tables.cache.flush()
            self.tables.cache.forget()
