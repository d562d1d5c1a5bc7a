"""What a gated access saves: the row update with 80 % of the accesses gated against none gated. Dimension 64, Adam.

*Cold*: the least popular rows are frozen, up to 80 % of the accesses. *Hot*: the most popular ones are; they cost
less than their accesses, since a batch's duplicates are reduced to one update anyway. *Hot thinned*: policy
``subsampling`` leaves out as many lookups of popular rows as it can, up to 80 %, and still updates them. One set of
tables serves all; the gates are exchanged between the turns, outside the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from slipstream.bench import BenchOptions, workload
from slipstream.bench.rounds import ratio, row
from slipstream.bench.systems import EPS, Slipstream, fill
from slipstream.embedding import FROZEN, OPEN
from slipstream.policies import SubsamplingConfig
from slipstream.report.record import Record
from slipstream.staleness.subsampling import set_gates, subsampling_cut

DIM = 64
GATED = 0.8
"""Share of the accesses that is gated."""
LEARNING_RATE = 0.001


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` shrinks the tables to 1,000,000 rows and takes few rounds.

    Returns:
        ``ratios``: ``cold``, ``hot`` and ``thinned``, the time of ``optimizer.step()`` without gates over that with
        gates, and ``all_open``, the same for gates that are all open (what having gates costs). ``quality``: the share
        of the accesses that was skipped, counted by the tables.
    """
    from slipstream import optim

    total = 1_000_000 if options.quick else workload.TOTAL_ROWS
    rows = workload.cardinalities(total)
    batches = workload.zipf_batches(rows, batches=16 if options.quick else 64, seed=options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    size = workload.BATCH_SIZE
    grads = [torch.randn(size, len(rows) * DIM, generator=generator) / size for _ in range(4)]
    ours = Slipstream(rows, DIM, batches, grads, optimizer=lambda p: optim.Adam(p, lr=LEARNING_RATE, eps=EPS))
    fill(ours, seed=options.seed)
    tables = list(ours.collection.table_of.values())
    open_rows = [torch.full((count,), OPEN, dtype=torch.uint8) for count in rows]
    cold, hot = _gates(rows, batches)
    gates: dict[str, Sequence[Tensor | None]] = {
        "none gated": [None] * len(rows),
        "all open": open_rows,
        "cold gated": cold,
        "hot gated": hot,
        "hot thinned": _thinned(rows, batches),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in gates}
    skipped: dict[str, float] = {}
    rounds, steps = (6, 2) if options.quick else (40, 4)
    for number in range(len(batches)):  # state is written, pages are touched, kernels are compiled
        ours.step(number)
    step = 0
    for turn in range(rounds + 1):
        for kind, chosen in gates.items():
            for table, gate in zip(tables, chosen, strict=True):
                table.set_gate(gate)
                table.by_sample = kind == "hot thinned"
                table.lookups = table.skipped = 0
            _update_seconds(ours, step + steps)  # the optimizer prepares its tables anew, once for other gates
            spent = sum(_update_seconds(ours, step + i) for i in range(steps))
            if turn:  # the first warms up
                seconds[kind].append(spent / steps)
                skipped[kind] = sum(table.skipped for table in tables) / sum(table.lookups for table in tables)
        step += steps + 1
    record = Record(
        name="gates",
        dataset=workload.describe(rows),
        conditions={
            "quick": options.quick,
            "batch_size": size,
            "dim": DIM,
            "optimizer": "Adam",
            "accesses_gated": GATED,
            "unit": "seconds of optimizer.step(), forward and backward not counted",
            "threads": torch.get_num_threads(),
            **workload.shares(batches),
        },
        ratios={
            "cold": ratio(seconds["cold gated"], seconds["none gated"]),
            "hot": ratio(seconds["hot gated"], seconds["none gated"]),
            "thinned": ratio(seconds["hot thinned"], seconds["none gated"]),
            "all_open": ratio(seconds["all open"], seconds["none gated"]),
        },
        quality={f"share of accesses skipped, {kind}": round(share, 4) for kind, share in skipped.items()},
    )
    record.rows = [row(kind, values, dim=DIM) for kind, values in seconds.items()]
    return record


def _update_seconds(ours: Slipstream, number: int) -> float:
    """Time of the update alone in one step."""
    pooled = ours.collection(ours.ids[number % len(ours.ids)])
    pooled.backward(ours.grads[number % len(ours.grads)])
    start = perf_counter()
    ours.optimizer.step()
    spent = perf_counter() - start
    ours.optimizer.zero_grad(set_to_none=True)
    return spent


def _thinned(rows: Sequence[int], batches: Sequence[Tensor]) -> list[Tensor]:
    """Gates of policy ``subsampling`` at its default exponent for ``GATED`` of the accesses."""
    columns = torch.cat([batch.long() for batch in batches]).T
    scores = [torch.bincount(ids, minlength=count).float() for ids, count in zip(columns, rows, strict=True)]
    cut = subsampling_cut(scores, GATED, SubsamplingConfig().exponent)
    gates = [torch.full((count,), OPEN, dtype=torch.uint8) for count in rows]
    for gate, score in zip(gates, scores, strict=True):
        set_gates(gate, score, cut)
    return gates


def _gates(rows: Sequence[int], batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gates that freeze ``GATED`` of the accesses: the least popular rows of all tables, and the most popular."""
    counts = torch.cat(
        [torch.bincount(torch.cat([batch[:, f] for batch in batches]), minlength=count) for f, count in enumerate(rows)]
    )
    order = counts.argsort()
    kinds = []
    for ranked in (order, order.flip(0)):
        reached = counts[ranked].cumsum(0) <= GATED * float(counts.sum())
        gate = torch.full((len(counts),), OPEN, dtype=torch.uint8)
        gate[ranked[reached]] = FROZEN
        kinds.append([part.contiguous() for part in gate.split(list(rows))])
    return kinds[0], kinds[1]
