"""Cost per sample against the data: how many samples pass, and how many of them are positive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.bench import BenchOptions, dlrm_step, workload
from slipstream.bench.rounds import row
from slipstream.bench.scale_options import ScaleOptions
from slipstream.data.batch import Batch, Inputs
from slipstream.data.store import Store, StoreWriter
from slipstream.data.synthetic import Generator, Samples, SyntheticConfig
from slipstream.models import DLRM, DLRMConfig
from slipstream.policies import Skipper, build_policy

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
"""Samples; the last with ``long``."""
LONG_BATCH = 8192
LONG_FEATURES = 4
LONG_ROWS = 1_000_000
"""Rows of all tables of the model that passes over the long data."""
PASSES = {100_000: 20, 1_000_000: 5}
"""Passes over short data, so that they are timed as often."""
BASE_RATES = (0.002, 0.02, 0.08, 0.25)
_HALVES = {"none": "all", "random": "random half", "importance": "importance half"}
"""Series by policy."""
_CHUNK = 500_000
_TENTHS = 10


def samples(options: BenchOptions, wanted: ScaleOptions, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Whole shuffled passes over stores of 10^5 to 10^7 (10^8) samples by a small DLRM (4 features, MLP of 32).

    The model is small so that the data weighs: its cost per sample is a small part of the Kaggle DLRM's. Ids are drawn
    anew for every sample; the spread is over tenths of a pass, whole short passes.
    """
    sizes = SIZES[:2] if options.quick else SIZES if wanted.long else SIZES[:3]
    found: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for size in sizes:
        begin = perf_counter()
        store = _store(folder / f"samples-{size}", size, options.seed)
        figures[f"samples: million samples a second written, {size:.0e}"] = round(
            size / (perf_counter() - begin) / 1e6, 2
        )
        model, optimizer = _small_model(store)
        passes = min(PASSES.get(size, 1), 2) if options.quick else PASSES.get(size, 1)
        batches = store.batches(LONG_BATCH, shuffle_seed=options.seed)
        if not found:  # kernels are compiled
            list(_pieces(batches, model, optimizer, size))
        seconds = [value for _ in range(passes) for value in _pieces(batches, model, optimizer, size)]
        found.append({**row("slipstream", seconds), "series": "training", "size": size})
        mebibytes = sum(file.stat().st_size for file in store.path.iterdir()) / 2**20
        figures[f"samples: MiB of the store, {size:.0e}"] = round(mebibytes, 1)
        _remove(store)
    return found, figures


def _store(path: Path, size: int, seed: int) -> Store:
    """Random samples; cubes lean to the small ids, as frequent values do."""
    rng = np.random.default_rng(seed)
    count = LONG_ROWS // LONG_FEATURES
    features = dlrm_step.features_of((count + 1,) * LONG_FEATURES)
    with StoreWriter(path, features) as writer:
        for start in range(0, size, _CHUNK):
            n = min(_CHUNK, size - start)
            ids = (rng.random((n, LONG_FEATURES), dtype=np.float32) ** 3 * count).astype(np.int32) + 1
            writer.append(np.minimum(ids, count), np.empty((n, 0), np.float32), rng.random(n, dtype=np.float32) < 0.25)
        return writer.commit({"format": "random"})


def _small_model(store: Store) -> tuple[DLRM, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = DLRM(store.features, store.num_dense, DLRMConfig(bottom=(), top=(32,)))
    return model, dlrm_step.rowwise_adagrad(model)


def _pieces(batches: Any, model: DLRM, optimizer: torch.optim.Optimizer, size: int) -> Iterator[float]:
    """Seconds a sample of each tenth of a pass; of one piece where a pass has fewer than 100 batches."""
    pieces = _TENTHS if len(batches) >= 100 else 1
    every = -(-len(batches) // pieces)
    begin, passed = perf_counter(), 0
    for number, batch in enumerate(batches, start=1):
        _train(model, optimizer, batch)
        passed += len(batch)
        if number % every == 0 or number == len(batches):
            now = perf_counter()
            yield (now - begin) / passed
            begin, passed = now, 0


def _train(model: DLRM, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    loss = model.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _remove(store: Store) -> None:
    path = store.path
    del store
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def positives(
    options: BenchOptions, wanted: ScaleOptions, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The Kaggle DLRM on synthetic samples of which 0.2 % to 25 % are positive: in full, and half of them skipped.

    Cost is per sample that passes, skipped ones and decisions included.
    """
    count = (12 if options.quick else 50) * workload.BATCH_SIZE
    runs: list[_Run] = []
    for rate in BASE_RATES[:: 3 if options.quick else 1]:
        config = _config(count, rate, options.seed)
        batches = _batches(Generator(config).samples(0, count))
        runs += [_Run(config, batches, policy, series) for policy, series in _HALVES.items()]
    for number in range(count // workload.BATCH_SIZE):  # in turn, so that a slow phase of the machine hits all alike
        for run in runs:
            run.push(number)
    found: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for run in runs:
        # Batches alternate between a step and none where half is skipped: the mean of a few is what one costs.
        some = [float(np.mean(run.seconds[i : i + 4])) for i in range(4, len(run.seconds) - 3, 4)]
        rate = run.config.base_rate
        found.append({**row("slipstream", some), "series": run.series, "size": rate})
        if run.series != "all":
            share = run.skipper.share_of_inputs_trained
            figures[f"positives: share trained on, {run.series}, {rate:g}"] = round(share, 4)
    return found, figures


class _Run:
    """A training on samples of the generator."""

    def __init__(self, config: SyntheticConfig, batches: Sequence[Batch], policy: str, series: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.batches, self.series = config, batches, series
        self.model = DLRM(dlrm_step.features_of([r + 1 for r in config.rows]), config.num_dense, DLRMConfig())
        self.optimizer = dlrm_step.rowwise_adagrad(self.model)
        chosen = build_policy(policy if policy == "none" else {"name": policy, "budget": 0.5})
        chosen.warm_up()
        samples = config.num_samples
        size = workload.BATCH_SIZE
        self.skipper = Skipper(self.model, chosen, batch_size=size, total_samples=samples, adds_logit_offset=True)
        self.seconds: list[float] = []
        """A sample, of each batch."""

    def push(self, number: int) -> None:
        """Decides on a batch, and trains if a full one has come together."""
        batch = self.batches[number]
        begin = perf_counter()
        for kept in self.skipper.push(batch):
            _train(self.model, self.optimizer, kept)
        self.seconds.append((perf_counter() - begin) / len(batch))


def _config(count: int, rate: float, seed: int) -> SyntheticConfig:
    return SyntheticConfig(num_samples=count, base_rate=rate, seed=seed)


def _batches(drawn: Samples) -> list[Batch]:
    """Samples of the generator as batches."""

    def split(values: Tensor) -> tuple[Tensor, ...]:
        return values.split(workload.BATCH_SIZE)

    index = torch.arange(len(drawn.labels))
    pieces = zip(
        split(torch.from_numpy(drawn.dense)),
        split(torch.from_numpy(drawn.ids)),
        split(torch.from_numpy(drawn.labels).float()),
        split(index),
        strict=True,
    )
    return [Batch(Inputs(dense, ids), labels, at, torch.ones(len(at))) for dense, ids, labels, at in pieces]
