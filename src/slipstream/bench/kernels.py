"""Embedding kernels against their peers: forward, backward and update of 26 tables, nothing else.

Peers: FBGEMM's table-batched embeddings on the CPU (row-wise Adagrad), and one ``nn.EmbeddingBag(sparse=True)`` a
table under ``torch.optim.Adagrad`` and ``torch.optim.SparseAdam``. Every peer runs with all threads and with one,
and the ratio is against the faster. ``quality`` holds the largest difference between our weights and the peer's
after the same steps from the same start.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.bench import BenchOptions, workload
from slipstream.bench.rounds import best, compete, ratio, row
from slipstream.bench.systems import EPS, Fbgemm, MissingPeer, Slipstream, System, Torch, fill
from slipstream.report.record import Record

LEARNING_RATE = 0.01
DIMS = (16, 64, 128)
TORCH_DIMS = (16, 64)
"""Dimensions at which torch's optimizers run: at 128 two copies of tables, sums and moments outgrow a 24 GiB
machine."""

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(slots=True)
class _Bench:
    """The workload, and what was measured so far."""

    rows: Sequence[int]
    batches: list[Tensor]
    rounds: int
    steps_per_round: int
    seed: int
    record: Record
    missing: list[str] = field(default_factory=list)

    def grads(self, dim: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + dim)
        width = len(self.rows) * dim
        size = len(self.batches[0])
        return [torch.randn(size, width, generator=generator) / size for _ in range(4)]

    def ours(self, dim: int, grads: list[Tensor], optimizer: MakeOptimizer) -> Slipstream:
        return Slipstream(self.rows, dim, self.batches, grads, optimizer=optimizer)

    def duel(self, label: str, dim: int, ours: System, peer: System) -> None:
        """Check that both compute the same, time them in turn with all threads and one, and note everything."""
        fill(ours, seed=self.seed)
        fill(peer, seed=self.seed)
        # Every batch once: pages of state are touched, kernels compiled, and the weights comparable afterwards.
        for number in range(len(self.batches)):
            ours.step(number)
            peer.step(number)
        key = f"{label}_dim{dim}"
        self.record.quality[f"{key}_largest_weight_difference"] = _largest_difference(ours, peer)
        every = torch.get_num_threads()
        steps: dict[str, Callable[[int], object]] = {"ours": ours.step, "peer": peer.step}
        threads = {"ours": every, "peer": every}
        if every > 1:
            steps |= {"ours_one": ours.step, "peer_one": peer.step}
            threads |= {"ours_one": 1, "peer_one": 1}
        seconds = compete(steps, rounds=self.rounds, steps_per_round=self.steps_per_round, warm_up=1, threads=threads)
        peers = [name for name in steps if name.startswith("peer")]
        self.record.ratios[key] = ratio(seconds["ours"], seconds[best(seconds, peers)])
        if every > 1:
            self.record.ratios[f"{key}_one_thread"] = ratio(seconds["ours_one"], seconds["peer_one"])
        for name, values in seconds.items():
            system = "slipstream" if name.startswith("ours") else label
            against = {"against": label} if name.startswith("ours") else {}
            self.record.rows.append(row(system, values, dim=dim, threads=threads[name], **against))


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` shrinks the tables to 1,000,000 rows, leaves out dimension 128 and takes few rounds.

    Returns:
        ``ratios``: ``fbgemm_dim16`` … (row-wise Adagrad), ``torch_adagrad_dim16`` … (element-wise Adagrad on both
        sides), ``sparse_adam_dim16`` … (Adam on both sides); each again with ``_one_thread``, where both have one
        thread.
    """
    total = 1_000_000 if options.quick else workload.TOTAL_ROWS
    rows = workload.cardinalities(total)
    batches = workload.zipf_batches(rows, batches=16 if options.quick else 64, seed=options.seed)
    record = Record(
        name="kernels",
        dataset=workload.describe(rows),
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "batches": len(batches),
            "unit": "seconds a step of forward, backward and update, gradients of the output given",
            "threads": torch.get_num_threads(),
            "learning_rate": LEARNING_RATE,
            "eps": EPS,
            "peers": "fed in layouts of their own; ratios against the faster of all threads and one",
            **workload.shares(batches),
        },
    )
    bench = _Bench(rows, batches, 8 if options.quick else 60, 2 if options.quick else 4, options.seed, record)
    for dim in DIMS[:2] if options.quick else DIMS:
        _against_fbgemm(bench, dim)
        gc.collect()
        if dim in TORCH_DIMS[: 1 if options.quick else None]:
            _against_torch(bench, dim)
            gc.collect()
    if bench.missing:
        record.conditions["missing_peers"] = bench.missing
    return record


def _against_fbgemm(bench: _Bench, dim: int) -> None:
    from slipstream import optim

    grads = bench.grads(dim)
    try:
        peer = Fbgemm(bench.rows, dim, bench.batches, grads, lr=LEARNING_RATE)
    except MissingPeer as error:
        if str(error) not in bench.missing:
            bench.missing.append(str(error))
        return
    ours = bench.ours(dim, grads, lambda p: optim.RowwiseAdagrad(p, lr=LEARNING_RATE, eps=EPS))
    bench.duel("fbgemm", dim, ours, peer)


def _against_torch(bench: _Bench, dim: int) -> None:
    from slipstream import optim

    grads = bench.grads(dim)
    settings: dict[str, Any] = {"lr": LEARNING_RATE, "eps": EPS}
    duels: list[tuple[str, MakeOptimizer, MakeOptimizer]] = [
        ("torch_adagrad", lambda p: optim.Adagrad(p, **settings), lambda p: torch.optim.Adagrad(p, **settings)),
        ("sparse_adam", lambda p: optim.Adam(p, **settings), lambda p: torch.optim.SparseAdam(p, **settings)),
    ]
    for label, make_ours, make_peer in duels:
        ours = bench.ours(dim, grads, make_ours)
        peer = Torch(bench.rows, dim, bench.batches, grads, optimizer=make_peer)
        bench.duel(label, dim, ours, peer)
        del ours, peer
        gc.collect()


def _largest_difference(ours: System, peer: System) -> float:
    pairs = zip(ours.weights(), peer.weights(), strict=True)
    return max(float((mine - theirs).abs_().max()) for mine, theirs in pairs)
