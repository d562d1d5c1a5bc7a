"""Benchmarks, each against its peers in one process: ``slipstream bench NAME [--quick] [--json FILE]``.

A benchmark is a module with ``run(options: BenchOptions) -> Record``. Peers alternate with ours round by round, so
that a slow phase of the machine hits all alike; ratios are medians of the ratios within a round, above 1 where ours
is faster. Quality stands beside speed in the same record.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.bench.continue_options import ContinueOptions
from slipstream.bench.drift_options import DriftOptions
from slipstream.bench.frontier_options import FrontierOptions
from slipstream.bench.guard_options import GuardOptions
from slipstream.bench.scale_options import ScaleOptions
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.report.record import Record

__all__ = [
    "BENCHES",
    "BenchOptions",
    "ContinueOptions",
    "DriftOptions",
    "FrontierOptions",
    "GuardOptions",
    "ScaleOptions",
    "run",
]

BENCHES: dict[str, str] = {
    "kernels": "embedding forward + backward + update: FBGEMM, torch sparse Adagrad, SparseAdam",
    "step": "a whole DLRM step in the Criteo Kaggle configuration: torch EmbeddingBag(sparse=True) + SGD",
    "gates": "the row update with 80 % of the accesses gated against none gated",
    "shared": "two trainings on the same cores against one; kernels between matmuls against alone",
    "checks": "what bounds checks, checks for finite numbers and checkpoints cost",
    "loader": "batches from the column store",
    "prepare": "a Criteo TSV into the column store: rows a second and peak memory",
    "globo": "prequential training on Globo clicks",
    "gpu": "the GPU's kernels and a DLRM step: torch sparse and dense, FBGEMM, the memory's bandwidth",
    "frontier": "quality against time: policy x budget x seed, with full training and random skipping",
    "drift": "fading scores, thaw and repeated decisions against static ones, while the data drifts",
    "continue": "going on with each new slice of a log against retraining on everything, and against a stale model",
    "row_share": "where skipping row updates can pay: their share of a step, and the time row policies save",
    "cache_bytes": "tables in host memory, 10 % of their rows on the card: what row policies keep from the bus",
    "guard": "the guard's promise: guarded training against full training of the same seed, on six data sets",
    "fidelity": "published Slipstream and FAE beside order alone and as many inputs dropped at random",
    "ranks": "two ranks over 1 Gbit/s and 20 ms: bytes and time of TorchRec's tables, with and without skipping",
    "limit": "the row update and a DLRM step: the machine's own memory bandwidth and matrix products",
    "scale": "cost per sample against rows, samples, features and positives; loader and policies as share of a step",
    "profile_step": "where the time of a training step goes, by torch's profiler and Python's",
    "synthetic_fit": "the synthetic generator against what is published of Criteo Kaggle",
}
"""Name of each benchmark (and of its module in this package, but for keywords), with what it measures."""
MODULES = {"continue": "continuing"}
"""Modules that are not named as their benchmark."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What every benchmark takes.

    Attributes:
        quick: Fewer and smaller measurements: under 40 s once the kernels are compiled, enough to see that it works,
            not to quote.
        threads: Threads to compute with; None leaves torch's default.
        data: The input of benchmarks that read real data; None: where the benchmark's documentation says.
        cache: Folder for prepared data sets and other large intermediate files, made if need be; None: a
            temporary folder.
        seed: Seed of everything drawn.
        frontier: What ``frontier`` is to measure; None: its defaults.
        drift: What ``drift`` is to measure; None: its defaults.
        guard: What ``guard`` is to measure; None: its defaults.
        continuing: What ``continue`` is to measure; None: its defaults.
        scale: What ``scale`` is to measure; None: its defaults.
    """

    quick: bool = False
    threads: int | None = None
    data: Path | None = None
    cache: Path | None = None
    seed: int = 0
    frontier: FrontierOptions | None = None
    drift: DriftOptions | None = None
    guard: GuardOptions | None = None
    continuing: ContinueOptions | None = None
    scale: ScaleOptions | None = None


def run(name: str, options: BenchOptions | None = None) -> Record:
    """Run a benchmark.

    Args:
        name: One of ``BENCHES``.
        options: Its options.

    Returns:
        What was measured.

    Raises:
        ConfigError: If there is no such benchmark, or the number of threads is not positive.
    """
    if name not in BENCHES:
        raise ConfigError(f"no benchmark named {name!r}", remedy=f"choose one of {', '.join(BENCHES)}")
    options = options or BenchOptions()
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {options.threads}")
        import torch

        torch.set_num_threads(options.threads)
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    return import_module(f"slipstream.bench.{MODULES.get(name, name)}").run(options)
