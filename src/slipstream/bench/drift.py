"""What drift does to decisions: fading scores, thaw and repeated decisions against those that never change their mind.

Prequential trainings on Globo, where most late rows are new articles, and on synthetic clicks whose popular rows and
effects change at chosen speeds. Variants of a policy differ in one thing and share budget, rates, seed and data;
trainings of one seed alternate over the variants. Rates are those of the data sets, the same for all: what is compared
is within a policy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from slipstream.bench import BenchOptions
from slipstream.bench.drift_options import DriftOptions
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import FrontierOptions
from slipstream.data.store import Store
from slipstream.data.synthetic import SyntheticConfig, generate
from slipstream.evaluation import first_seen, learning_curve, score, score_new_items
from slipstream.evaluation.popularity import bucket_feature
from slipstream.report.drift import CONTRASTS, contrasts, summary
from slipstream.report.record import Record
from slipstream.training import TrainConfig, Trainer
from slipstream.training.events import ChunkScored, Event
from slipstream.training.run import open_data, thread_count
from slipstream.training.warm_up import warm_up

SAMPLES = {"globo": 900_000, "synthetic": 400_000}
QUICK_SAMPLES = 40_000
WINDOWS = 20
"""Points of each curve."""


def variants(steps: int, budget: float) -> dict[str, dict[str, Any]]:
    """Policies by the name of the variant, clocks scaled to the steps of the training.

    Args:
        steps: Of full training.
        budget: Of all policies.
    """
    warm, every, turn = max(steps // 10, 1), max(steps // 60, 1), max(steps // 8, 10)
    psse = {"name": "psse", "budget": budget, "warmup_steps": warm, "every": every}
    clocks = {"budget": budget, "warmup_steps": warm, "every": every, "half_life": steps / 4}
    # Else a short training has no row that may be gated.
    saturation = {"name": "saturation", **clocks, "min_updates": min(max(steps // 20, 1), 32)}
    subsampling = {"name": "subsampling", **clocks}
    slipstream = {"name": "slipstream", "mode": "periodic", "budget": budget, "every": turn, "window": turn // 10}
    fading = slipstream | {"half_life": steps / 4}
    return {
        "none": {"name": "none"},
        "random inputs": {"name": "random", "budget": budget},
        "psse, decided once": psse | {"half_life": None, "every": steps + 1},
        "psse, exact counts": psse | {"half_life": None},
        "psse, half-life 1/4": psse | {"half_life": steps / 4},
        "psse, half-life 1/20": psse | {"half_life": steps / 20},
        "saturation, no thaw": saturation | {"probe": 0.0},
        "saturation, thaw": saturation,
        "subsampling, decided once": subsampling | {"every": steps + 1},
        "subsampling": subsampling,
        "slipstream, one shot": fading | {"decisions": 1},
        "slipstream, periodic": fading,
    }


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``drift`` says what; ``quick`` takes 40,000 samples, the highest speed and one seed.

    Returns:
        ``points``: every training with its curves. ``rows``: means by data set and variant. ``quality``: AUC of the
        variants that follow the drift above those that do not.

    Raises:
        DataError: There is no such data.
    """
    wanted = options.drift or DriftOptions()
    seeds = 1 if options.quick else wanted.seeds
    points: list[dict[str, Any]] = []
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        for place in _places(wanted, Path(options.cache or temporary), options):
            store = open_data(place.config)
            names.append(f"{place.name}, {place.samples:,} samples, fingerprint {store.fingerprint[:16]}")
            for seed in range(options.seed, options.seed + seeds):
                for name, policy in variants(place.samples // place.config.batch_size, wanted.budget).items():
                    tree = {**place.config.model_dump(), "policy": policy, "seed": seed}
                    point = {"data": place.name, "speed": place.speed, "variant": name, "seed": seed}
                    points.append(point | _measure(TrainConfig.model_validate(tree).resolved(), store))
    return Record(
        name="drift",
        dataset="; ".join(names),
        conditions={
            "quick": options.quick,
            "budget": wanted.budget,
            "seeds": seeds,
            "variants": variants(1000, wanted.budget),
            "clocks": "as for a training of 1,000 steps, scaled to the steps there are",
            "synthetic speed": "turnovers of each popularity rank and redraws of each row's effect per million samples",
            "mode": "prequential, chunks of 4,096, the last two thirds scored",
            "rates": "the data sets' own, the same for every variant",
            "gates shut": "share of the rows looked up so far whose gate is not open",
            "not counted": "scoring, watching the gates, loading of compiled kernels",
        },
        quality={f"{data}: {CONTRASTS[pair]}": round(value.mean, 5) for data, pair, value in contrasts(points)},
        rows=summary(points),
        points=points,
    )


class _Place(NamedTuple):
    """A data set and its training."""

    name: str
    speed: float | None
    samples: int
    config: TrainConfig


def _places(wanted: DriftOptions, folder: Path, options: BenchOptions) -> Iterator[_Place]:
    shared: dict[str, Any] = {"mode": "prequential", "chunk_size": 4096, "threads": options.threads}
    for kind in wanted.sets:
        samples = QUICK_SAMPLES if options.quick else wanted.samples or SAMPLES[kind]
        shared |= {"score_from": samples // 3}
        if kind == "globo":
            frontier = FrontierOptions(data="globo", folder=wanted.folder, samples=samples)
            yield _Place("Globo", None, samples, training_of(frontier, folder, **shared))
            continue
        for speed in (max(wanted.speeds),) if options.quick else wanted.speeds:
            data = folder / f"synthetic-drift-{speed:g}-{samples}"
            if not (data / "store.json").exists():
                drift = {"popularity_drift": speed, "effect_drift": speed}
                generate(data, SyntheticConfig.preset("default", num_samples=samples, **drift))
            settings = {
                "data": data,
                "model": {"name": "dlrm", "embedding_dim": 16, "bottom": [64], "top": [128, 64]},
                "optimizer": {"name": "rowwise_adagrad", "dense_name": "adam", "lr": 0.002, "embedding_lr": 0.08},
                "batch_size": 1024,
            }
            yield _Place(f"synthetic, speed {speed:g}", speed, samples, TrainConfig(**settings, **shared))


def _measure(config: TrainConfig, store: Store) -> dict[str, Any]:
    with thread_count(config.threads), torch.random.fork_rng(devices=()):
        warm_up(config, store)
        trainer = Trainer(config, store)
        watch = _Watch(trainer)
        trainer.listeners = (watch,)
        labels, logits = trainer.run()
        watch.note(trainer.samples)
    start, stop = trainer.score_range
    curve = learning_curve(labels, logits, start=start, points=WINDOWS)
    feature = bucket_feature(store, None) or 0
    rows = store.ids[start:stop, feature].numpy()
    new = score_new_items(first_seen(store, feature, stop)[rows], start, config.chunk_size, labels, logits)
    scores, skipper = score(labels, logits), trainer.skipper
    return {
        "auc": scores.auc,
        "log_loss": scores.log_loss,
        "calibration": scores.calibration,
        "auc_new": new["new"].auc,
        "auc_untrained": new["untrained"].auc,
        "share_new": new["new"].samples / scores.samples,
        "seconds": trainer.training.seconds,
        "share_of_inputs_trained": skipper.share_of_inputs_trained,
        "share_of_row_updates_skipped": skipper.share_of_row_updates_skipped,
        "auc_over_time": [[point.samples, point.auc] for point in curve],
        **watch.curves,
    }


class _Watch:
    """Notes some twenty times what is shut and what was skipped since the last note."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._every = trainer.total_samples // WINDOWS
        self._next = self._every
        self._seen = [np.zeros(feature.num_rows, dtype=np.bool_) for feature in trainer.store.one_hot]
        self._before = (0, 0, 0, 0, 0)
        self.curves: dict[str, list[list[float]]] = {
            "gates_shut": [],
            "updates_skipped": [],
            "inputs_skipped": [],
        }
        """By name: pairs of the samples passed and the share."""

    def __call__(self, event: Event) -> None:
        """Notes where it is time."""
        if isinstance(event, ChunkScored) and event.samples >= self._next:
            self._next += self._every
            self.note(event.samples)

    def note(self, samples: int) -> None:
        """Adds a point to each curve."""
        skipper, ids = self._trainer.skipper, self._trainer.store.ids
        tables = list(skipper.tables.values())
        for column, seen in enumerate(self._seen):
            seen[ids[self._before[0] : samples, column].numpy()] = True
        shut = sum(
            int((seen & (table.gate.numpy() < 255)).sum())
            for seen, table in zip(self._seen, tables, strict=True)
            if table.gate is not None
        )
        now = (
            samples,
            sum(table.lookups for table in tables),
            sum(table.skipped for table in tables),
            skipper.inputs_seen,
            skipper.inputs_kept,
        )
        _, lookups, skipped, pushed, kept = (new - old for new, old in zip(now, self._before, strict=True))
        self._before = now
        for name, part, whole in (
            ("gates_shut", shut, sum(int(seen.sum()) for seen in self._seen)),
            ("updates_skipped", skipped, lookups),
            ("inputs_skipped", pushed - kept, pushed),
        ):
            self.curves[name].append([samples, part / whole if whole else 0.0])
