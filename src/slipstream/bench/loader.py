"""Batches of 39 columns from the column store, batch 2,048: in order and shuffled, alone and under a training DLRM.

Each batch is read through (sums of ids and dense values), as batches in order are views and cost nothing until they
are read. Peers: torch's DataLoader over the same columns in memory, once as its documentation shows it (a sample at a
time, then collated) and once with whole batches of indices, its fastest form.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

from slipstream.bench import BenchOptions, workload
from slipstream.bench.rounds import ratio, row
from slipstream.data.batch import Batch
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.report.record import Record
from slipstream.report.timing import alternate

NUM_DENSE = 13
QUICK, FULL = (400_000, 3, 20), (4_000_000, 7, 150)
"""Samples, rounds, and training steps under which waiting is measured."""
_PEER_BATCHES = {"a sample at a time": 8, "whole batches": 60}
"""Batches of the peers that are timed; ours reads all."""


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` writes 400,000 samples with small tables instead of 4 million with 9.4 million rows.

    Returns:
        ``ratios``: against the DataLoader, per sample and with whole batches, in order and shuffled. ``quality``:
        rows a second, and the share of a training step that the training thread waits for its batch.
    """
    samples, rounds, steps = QUICK if options.quick else FULL
    rows = workload.cardinalities(400_000 if options.quick else workload.TOTAL_ROWS)
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=options.cache) as temporary:
        store = random_store(Path(temporary) / "store", rows, samples, options.seed)
        memory = TensorDataset(store.ids.clone(), store.dense.clone(), store.labels.clone())
        waits = {name: _waiting(store, seed, steps) for name, seed in (("in order", None), ("shuffled", options.seed))}
        contestants = _contestants(store, memory, options.seed)
        seconds = alternate(contestants, rounds=rounds, warm_up=1)
    read = {name: next((count for peer, count in _PEER_BATCHES.items() if peer in name), 0) for name in seconds}
    per_row = {
        name: [value / (read[name] * workload.BATCH_SIZE or samples) for value in values]
        for name, values in seconds.items()
    }
    record = Record(
        name="loader",
        dataset=f"{samples:,} random samples of {len(rows)} ids and {NUM_DENSE} dense columns, seed {options.seed}",
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "threads": torch.get_num_threads(),
            "unit": "seconds a row",
            "file_cache": "warm",
            "model": "DLRM, bottom 13-512-256-64-16, top 512-256-1, row-wise Adagrad, float32",
            "table_rows": sum(rows),
        },
    )
    for order in ("in order", "shuffled"):
        ours = per_row[f"slipstream {order}"]
        for peer, key in zip(_PEER_BATCHES, ("samples", "batches"), strict=True):
            record.ratios[f"torch_dataloader_{key}_{order.replace(' ', '_')}"] = ratio(
                ours, per_row[f"torch DataLoader, {peer}, {order}"]
            )
        record.quality[f"rows per second {order}"] = round(1 / float(np.median(ours)))
        record.quality[f"share of a training step waiting, {order}"] = round(waits[order], 5)
    record.rows = [row(name, values) for name, values in per_row.items()]
    return record


def random_store(path: Path, rows: tuple[int, ...], samples: int, seed: int) -> Store:
    """A store of random samples with one feature for each number of rows, and 13 dense columns."""
    rng = np.random.default_rng(seed)
    features = [FeatureInfo(name=f"C{i}", num_rows=count + 1) for i, count in enumerate(rows, start=1)]
    with StoreWriter(path, features, dense=[f"I{i}" for i in range(1, NUM_DENSE + 1)]) as writer:
        for start in range(0, samples, 200_000):
            n = min(200_000, samples - start)
            # Squares lean to the small ids, as frequent values do.
            ids = (rng.random((n, len(rows)), dtype=np.float32) ** 4 * np.array(rows)).astype(np.int32) + 1
            ids = np.minimum(ids, np.array(rows, dtype=np.int32))
            writer.append(ids, rng.random((n, NUM_DENSE), dtype=np.float32), rng.integers(0, 2, n))
        return writer.commit({"format": "random"})


def _contestants(store: Store, memory: TensorDataset, seed: int) -> dict[str, Callable[[], object]]:
    contestants: dict[str, Callable[[], object]] = {}
    for order, shuffle in (("in order", False), ("shuffled", True)):
        batches = store.batches(workload.BATCH_SIZE, shuffle_seed=seed if shuffle else None)
        contestants[f"slipstream {order}"] = lambda b=batches: _read(_tensors(b))
        for peer, count in _PEER_BATCHES.items():
            # Only the samples that are timed are put in order, else the order of all would be charged to a few.
            some = torch.randperm(len(memory))[: count * workload.BATCH_SIZE] if shuffle else None
            sampler = SubsetRandomSampler(some.tolist()) if some is not None else range(count * workload.BATCH_SIZE)
            loader = (
                DataLoader(memory, sampler=BatchSampler(sampler, workload.BATCH_SIZE, False), batch_size=None)
                if peer == "whole batches"
                else DataLoader(memory, workload.BATCH_SIZE, sampler=sampler)
            )
            contestants[f"torch DataLoader, {peer}, {order}"] = lambda b=loader: _read(b)
    return contestants


def _tensors(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for batch in batches:
        yield batch.inputs.ids, batch.inputs.dense, batch.labels


def _read(batches: Iterable[tuple[Tensor, ...]]) -> float:
    # On the calling thread alone: that is where the loaders' own work is to be seen.
    return sum(float(tensor.numpy().sum()) for tensors in batches for tensor in tensors)


def _waiting(store: Store, shuffle_seed: int | None, steps: int) -> float:
    """Share of the time of training steps that passes before the batch is there; the first steps are not counted."""
    from slipstream import optim
    from slipstream.models import DLRM, DLRMConfig

    torch.manual_seed(0)
    model = DLRM(store.features, store.num_dense, DLRMConfig())
    optimizer = optim.RowwiseAdagrad(model.parameters(), lr=0.01)
    iterator = iter(store.batches(workload.BATCH_SIZE, shuffle_seed=shuffle_seed))
    waited = total = 0.0
    for number in range(steps + 3):
        begin = perf_counter()
        batch = next(iterator)
        ready = perf_counter()
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number >= 3:
            waited += ready - begin
            total += perf_counter() - begin
    return waited / total
