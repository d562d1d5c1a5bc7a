"""The GPU's kernels against their peers and against the bound that its memory's bandwidth sets. Under 10 minutes.

Tables have Criteo Terabyte's cardinalities, scaled to the card's free memory; ids are drawn by Zipf's law. Every system
has the card to itself (several sets of such tables do not fit one), runs until it is warm, and is timed by the card's
own events; results are compared with the reference first, and nothing is timed when they differ. Each part has a share
of the time that is left; what finds none is left out and named in the record's conditions.

The bound of a step is the bytes that it cannot avoid ÷ the bandwidth of a large copy on the same card: each distinct
row and its state read and written once for the update, each distinct row read once for the lookup, the output written
and its gradient read once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_options import PUBLIC
from slipstream.bench.gpu_check import largest_differences
from slipstream.bench.gpu_systems import LEARNING_RATE
from slipstream.bench.gpu_workload import CRITEO_TERABYTE_CARDINALITIES, GATED, ZIPF_EXPONENT, scaled, zipf_ids
from slipstream.bench.systems import EPS
from slipstream.errors import ConfigError, SlipstreamError
from slipstream.kernels import registry
from slipstream.report.record import Record
from slipstream.report.timing import summarise

MEMORY_SHARE = 0.75
"""Share of the card's free memory that tables and their optimizer's state may take."""
LEAST_SECONDS = 5.0
"""A part with less than that is left out."""
LEAST_ROUNDS = 3
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
        seconds: Time for everything.
        host_rows: Rows of all tables in host memory together.
        host_batches: Batches of different ids over them.
        data: Data sets of :mod:`slipstream.bench.frontier_data` on which policies are trained at every budget.
        samples: Samples of each; None: as the data set has it.
        train_batch: Samples of a step of these trainings.
        folder: Where the public data sets lie.
        cache: Where generated and prepared data goes.
    """

    device: torch.device
    dims: tuple[int, ...] = (16, 64, 128)
    batch_sizes: tuple[int, ...] = (8_192, 65_536)
    most_rows: int = sum(CRITEO_TERABYTE_CARDINALITIES)
    rounds: int = 12
    steps: int = 8
    seconds: float = 540.0
    host_rows: int = 4_000_000
    host_batches: int = 64
    data: tuple[str, ...] = ("synthetic-wide", "globo-wide")
    samples: int | None = None
    train_batch: int = 4_096
    folder: Path = PUBLIC
    cache: Path | None = None


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` leaves dimension 64 and Globo out, and takes few rounds and a third of the time. ``data``:
            the folder of the Globo clicks.

    Returns:
        ``ratios``, above 1 where ours is faster:

        - ``sparse_adam_dim16_batch8192`` … and the like for every peer, dimension and batch size; ``fbgemm_gated_…``
          with the gates on our side; ``gates_…``, our step without gates over that with them;
        - ``bound_…``, the time over that of the bound (less is better, 1 the best);
        - ``host_cached``, all rows through the bus over 10 % of them cached; ``host_bytes_saturation``, bytes over the
          bus in a training with saturation's gates over those without (less is better);
        - ``dlrm_torch``, ``dlrm_gates``, a whole step;
        - ``frontier_DATA_POLICY``, time that whole trainings save at an AUC within 0.001.

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
    plan = Plan(device, cache=options.cache, folder=options.data or PUBLIC)
    if options.quick:
        plan = replace(plan, dims=(16, 128), rounds=5, steps=4, seconds=180.0, data=("synthetic-wide",))
    return measure(plan, seed=options.seed, quick=options.quick)


class Part(NamedTuple):
    """A part of the measurement."""

    name: str
    weight: float
    """Its share of the time, beside the others' that are still to come."""
    measure: Callable[[], object]


def measure(plan: Plan, *, seed: int = 0, quick: bool = False) -> Record:
    """Measure a plan."""
    began = perf_counter()
    bench = Bench(plan, seed)
    record = bench.record
    record.conditions |= {"quick": quick, "accesses_gated": GATED, "unit": "seconds a step, or of a copy"}
    record.quality |= largest_differences(plan.device)
    worst = max(record.quality.values())
    if not worst <= 1e-4:
        raise ConfigError(f"the kernels differ from the reference by {worst:.1e}: {record.quality}")
    bench.bandwidth = _bandwidth(bench)
    record.conditions["copy_bandwidth_bytes_per_second"] = round(bench.bandwidth)
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        parts = _parts(bench, plan.cache or Path(temporary))
        while parts:
            part, left = parts[0], began + plan.seconds - perf_counter()
            share = left * part.weight / sum(other.weight for other in parts)
            parts = parts[1:]
            if share < min(LEAST_SECONDS, plan.seconds / 100):
                record.conditions[f"missing_{part.name}"] = "no time was left"
                continue
            bench.until = perf_counter() + share
            try:
                part.measure()
            except (torch.OutOfMemoryError, SlipstreamError) as error:
                record.conditions[f"missing_{part.name}"] = str(error).splitlines()[0]
    record.conditions["seconds"] = round(perf_counter() - began, 1)
    return record


def _parts(bench: Bench, folder: Path) -> list[Part]:
    """What is measured, the most telling first."""
    from slipstream.bench import gpu_host, gpu_model, gpu_tables, gpu_trainings

    plan = bench.plan
    dims, sizes = sorted(plan.dims, reverse=True), sorted(plan.batch_sizes, reverse=True)
    largest, *others = [(dim, size) for dim in dims for size in sizes]
    return [
        Part("tables", 4, lambda: gpu_tables.embeddings(bench, *largest)),
        Part("host", 2, lambda: gpu_host.cached(bench, dims[0], sizes[-1])),
        Part("model", 3, lambda: gpu_model.dlrm(bench, dim=dims[0], size=sizes[-1])),
        *(Part(f"frontier_{name}", 4, lambda n=name: gpu_trainings.frontier(bench, n, folder)) for name in plan.data),
        Part("host_bytes", 2, lambda: gpu_trainings.bytes_over_the_bus(bench, plan.data[0], folder)),
        *(Part(f"tables_{d}_{s}", 2, lambda d=d, s=s: gpu_tables.embeddings(bench, d, s)) for d, s in others),
        *(Part(f"dense_{dim}", 0.5, lambda d=dim: gpu_tables.dense(bench, d, sizes[-1])) for dim in dims),
    ]


def _bandwidth(bench: Bench) -> float:
    """Bytes a second, read and written, of a large copy."""
    plan = bench.plan
    size = 1 << 31 if plan.device.type == "cuda" else 1 << 22
    source = torch.empty(size, dtype=torch.uint8, device=plan.device).random_()
    target = torch.empty_like(source)
    seconds = timed(bench, lambda _: target.copy_(source))
    return 2 * size / summarise(seconds)["p50"]


def timed(bench: Bench, step: Callable[[int], object], limit: float = 20.0) -> list[float]:
    """Seconds a step, ``rounds`` times or until the limit, once it is warm.

    By the card's events; on the CPU by the clock.

    Args:
        bench: Whose plan is followed.
        step: Called with 0, 1, …
        limit: Seconds after which no round begins but the first few.
    """
    plan, until, number = bench.plan, perf_counter() + limit, 0
    for number in range(max(plan.steps, BATCHES)):
        step(number)
    seconds: list[float] = []
    while len(seconds) < plan.rounds and (len(seconds) < LEAST_ROUNDS or perf_counter() < until):
        first, number = number + 1, number + plan.steps
        if plan.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for each in range(first, number + 1):
                step(each)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1_000 / plan.steps)
        else:
            start = perf_counter()
            for each in range(first, number + 1):
                step(each)
            seconds.append((perf_counter() - start) / plan.steps)
    return seconds


class Bench:
    """What was measured so far, and until when (``until``, by ``perf_counter``) the part that runs may."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed, self.bandwidth, self.until = plan, seed, 1.0, 0.0
        name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "none: a trial on the CPU"
        self.record = Record(
            name="gpu",
            dataset=f"{len(CRITEO_TERABYTE_CARDINALITIES)} tables with Criteo Terabyte's cardinalities, scaled to the "
            f"card; Zipf {ZIPF_EXPONENT}",
            conditions={"gpu": name, "learning_rate": LEARNING_RATE, "eps": EPS},
        )
        self.record.versions |= _versions()

    def rows(self, dim: int, state: int) -> tuple[int, ...]:
        """The largest tables that fit the card's share with ``state`` elements of optimizer state a row."""
        if self.plan.device.type != "cuda":
            return scaled(self.plan.most_rows)
        free, _ = torch.cuda.mem_get_info(self.plan.device)
        return scaled(min(self.plan.most_rows, int(free * MEMORY_SHARE) // (4 * (dim + state))))

    def limit(self, systems: int) -> float:
        """Seconds for each of so many systems in what is left of the part's time; their building is not in it."""
        return max(self.until - perf_counter(), 0.0) / systems

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
