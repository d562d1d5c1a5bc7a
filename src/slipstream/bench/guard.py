"""Whether the guard holds what it promises: each guarded training against full training of the same seed.

``slipstream bench guard --json FILE``. For each data set and seed one full training and one guarded one for each
tolerance, in turn, at the data set's own rates. The real cost is the difference of the two scores on the same samples:
it holds the spread of two trainings that draw differently, so at tolerances below that spread even no skipping would
break some promises.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slipstream.bench import BenchOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import FrontierOptions
from slipstream.bench.guard_options import SAMPLES, GuardOptions
from slipstream.errors import ConfigError
from slipstream.policies import GuardConfig
from slipstream.policies.base import validated
from slipstream.report.record import Record
from slipstream.training import Result, TrainConfig, train
from slipstream.training.run import open_data

_PAIRS: dict[str, Any] = {
    "prepare": {"negatives": 1},
    "model": {"name": "mf", "embedding_dim": 64},
    "optimizer": {"name": "adagrad", "lr": 0.05},
    "batch_size": 1024,
    "epochs": 1,
}
"""How pairs are trained on here: one item drawn against each, since what the guard promises needs both labels."""
QUICK = {"data": ("movietweetings",), "samples": 30_000, "seeds": 2, "tolerances": (0.2,), "auc_tolerances": ()}


class Promise(NamedTuple):
    """A tolerance of one figure."""

    figure: str
    tolerance: float

    def cost(self, guarded: Result, full: Result) -> float:
        """What guarding cost, in the tolerance's unit."""
        figures = (full.auc, guarded.auc, full.log_loss, guarded.log_loss)
        if None in figures:
            raise ConfigError("the guard promises log-loss or AUC", remedy="name data with both classes of labels")
        auc, guarded_auc, loss, guarded_loss = (float(figure or 0.0) for figure in figures)
        return auc - guarded_auc if self.figure == "auc" else guarded_loss / loss - 1.0

    def settings(self) -> dict[str, float | None]:
        """The guard's tolerances."""
        if self.figure == "auc":
            return {"tolerance": None, "auc_tolerance": self.tolerance}
        return {"tolerance": self.tolerance, "auc_tolerance": None}


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``guard`` says what; ``quick`` takes 30,000 samples of MovieTweetings, two seeds and one loose
            tolerance, to see that it works.

    Returns:
        ``points``: every guarded training, with the guard's log. ``rows``: by data set and tolerance, in how many runs
        it held. ``ratios``: time of full training ÷ of the guarded one, medians.

    Raises:
        ConfigError: A training diverged.
        DataError: There is no such data.
    """
    wanted = options.guard or GuardOptions()
    if options.quick:
        wanted = GuardOptions(**QUICK)
    points: list[dict[str, Any]] = []
    fingerprints: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        for name in wanted.data:
            samples = wanted.samples or SAMPLES.get(name)
            of = FrontierOptions(data=name, samples=samples, folder=wanted.folder)
            settings = _PAIRS if name in ("ml1m", "gowalla") else {}
            folder = Path(options.cache or temporary)
            config = training_of(of, folder, seed=options.seed, threads=options.threads, **settings)
            points += _trainings(name, config.resolved(), wanted, fingerprints)
            if wanted.partial:
                _record(points, fingerprints, wanted, quick=options.quick).save(wanted.partial)
    return _record(points, fingerprints, wanted, quick=options.quick)


def _trainings(
    name: str, config: TrainConfig, wanted: GuardOptions, fingerprints: list[str]
) -> Iterator[dict[str, Any]]:
    store = open_data(config)
    fingerprints.append(f"{name} {store.fingerprint[:12]}")
    promises = [Promise("log-loss", value) for value in wanted.tolerances]
    promises += [Promise("auc", value) for value in wanted.auc_tolerances]
    for seed in range(config.seed, config.seed + wanted.seeds):
        seeded = config.model_copy(update={"seed": seed})
        full = train(seeded, store=store)
        for promise in promises:
            policy = validated(GuardConfig, {"policy": wanted.policy, **promise.settings()})
            guarded = train(seeded.model_copy(update={"policy": policy}), store=store)
            cost = promise.cost(guarded, full)
            yield {
                "data": name,
                "seed": seed,
                "of": promise.figure,
                "tolerance": promise.tolerance,
                "cost": cost,
                "held": cost <= promise.tolerance,
                "share_of_inputs_trained": guarded.share_of_inputs_trained,
                "budget": guarded.policy_report["budget"],
                "seconds": guarded.seconds,
                "seconds_full": full.seconds,
                "auc": guarded.auc,
                "auc_full": full.auc,
                "log_loss": guarded.log_loss,
                "log_loss_full": full.log_loss,
                "samples": guarded.samples,
                "moves": guarded.policy_report["moves"],
            }


def summary(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By data set and tolerance: runs, how many held, costs and what was trained."""
    rows: list[dict[str, Any]] = []
    for place in dict.fromkeys((point["data"], point["of"], point["tolerance"]) for point in points):
        mine = [point for point in points if (point["data"], point["of"], point["tolerance"]) == place]
        costs = [point["cost"] for point in mine]
        trained = [point["share_of_inputs_trained"] for point in mine]
        rows.append(
            {
                "data": place[0],
                "of": place[1],
                "tolerance": place[2],
                "runs": len(mine),
                "held": sum(point["held"] for point in mine),
                "skipped anything": sum(share < 1.0 for share in trained),
                "cost": round(float(np.mean(costs)), 6),
                "cost, worst": round(max(costs), 6),
                "inputs trained": round(float(np.mean(trained)), 4),
                "time, full ÷ guarded": round(
                    float(np.median([point["seconds_full"] / point["seconds"] for point in mine])), 3
                ),
            }
        )
    return rows


def _record(points: list[dict[str, Any]], fingerprints: list[str], wanted: GuardOptions, *, quick: bool) -> Record:
    rows = summary(points)
    return Record(
        name="guard",
        dataset=", ".join(fingerprints),
        conditions={
            "quick": quick,
            "policy": wanted.policy,
            "samples": {name: wanted.samples or SAMPLES.get(name) or "all" for name in wanted.data},
            "seeds": wanted.seeds,
            "rates": "the data set's own, not tuned",
            "cost": "log-loss: guarded ÷ full - 1; auc: full - guarded; of the same seed, on the same samples",
            "held": "cost at most the tolerance",
        },
        ratios={f"{row['data']} {row['of']} {row['tolerance']:g}": row["time, full ÷ guarded"] for row in rows},
        quality={
            "runs": sum(row["runs"] for row in rows),
            "runs held": sum(row["held"] for row in rows),
            "data sets and tolerances": len(rows),
            "of them held in 19 of 20 runs or better": sum(row["held"] >= 0.95 * row["runs"] for row in rows),
        },
        rows=rows,
        points=points,
    )
