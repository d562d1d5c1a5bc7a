"""What skipping row updates keeps from the bus: tables in host memory, 10 % of their rows on the card.

Nothing of it needs a card: which rows come and go does not depend on it, so the cache lies in memory here. DLRM with
rows of 64 numbers and Adam, one pass over synthetic clicks (26 tables) and over Globo's, without a policy and then with
row policies. A row that a batch reads and the card does not hold costs its weights once if its gate is shut, and up to
six times as much if it is open: weights and two moments in, and out again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import PUBLIC, FrontierOptions
from slipstream.bench.frontier_policies import with_policy
from slipstream.data.store import Store
from slipstream.embedding.row_bytes import row_bytes
from slipstream.report.record import Record
from slipstream.training import TrainConfig
from slipstream.training.loop import Trainer
from slipstream.training.optimizers import state_elements
from slipstream.training.run import open_data

CACHED = 0.1
"""Share of the rows that the card holds."""
SAMPLES: Mapping[str, int] = {"synthetic-wide": 1_000_000, "globo-wide": 600_000}
"""Data sets, with the samples of each."""
PLACES = (("saturation", 0.5), ("saturation", 0.2), ("random rows", 0.5), ("psse", 0.98), ("psse", 0.95))
"""Policies with their budgets. Subsampling is refused for tables in host memory; its nearest is ``random rows``."""


def run(options: BenchOptions) -> Record:
    """Count.

    Args:
        options: ``quick`` takes 20,000 samples of each, rows of 16 numbers and the first two policies. ``data`` is the
            folder of the public data sets.

    Returns:
        ``ratios``: bytes over the bus without a policy ÷ those with it. ``quality``: AUC less that without a policy.
        ``rows``: the counts.

    Raises:
        DataError: There is no such data.
    """
    record = Record(
        name="cache_bytes",
        dataset="",
        conditions={
            "quick": options.quick,
            "rows cached": CACHED,
            "seed": options.seed,
            "where": "counted with the cache in host memory, which moves the same rows as on a card",
            "MB": "both ways, of a training and the last write-back of rows; Globo is predicted chunk by chunk, "
            "changed rows written back before each; rates fixed, the same for all",
            "to reach": "2 with saturation, AUC within 0.001",
        },
    )
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        for data in SAMPLES:
            names.append(_of_data(record, data, options, options.cache or Path(temporary)))
    record.dataset = "; ".join(names)
    return record


def _of_data(record: Record, data: str, options: BenchOptions, folder: Path) -> str:
    """Adds the trainings on a data set; returns what it is."""
    samples, places = (20_000, PLACES[:2]) if options.quick else (SAMPLES[data], PLACES)
    source = FrontierOptions(data=data, samples=samples, folder=options.data or PUBLIC)
    config = training_of(source, folder, seed=options.seed, threads=options.threads).resolved()
    if options.quick:
        model = config.model.model_copy(update={"embedding_dim": 16})
        config = config.model_copy(update={"model": model, "batch_size": 128})
    store, dim = open_data(config), config.model.embedding_dim
    rows = sum(feature.num_rows for feature in store.features)
    of_row = row_bytes(dim, state_elements(config.optimizer, dim))
    config = config.model_copy(update={"row_cache_bytes": int(rows * CACHED) * of_row})
    shape = {"batch size": config.batch_size, "embedding_dim": dim, "optimizer": config.optimizer.name}
    record.conditions[data] = shape
    full = _counted(config, store)
    record.rows.append({"data": data, "policy": "none", **full})
    for name, budget in places:
        counted, place = _counted(with_policy(config, name, budget, samples), store), f"{name} {budget:g}"
        record.rows.append({"data": data, "policy": place, **counted})
        record.ratios[f"{data}: {place}"] = round(full["MB"] / counted["MB"], 4)
        record.quality[f"AUC to full, {data}: {place}"] = round(counted["auc"] - full["auc"], 5)
    return (
        f"{data}, {samples:,} samples, {len(store.features)} tables, {rows:,} rows, "
        f"fingerprint {store.fingerprint[:16]}"
    )


def _counted(config: TrainConfig, store: Store) -> dict[str, Any]:
    trainer = Trainer(config, store)
    labels, logits = trainer.run()
    assert trainer.cached is not None
    moved = trainer.cached.bytes
    return {
        "MB": round(moved.total / 1e6, 3),
        "auc": round(float(roc_auc_score(labels, logits)), 5),
        "weights in": round(moved.weights_in / 1e6, 2),
        "state in": round(moved.state_in / 1e6, 2),
        "weights out": round(moved.weights_out / 1e6, 2),
        "state out": round(moved.state_out / 1e6, 2),
        "distinct rows read": moved.rows_read,
        "distinct rows updated": moved.rows_updated,
        "rows that came": moved.rows_in,
        "rows that came to be read alone": moved.rows_in_shut,
        "lookups skipped": round(trainer.skipper.share_of_row_updates_skipped, 4),
    }
