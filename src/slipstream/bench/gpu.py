"""The GPU's kernels against their peers and against the bound that its memory's bandwidth sets. Under 10 minutes.

Tables have Criteo Terabyte's cardinalities, scaled to the card's memory; ids are drawn by Zipf's law. Every system has
the card to itself (several sets of such tables do not fit one), runs until it is warm, and is timed by the card's own
events; results are compared with the reference first, and nothing is timed when they differ.

The bound of a step is the bytes that it cannot avoid ÷ the bandwidth of a large copy on the same card: each distinct
row and its state read and written once for the update, each distinct row read once for the lookup, the output written
and its gradient read once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from slipstream.bench import BenchOptions
from slipstream.bench.gpu_check import largest_differences
from slipstream.bench.gpu_systems import LEARNING_RATE, FbgemmTables, MakeOptimizer, Ours, TorchTables
from slipstream.bench.gpu_workload import CRITEO_TERABYTE_CARDINALITIES, GATED, ZIPF_EXPONENT, scaled, zipf_ids
from slipstream.bench.systems import EPS, MissingPeer
from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.report.record import Record
from slipstream.report.timing import summarise

DENSE_ROWS = 2_000_000
"""Rows of all tables for torch's dense gradients, which pass over all of them in every step."""
MEMORY_SHARE = 0.55
"""Share of the card's memory that tables with the largest state (Adam's) may take."""
BATCHES = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        device: Where.
        dims: Elements of a row.
        batch_sizes: Samples of a step.
        most_rows: Rows of all tables together at most; the card's memory may allow fewer.
        rounds: Timings of each system.
        steps: Steps of a timing.
        model: Whether the whole DLRM step is measured.
    """

    device: torch.device
    dims: tuple[int, ...] = (16, 64, 128)
    batch_sizes: tuple[int, ...] = (8_192, 65_536)
    most_rows: int = sum(CRITEO_TERABYTE_CARDINALITIES)
    rounds: int = 12
    steps: int = 8
    model: bool = True


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` leaves dimension 64 out and takes few rounds.

    Returns:
        ``ratios``: ``sparse_adam_dim16_batch8192`` … and the like for every peer, dimension and batch size;
        ``fbgemm_gated_…`` with the gates on our side; ``bound_…``, the time over that of the bound (here less is
        better, 1 the best); ``gates_…``, our step without gates over that with them; ``dlrm_…``.

    Raises:
        ConfigError: There is no GPU or no Triton, or the kernels' results are not the reference's.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "slipstream bench gpu needs a GPU, and torch sees none", remedy="run it where torch.cuda.is_available()"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if registry.backend_name(torch.empty(0, device=device)) != "cuda":
        raise ConfigError("slipstream bench gpu needs Triton", remedy="pip install triton")
    plan = Plan(device, dims=(16, 128), rounds=5, steps=4) if options.quick else Plan(device)
    return measure(plan, seed=options.seed, quick=options.quick)


def measure(plan: Plan, *, seed: int = 0, quick: bool = False) -> Record:
    """Measure a plan."""
    bench = _Bench(plan, seed)
    record = bench.record
    record.conditions |= {"quick": quick, "accesses_gated": GATED, "unit": "seconds a step, or of a copy"}
    record.quality |= largest_differences(plan.device)
    worst = max(record.quality.values())
    if not worst <= 1e-4:
        raise ConfigError(f"the kernels differ from the reference by {worst:.1e}: {record.quality}")
    bench.bandwidth = _bandwidth(plan)
    record.conditions["copy_bandwidth_bytes_per_second"] = round(bench.bandwidth)
    for dim in plan.dims:
        for size in plan.batch_sizes:
            bench.embeddings(dim, size)
        bench.dense(dim, plan.batch_sizes[0])
    if plan.model:
        from slipstream.bench.gpu_model import dlrm

        dlrm(bench, dim=128 if plan.device.type == "cuda" else plan.dims[0], size=plan.batch_sizes[0])
    return record


def _bandwidth(plan: Plan) -> float:
    """Bytes a second, read and written, of a large copy."""
    size = 1 << 31 if plan.device.type == "cuda" else 1 << 22
    source = torch.empty(size, dtype=torch.uint8, device=plan.device).random_()
    target = torch.empty_like(source)
    seconds = timed(plan, lambda _: target.copy_(source))
    return 2 * size / summarise(seconds)["p50"]


def timed(plan: Plan, step: Callable[[int], object]) -> list[float]:
    """Seconds a step, ``plan.rounds`` times, once it is warm: by the card's events, on the CPU by the clock."""
    for number in range(max(plan.steps, BATCHES)):
        step(number)
    seconds: list[float] = []
    for _ in range(plan.rounds):
        if plan.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for number in range(plan.steps):
                step(number)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1_000 / plan.steps)
        else:
            start = perf_counter()
            for number in range(plan.steps):
                step(number)
            seconds.append((perf_counter() - start) / plan.steps)
    return seconds


class _Bench:
    """What was measured so far."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed, self.bandwidth = plan, seed, 1.0
        name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "none: a trial on the CPU"
        self.record = Record(
            name="gpu",
            dataset=f"{len(CRITEO_TERABYTE_CARDINALITIES)} tables with Criteo Terabyte's cardinalities, scaled to the "
            f"card; Zipf {ZIPF_EXPONENT}",
            conditions={"gpu": name, "learning_rate": LEARNING_RATE, "eps": EPS},
        )
        self.record.versions |= _versions()

    def rows(self, dim: int) -> tuple[int, ...]:
        """The largest tables of which weights and Adam's state fit the card's share."""
        if self.plan.device.type != "cuda":
            return scaled(self.plan.most_rows)
        _, memory = torch.cuda.mem_get_info(self.plan.device)
        return scaled(min(self.plan.most_rows, int(memory * MEMORY_SHARE) // (dim * 4 * 3)))

    def batches(self, rows: Sequence[int], dim: int, size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Ids [B, F] and gradients [B, F, D] of a few steps."""
        draw = torch.Generator(self.plan.device).manual_seed(self.seed)
        ids = [zipf_ids(rows, size, draw) for _ in range(BATCHES)]
        shape = (size, len(rows), dim)
        grads = [torch.randn(shape, generator=draw, device=self.plan.device) / size for _ in range(2)]
        return ids, grads

    def note(self, system: str, seconds: list[float], **conditions: object) -> float:
        """Keep a system's timings; returns their median."""
        spread = summarise(seconds)
        self.record.rows.append({"system": system, **conditions, **spread})
        return spread["p50"]

    def embeddings(self, dim: int, size: int) -> None:
        """Forward, backward and update of the tables alone, ours and the peers'."""
        from slipstream import optim

        rows = self.rows(dim)
        ids, grads = self.batches(rows, dim, size)
        key = f"dim{dim}_batch{size}"
        self.record.conditions[f"rows_dim{dim}"] = sum(rows)
        distinct = sum(len(column.unique()) for column in ids[0].T)
        self.record.conditions[f"distinct_rows_per_lookup_{key}"] = round(distinct / ids[0].numel(), 4)
        settings: dict[str, Any] = {"lr": LEARNING_RATE, "eps": EPS}
        ours: dict[str, tuple[MakeOptimizer, int]] = {
            "Adam": (lambda p: optim.Adam(p, **settings), 2 * dim),
            "Adagrad": (lambda p: optim.Adagrad(p, **settings), dim),
            "RowwiseAdagrad": (lambda p: optim.RowwiseAdagrad(p, **settings), 1),
        }
        found: dict[str, float] = {}
        for name, (make, state) in ours.items():
            gates = {"": False, " gated": True} if name != "Adagrad" else {"": False}
            for suffix, gated in gates.items():
                with _system(lambda make=make: Ours(rows, dim, ids, grads, make, self.plan.device)) as system:
                    if gated:
                        system.gate(rows)
                    seconds = timed(self.plan, system.step)
                found[name + suffix] = self.note(f"slipstream {name}{suffix}", seconds, dim=dim, batch_size=size)
            lookups = ids[0].numel()
            moved = 4 * (2 * lookups * dim + 3 * distinct * dim + 2 * distinct * state)
            self.record.ratios[f"bound_{name}_{key}"] = found[name] / (moved / self.bandwidth)
            if name + " gated" in found:
                self.record.ratios[f"gates_{name}_{key}"] = found[name] / found[name + " gated"]
        peers: dict[str, tuple[str, Callable[[], Any]]] = {
            "sparse_adam": (
                "Adam",
                lambda: TorchTables(rows, dim, ids, grads, lambda p: torch.optim.SparseAdam(p, **settings)),
            ),
            "torch_adagrad": (
                "Adagrad",
                lambda: TorchTables(rows, dim, ids, grads, lambda p: torch.optim.Adagrad(p, **settings)),
            ),
            "fbgemm": ("RowwiseAdagrad", lambda: FbgemmTables(rows, dim, ids, grads)),
        }
        for label, (mine, make) in peers.items():
            try:
                with _system(make) as system:
                    seconds = timed(self.plan, system.step)
            except (MissingPeer, torch.OutOfMemoryError) as error:
                self.record.conditions[f"missing_{label}_{key}"] = str(error).splitlines()[0]
                continue
            theirs = self.note(label, seconds, dim=dim, batch_size=size)
            self.record.ratios[f"{label}_{key}"] = theirs / found[mine]
            if f"{mine} gated" in found:
                self.record.ratios[f"{label}_gated_{key}"] = theirs / found[f"{mine} gated"]

    def dense(self, dim: int, size: int) -> None:
        """Against torch's dense gradients, on tables small enough for them."""
        from slipstream import optim

        rows = scaled(min(DENSE_ROWS, self.plan.most_rows))
        ids, grads = self.batches(rows, dim, size)
        settings: dict[str, Any] = {"lr": LEARNING_RATE, "eps": EPS}
        make: MakeOptimizer = lambda p: optim.Adagrad(p, **settings)  # noqa: E731
        with _system(lambda: Ours(rows, dim, ids, grads, make, self.plan.device)) as system:
            ours = self.note("slipstream Adagrad, small tables", timed(self.plan, system.step), dim=dim)
        peer: MakeOptimizer = lambda p: torch.optim.Adagrad(p, **settings)  # noqa: E731
        with _system(lambda: TorchTables(rows, dim, ids, grads, peer, sparse=False)) as system:
            theirs = self.note("torch dense Adagrad, small tables", timed(self.plan, system.step), dim=dim)
        self.record.conditions["rows_dense"] = sum(rows)
        self.record.ratios[f"torch_dense_dim{dim}_batch{size}"] = theirs / ours


class _system:
    """A system while it is measured; its memory is free afterwards."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._system: Any = None

    def __enter__(self) -> Any:
        self._system = self._make()
        return self._system

    def __exit__(self, *_: object) -> None:
        vars(self._system).clear()
        self._system = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    from importlib import metadata

    def found() -> Iterator[tuple[str, str]]:
        for name in ("triton", "fbgemm-gpu"):
            try:
                yield name, metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        if torch.version.cuda:
            yield "cuda", torch.version.cuda

    return dict(found())
