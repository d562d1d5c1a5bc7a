"""What skipping row updates keeps from the bus: tables in host memory, 10 % of their rows on the card.

Nothing of it needs a card: which rows come and go does not depend on it, so the cache lies in memory here. DLRM with
rows of 64 numbers and Adam on synthetic clicks with 26 tables, one pass, no policy and then each row policy. A row that
a batch reads and the card does not hold costs its weights once if its gate is shut, and up to six times as much if it
is open: weights and two moments in, and out again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import FrontierOptions
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
SAMPLES = 300_000
PLACES = (("saturation", 0.5), ("saturation", 0.2), ("random rows", 0.5), ("psse", 0.95), ("psse", 0.5))
"""Policies with their budgets. Subsampling is refused for tables in host memory; its nearest is ``random rows``."""


def run(options: BenchOptions) -> Record:
    """Count.

    Args:
        options: ``quick`` takes 20,000 samples, rows of 16 numbers and the first two policies.

    Returns:
        ``ratios``: bytes over the bus without a policy ÷ those with it. ``quality``: AUC less that without a policy.
        ``rows``: the counts.
    """
    samples, places = (20_000, PLACES[:2]) if options.quick else (SAMPLES, PLACES)
    source = FrontierOptions(data="synthetic-wide", samples=samples)
    settings: dict[str, Any] = {"seed": options.seed, "threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        config = training_of(source, options.cache or Path(temporary), **settings).resolved()
        if options.quick:
            model = config.model.model_copy(update={"embedding_dim": 16})
            config = config.model_copy(update={"model": model, "batch_size": 128})
        store = open_data(config)
        rows = sum(feature.num_rows for feature in store.features)
        of_row = row_bytes(config.model.embedding_dim, state_elements(config.optimizer, config.model.embedding_dim))
        config = config.model_copy(update={"row_cache_bytes": int(rows * CACHED) * of_row})
        full = _counted(config, store)
        counted = {
            f"{name} {budget:g}": _counted(with_policy(config, name, budget, samples), store) for name, budget in places
        }
        fingerprint = store.fingerprint[:16]
    return Record(
        name="cache_bytes",
        dataset=f"synthetic default preset, {samples:,} samples, {len(store.features)} tables, {rows:,} rows, "
        f"fingerprint {fingerprint}",
        conditions={
            "quick": options.quick,
            "rows cached": CACHED,
            "batch size": config.batch_size,
            "embedding_dim": config.model.embedding_dim,
            "optimizer": config.optimizer.name,
            "seed": options.seed,
            "where": "counted with the cache in host memory, which moves the same rows as on a card",
            "bytes": "MB, both ways, of a training and the last write-back of rows; rates fixed, the same for all",
            "to reach": "2 with saturation, AUC within 0.001",
            "why not": "saturation gates rows that were updated in 32 steps at least; those are on the card anyway, so "
            "no row comes to be read alone",
        },
        ratios={name: round(full["MB"] / row["MB"], 4) for name, row in counted.items()},
        quality={f"AUC to full, {name}": round(row["auc"] - full["auc"], 5) for name, row in counted.items()},
        rows=[{"policy": name, **row} for name, row in {"none": full, **counted}.items()],
    )


def _counted(config: TrainConfig, store: Store) -> dict[str, Any]:
    trainer = Trainer(config, store)
    labels, logits = trainer.run()
    assert trainer.cached is not None
    moved = trainer.cached.bytes
    return {
        "MB": round(moved.total / 1e6, 2),
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
