"""Data prepared once for everybody: our column store, and beside it the NumPy files that the peers read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from slipstream.bench import workload
from slipstream.bench.frontier_data import training_of
from slipstream.bench.frontier_options import PUBLIC, FrontierOptions
from slipstream.data.atomic import write_text
from slipstream.data.split import named_splits
from slipstream.data.store import Store
from slipstream.data.synthetic import SyntheticConfig, generate
from slipstream.errors import DataError
from slipstream.training import TrainConfig
from slipstream.training.run import open_data

GRAIN = 8192
"""Training samples are a multiple of this, so that no batch is short: compiled models would be compiled anew."""
HOLDOUT = 0.1
SAMPLES = {"globo": 600_000, "synthetic_25": 600_000, "synthetic_8": 600_000}
FRONTIER = {"globo": "globo", "synthetic_25": "synthetic", "synthetic_8": "synthetic-8"}
PAIRS = {"gowalla": "gowalla", "ml1m": "ml1m"}


@dataclass(frozen=True)
class Dataset:
    """What a contestant is given.

    Attributes:
        name: Name in the records.
        title: Name, size and fingerprint.
        folder: Holds ``ids.npy``, ``dense.npy``, ``labels.npy``, ``about.json`` and ``store``.
        train: First sample to train on, and the first that is not.
        test: First sample to score, and the first that is not.
        mode: How quality is measured.
        model: Model that all train, as our configuration has it: dim, bottom, top.
        optimizer: What our trainer uses for it.
        batch_size: Samples of a step.
        chunk: prequential: samples predicted at a time.
        rates_from: Data whose rates are taken; None: its own.
    """

    name: str
    title: str
    folder: Path
    train: tuple[int, int]
    test: tuple[int, int]
    mode: Literal["holdout", "prequential", "ranking"]
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 1024
    chunk: int = 4096
    rates_from: Dataset | None = None

    def tuning(self) -> Dataset:
        """The part that rates are chosen on; the test samples are not in it."""
        if self.mode == "ranking":
            stop = self.train[1]
            return replace(self, train=(0, stop - stop // 10), test=(stop - stop // 10, stop))
        if self.mode == "prequential":
            # The first third, its second half scored; the final score is of what comes after.
            stop = self.test[0]
            return replace(self, train=(0, stop), test=(stop // 2, stop))
        stop = self.train[1] // 3
        cut = stop * 4 // 5 // GRAIN * GRAIN or stop * 4 // 5
        return replace(self, train=(0, cut), test=(cut, stop))


def names() -> tuple[str, ...]:
    """Data sets of time to quality, then of ranking."""
    return (*FRONTIER, *PAIRS)


def clicks(name: str, cache: Path, *, folder: Path = PUBLIC, samples: int | None = None) -> Dataset:
    """Clicks with labels: Globo (prequential) or a synthetic preset (its last tenth held out)."""
    samples = samples or SAMPLES[name]
    config = training_of(FrontierOptions(data=FRONTIER[name], folder=folder, samples=samples), cache)
    store = open_data(config)
    stop = min(store.num_samples, samples)
    if config.mode == "prequential":
        stop = stop // GRAIN * GRAIN or stop
        train, test = (0, stop), (stop // 3, stop)
    else:
        cut = int(stop * (1 - HOLDOUT)) // GRAIN * GRAIN or int(stop * (1 - HOLDOUT))
        train, test = (0, cut), (cut, stop)
    model = {"dim": config.model.embedding_dim, "bottom": [], "top": []}
    model |= {part: list(getattr(config.model, part)) for part in ("bottom", "top")}
    if not store.num_dense:
        model["bottom"] = []
    return Dataset(
        name,
        f"{name}, {stop:,} samples, {_shape(store)}",
        _export(store, cache / f"peers-{name}-{stop}", stop),
        train,
        test,
        "prequential" if config.mode == "prequential" else "holdout",
        model,
        config.optimizer.model_dump(mode="json", exclude_defaults=True),
        config.batch_size,
        config.chunk_size,
        # The same rows and effects at another base rate.
        clicks("synthetic_25", cache, folder=folder, samples=samples) if name == "synthetic_8" else None,
    )


def pairs(name: str, cache: Path, *, folder: Path = PUBLIC, quick: bool = False) -> Dataset:
    """Pairs of users and items, ranked; ``quick``: the bundled MovieTweetings, ratings of 8 and above."""
    if quick:
        config = TrainConfig.model_validate(
            {"data": _movietweetings(cache), "cache": cache, "prepare": {"negatives": 0}}
        )
        name = "movietweetings"
    else:
        config = training_of(FrontierOptions(data=PAIRS[name], folder=folder), cache)
    store = open_data(config)
    test = named_splits(store).get("test")
    if test is None:
        raise DataError("the pairs come without a test split", file=store.path)
    folder = _export(store, cache / f"peers-{name}", store.num_samples)
    title = f"{name}, {store.num_samples:,} pairs, {_shape(store)}"
    return Dataset(name, title, folder, (0, test[0]), test, "ranking", batch_size=2048)


def criteo_shaped(rows: int, samples: int, cache: Path) -> Dataset:
    """Samples with Criteo Kaggle's cardinalities scaled to ``rows``, for throughput and memory."""
    made = cache / f"criteo-shaped-{rows}-{samples}"
    if not (made / "store.json").exists():
        config = SyntheticConfig(
            num_samples=samples + samples // 8,
            cardinalities=workload.cardinalities(rows),
            scale=1.0,
            zipf_exponent=workload.ZIPF_EXPONENT,
        )
        generate(made, config)
    store = Store.open(made)
    title = f"synthetic, {workload.describe([feature.num_rows for feature in store.features])}, {_shape(store)}"
    model = {"bottom": [512, 256, 64], "top": [512, 256]}
    folder = _export(store, cache / f"peers-{made.name}", store.num_samples)
    return Dataset("criteo_shaped", title, folder, (0, samples), (samples, store.num_samples), "holdout", model)


def _shape(store: Store) -> str:
    features = f"{len(store.features)} features, {sum(feature.num_rows for feature in store.features):,} rows"
    return f"{features}, fingerprint {store.fingerprint[:16]}"


def _export(store: Store, folder: Path, samples: int) -> Path:
    """Writes what peers read, once."""
    about = {
        "rows": [feature.num_rows for feature in store.features],
        "names": [feature.name for feature in store.features],
        "fingerprint": store.fingerprint,
    }
    if store.bags:
        raise DataError("peers are compared on one-hot features alone", file=store.path)
    marker = folder / "about.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == about:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Callable[[], Any]] = {
        "ids": lambda: store.ids[:samples].numpy(),
        "dense": lambda: store.dense[:samples].numpy(),
        "labels": lambda: store.labels[:samples].numpy().astype(np.float32),
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column())
    link = folder / "store"
    link.unlink(missing_ok=True)
    link.symlink_to(store.path.resolve())
    write_text(marker, json.dumps(about))  # last: what is there is whole
    return folder


def _movietweetings(cache: Path) -> Path:
    source, file = Path("examples/movietweetings/ratings.dat"), cache / "movietweetings.parquet"
    if not source.exists():
        raise DataError("no such data", file=source, remedy="run the benchmark in the root of the source tree")
    lines = [line.split("::") for line in source.read_text(encoding="utf-8").splitlines()]
    liked = [(int(user), int(item)) for user, item, rating, _ in lines if int(rating) >= 8]
    cache.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(liked, schema=["user", "item"], orient="row").unique(maintain_order=True).write_parquet(file)
    return file
