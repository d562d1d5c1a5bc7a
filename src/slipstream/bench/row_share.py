"""Where skipping row updates can pay: their share of a step, and the time that saturation and PSSE save there.

Matrix factorization and a DeepFM with a small MLP, rows of 128 numbers and Adam, beside DLRM with rows of 16: on
Gowalla pairs and Globo clicks. For each model a profile gives the share of the row update and so the most that skipping
could save; trainings without skipping and with each policy alternate, so time saved stands beside the quality it cost.
Rates are fixed, the same for a model's trainings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import PUBLIC, FrontierOptions
from slipstream.bench.frontier_policies import with_policy
from slipstream.bench.rounds import ratio
from slipstream.data.store import Store
from slipstream.report.record import Record
from slipstream.training import Result, TrainConfig, train
from slipstream.training.profile import profile, row_bound
from slipstream.training.run import open_data

POLICIES = ("row_importance", "subsampling", "saturation", "psse tail")
BUDGETS = (0.5, 0.7)
_ADAM = {"name": "adam", "lr": 0.001, "embedding_lr": 0.003}


class Setting(NamedTuple):
    """A model on a data set."""

    data: str
    samples: int
    """Samples of an epoch."""
    settings: Mapping[str, Any]
    """What differs from the data set's own training."""


SETTINGS: Mapping[str, Setting] = {
    "MF, dim 128, Adam": Setting(
        "gowalla",
        810_128,
        {"model": {"name": "mf", "embedding_dim": 128, "objective": "bpr"}, "epochs": 4},
    ),
    "DeepFM, MLP of 32, dim 128, Adam": Setting(
        "globo",
        120_000,
        {"model": {"name": "deepfm", "embedding_dim": 128, "deep": [32]}, "optimizer": _ADAM},
    ),
    "DLRM, MLP of 64, dim 16, Adagrad": Setting("globo", 120_000, {}),
}
"""By name; the last is the data set's own training."""


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` takes 20,000 samples, one budget and one round instead of three. ``data`` is the folder of
            the public data sets.

    Returns:
        ``rows``: by model, and by model, policy and budget. ``ratios``: time of full training ÷ time with the policy.

    Raises:
        DataError: There is no such data.
    """
    rounds, budgets = (1, BUDGETS[:1]) if options.quick else (3, BUDGETS)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    shares: dict[str, float] = {}
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        for name, setting in SETTINGS.items():
            samples = 20_000 if options.quick else setting.samples
            source = FrontierOptions(data=setting.data, samples=samples, folder=options.data or PUBLIC)
            settings = {**setting.settings, "threads": options.threads, "seed": options.seed}
            config = training_of(source, Path(options.cache or temporary), **settings).resolved()
            store = open_data(config)
            names.append(f"{setting.data}, {samples:,} samples, fingerprint {store.fingerprint[:16]}")
            found = profile(config, steps=10 if options.quick else 50, store=store)
            shares[name] = round(found.seconds["row update"] / found.step_seconds, 4)
            configs = {"none": config}
            for policy in POLICIES:
                for budget in budgets:
                    passed = min(samples, store.num_samples)
                    configs[f"{policy} {budget:g}"] = with_policy(config, policy, budget, passed)
            results = _alternating(configs, rounds, store)
            for place, of_place in results.items():
                skipped = of_place[0].share_of_row_updates_skipped
                row = _row(name, place, of_place, results["none"])
                row["row update's share of a step"] = shares[name]
                row["at most"] = round(row_bound(found.seconds, 1 - skipped), 3)
                rows.append(row)
                if place != "none":
                    seconds = {key: [result.seconds for result in results[key]] for key in (place, "none")}
                    ratios[f"{name}: {place}"] = ratio(seconds[place], seconds["none"])
    return Record(
        name="row_share",
        dataset="; ".join(dict.fromkeys(names)),
        conditions={
            "quick": options.quick,
            "rounds": rounds,
            "models": {name: dict(setting.settings) for name, setting in SETTINGS.items()},
            "seed": options.seed,
            "rates": "fixed, the same for all trainings of a model",
            "at most": "time saved if skipped updates cost nothing, by the profile (Amdahl)",
            "quality": "NDCG@20 (Gowalla), AUC (Globo)",
            "not counted": "scoring, loading of compiled kernels",
        },
        ratios=ratios,
        quality={f"row update's share of a step, {name}": share for name, share in shares.items()},
        rows=rows,
    )


def _alternating(configs: Mapping[str, TrainConfig], rounds: int, store: Store) -> dict[str, list[Result]]:
    """Trainings of each, in turn."""
    results: dict[str, list[Result]] = {name: [] for name in configs}
    for _ in range(rounds):
        for name, config in configs.items():
            results[name].append(train(config, store=store))
    return results


def _row(name: str, place: str, ours: list[Result], full: list[Result]) -> dict[str, Any]:
    return {
        "model": name,
        "policy": place,
        "seconds": round(median(result.seconds for result in ours), 3),
        "full ÷ this": ratio([result.seconds for result in ours], [result.seconds for result in full]),
        "quality": round(ours[0].quality, 5),
        "to full": round(ours[0].quality - full[0].quality, 5),
        "skipped": round(ours[0].share_of_row_updates_skipped, 4),
    }
