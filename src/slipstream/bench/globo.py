"""Prequential training on Globo clicks: predict each chunk, then train on it.

The input is ``--data``, the Globo clicks as Parquet; without it ``../shared/data/globo_clicks.parquet`` beside the
project. Each click is followed by 2 non-clicks, articles of other clicks among the preceding 3,000, so each was on show
at that moment; fields are the user, the article, the context, hour and weekday, and what the same user clicked before.
The peer is the same model over ``nn.EmbeddingBag(sparse=True)`` with ``torch.optim``, in the same loop, on the first
samples only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from slipstream.bench import BenchOptions
from slipstream.bench.rounds import ratio
from slipstream.data.store import Store
from slipstream.errors import DataError
from slipstream.report.record import Record
from slipstream.training import Result, TrainConfig, train
from slipstream.training.run import open_data

_DEFAULT = Path("../shared/data/globo_clicks.parquet")
FULL, QUICK = (4_000_000, 1_000_000, 300_000), (300_000, 75_000, 60_000)
"""Samples; the first that is scored; samples of the comparison with torch."""
SETTINGS: dict[str, Any] = {
    "mode": "prequential",
    "max_samples": FULL[0],
    "score_from": FULL[1],
    "chunk_size": 4096,
    "batch_size": 1024,
    "model": {
        "name": "dlrm",
        "embedding_dim": 16,
        "init": "normal",
        "init_std": 0.02,
        "top": [64],
        "first_order": True,
    },
    "optimizer": {"name": "adagrad", "dense_name": "adam", "lr": 0.003, "embedding_lr": 0.1},
}
"""What ``examples/globo/train.yaml`` holds too."""


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` prepares the first clicks only and takes 300,000 samples instead of 4 million, scored from
            75,000 on, and one round of 60,000 samples against torch instead of three of 300,000.

    Returns:
        ``ratios``: ``torch``, prediction not counted on either side. ``quality``: AUC, log-loss and calibration of
        the scored samples, and samples a second.
    """
    source = options.data or _DEFAULT
    if not source.exists():
        raise DataError("no such data", file=source, remedy="name the Globo clicks with --data")
    samples, score_from, few = QUICK if options.quick else FULL
    size = {"max_samples": samples, "score_from": score_from}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        base = {**SETTINGS, "data": source, "cache": options.cache or temporary, "seed": options.seed}
        if options.quick:
            # Nearly every click makes 3 samples: half as many clicks as samples are enough.
            few_clicks = first_clicks(source, Path(temporary), samples // 2)
            base |= {"data": few_clicks, "cache": temporary}
        config = TrainConfig.model_validate({**base, **size, "threads": options.threads})
        store = open_data(config)
        whole = train(config, store=store)
        start = {"max_samples": few, "score_from": few // 2}
        runs: dict[str, list[Result]] = {"slipstream": [], "torch": []}
        for _ in range(1 if options.quick else 3):
            for engine, results in runs.items():
                results.append(train(config.model_copy(update={**start, "engine": engine}), store=store))
        seconds = {name: [result.seconds for result in results] for name, results in runs.items()}
        return Record(
            name="globo_prequential",
            dataset=_name(source, store),
            conditions={
                "quick": options.quick,
                "samples": config.max_samples,
                "scored from sample": config.score_from,
                "samples a chunk": config.chunk_size,
                "samples a batch": config.batch_size,
                "non-clicks a click": "2 articles of the preceding 3,000 clicks, other than the clicked one",
                "fields": ", ".join(feature.name for feature in store.features),
                "model": config.model.model_dump(),
                "optimizer": config.optimizer.model_dump(),
                "seed": config.seed,
                "samples against torch": few,
                "not counted": "prediction of the chunks, loading of compiled kernels",
            },
            ratios={"torch": ratio(seconds["slipstream"], seconds["torch"])},
            quality={
                "AUC": round(whole.quality, 5),
                "log-loss": round(whole.log_loss, 5),
                "calibration": round(whole.calibration, 4),
                "samples per second": round(whole.samples_per_second),
                "AUC on the start": round(runs["slipstream"][0].quality, 5),
                "AUC of torch on the start": round(runs["torch"][0].quality, 5),
            },
            rows=[
                _row("slipstream, all samples", whole),
                *(_row(f"{name}, start", result) for name, results in runs.items() for result in results),
            ],
        )


def first_clicks(source: Path, folder: Path, clicks: int) -> Path:
    """Writes the first clicks in time to a file of their own: preparing all takes longer than ``--quick`` may."""
    path = folder / source.with_suffix(".parquet").name
    log = pl.scan_parquet(source / "*.parquet" if source.is_dir() else source)
    try:
        log.sort("click_timestamp", maintain_order=True).head(clicks).collect().write_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"holds no Globo clicks: {error}", file=source) from error
    return path


def _name(source: Path, store: Store) -> str:
    return f"Globo ({source.name}), {store.num_samples:,} samples, fingerprint {store.fingerprint[:16]}"


def _row(name: str, result: Result) -> dict[str, Any]:
    return {
        "system": name,
        "samples": result.samples,
        "training s": round(result.seconds, 3),
        "prediction s": round(result.prediction_seconds, 3),
        "samples per second": round(result.samples_per_second),
        "AUC": round(result.quality, 5),
    }
