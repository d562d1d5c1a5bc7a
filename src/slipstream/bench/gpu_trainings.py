"""Whole trainings on a GPU: policy x budget, and what saturation's gates keep from the bus."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.metrics import roc_auc_score

from slipstream.bench.frontier import Frontier
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import FrontierOptions
from slipstream.bench.frontier_policies import with_policy
from slipstream.bench.gpu import Bench
from slipstream.bench.gpu_host import CACHED
from slipstream.embedding.row_bytes import row_bytes
from slipstream.report.frontier import figures_of, time_saved
from slipstream.training import TrainConfig
from slipstream.training.loop import Trainer
from slipstream.training.optimizers import state_elements
from slipstream.training.run import open_data

POLICIES = ("saturation", "psse", "importance")
BUDGETS = (0.25, 0.5, 0.7)
SATURATION_BUDGET = 0.25
"""Share of the updates that is kept where bytes are counted."""


def frontier(bench: Bench, data: str, folder: Path) -> None:
    """Every policy at every budget, one seed, rates as the data set has them; whole steps with every overhead."""
    options, config = _training(bench, data, folder)
    measured = Frontier(config, open_data(config), options)
    measured.tune()
    measured.measure(until=bench.until)
    saved = time_saved(measured.points)
    name = data.replace("-", "_")
    bench.record.points += [{"data": data, **point} for point in measured.points]
    bench.record.ratios |= {f"frontier_{name}_{entry.policy.replace(' ', '_')}": entry.ratio for entry in saved}
    bench.record.quality |= {f"{data}, {key}": value for key, value in figures_of(saved).items()}
    bench.record.conditions |= {f"missing_{data}, {place}": reason for place, reason in measured.left_out.items()}
    bench.record.conditions[f"{data}, samples"] = measured.samples


def bytes_over_the_bus(bench: Bench, data: str, folder: Path) -> None:
    """One training with saturation's gates and one without, tables in host memory, 10 % of the rows on the card."""
    _, config = _training(bench, data, folder)
    store = open_data(config)
    dim = config.model.embedding_dim
    rows = sum(feature.num_rows for feature in store.features)
    of_row = row_bytes(dim, state_elements(config.optimizer, dim))
    budget = max(int(rows * CACHED), config.batch_size * len(store.features) // 2) * of_row
    config = config.model_copy(update={"row_cache_bytes": budget, "bf16": False})
    samples = min(store.num_samples, config.max_samples or store.num_samples)
    moved: list[int] = []
    areas: list[float] = []
    for policy in ("none", "saturation"):
        trainer = Trainer(with_policy(config, policy, SATURATION_BUDGET, samples), store)
        labels, logits = trainer.run()
        assert trainer.cached is not None
        moved.append(trainer.cached.bytes.total)
        areas.append(float(roc_auc_score(labels, logits)))
    bench.record.ratios["host_bytes_saturation"] = moved[1] / moved[0]
    bench.record.quality[f"{data}, AUC with saturation less that without, host memory"] = round(areas[1] - areas[0], 5)
    bench.record.conditions["bytes_over_the_bus"] = moved
    bench.record.conditions["rows_cached"] = round(budget / of_row / rows, 3)


def _training(bench: Bench, data: str, folder: Path) -> tuple[FrontierOptions, TrainConfig]:
    plan = bench.plan
    options = FrontierOptions(
        data, folder=plan.folder, policies=POLICIES, budgets=BUDGETS, seeds=1, samples=plan.samples, tune=False
    )
    settings = {"device": plan.device.type, "bf16": plan.device.type == "cuda", "batch_size": plan.train_batch}
    return options, training_of(options, folder, seed=bench.seed, threads=os.cpu_count(), **settings).resolved()
