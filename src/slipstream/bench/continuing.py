"""Frequent updates: going on with each new slice of a log, against retraining on everything, and against a stale model.

``slipstream bench continue --json FILE --html FILE``. The log is Globo's, cut by time; each slice's vocabulary extends
that of the slice before. After each slice a model is brought up to date in two ways, by ``train --continue`` on the
slice and by a training from scratch on all slices so far, and both, and the model of the first slice, are scored on
the whole next slice, values that a model does not know as out of vocabulary. The samples are the same for all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from slipstream.bench import BenchOptions
from slipstream.bench.continue_options import CONTINUE_BUDGETS, ContinueOptions
from slipstream.bench.frontier_policies import with_policy
from slipstream.bench.globo import SETTINGS
from slipstream.data.encoder import ENCODER
from slipstream.data.prepare import prepare
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import DataError
from slipstream.report.continuing import CONTINUED, RETRAINED, STALE, differences, summary, times
from slipstream.report.record import Record
from slipstream.training import Result, TrainConfig, evaluate, train

_CLICKS = "globo_clicks.parquet"
HELD = 1000
"""Samples at the end of each training that are not trained on: a training scores something."""
QUICK_SLICES, QUICK_USERS = 3, 0.03


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``continuing`` says what; ``quick`` takes 3 slices, 3 % of the users and one seed.

    Returns:
        ``points``: each model at each slice. ``rows``: means by policy and way of updating. ``ratios``: time of
        retraining ÷ time of continuing. ``quality``: AUC on the next slice, less retraining's.

    Raises:
        DataError: There is no such data, or a slice holds too few clicks.
    """
    wanted = options.continuing or ContinueOptions()
    slices, users = (QUICK_SLICES, QUICK_USERS) if options.quick else (wanted.slices, wanted.users)
    seeds = 1 if options.quick else wanted.seeds
    policies = list(dict.fromkeys(("none", *wanted.policies)))
    source = wanted.folder / _CLICKS
    if not source.exists():
        raise DataError("no such data", file=source, remedy="name the folder of the Globo clicks with --folder")
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=options.cache) as temporary:
        folder = Path(temporary)
        parts = _prepared(source, folder, slices, wanted.hours, users)
        wholes = [_joined(parts[: i + 1], folder / f"whole{i}") for i in range(1, slices - 1)]
        base = {**SETTINGS, "data": source, "mode": "holdout", "max_samples": None, "score_from": 0}
        base |= {"threads": options.threads, "checkpoint": {"minutes": None}}
        for seed in range(options.seed, options.seed + seeds):
            for policy in policies:
                config = with_policy(
                    TrainConfig.model_validate({**base, "seed": seed}),
                    policy,
                    CONTINUE_BUDGETS[policy],
                    parts[0].num_samples,
                )
                runs = folder / "runs"
                points += [{"policy": policy, "seed": seed, **point} for point in _measure(config, parts, wholes, runs)]
                shutil.rmtree(runs)
    return Record(
        name="continue",
        dataset=f"Globo, {users:g} of the users, {slices} slices of {wanted.hours:g} h, fingerprints "
        + ", ".join(part.fingerprint[:8] for part in parts),
        conditions={
            "quick": options.quick,
            "seeds": seeds,
            "samples of the slices": [part.num_samples for part in parts],
            "rows of all tables by slice": [sum(feature.num_rows for feature in part.features) for part in parts],
            "budgets": {policy: CONTINUE_BUDGETS[policy] for policy in policies},
            "model": config.model.model_dump(mode="json"),
            "optimizer": config.optimizer.model_dump(mode="json"),
            "schedule": config.schedule.model_dump(mode="json"),
            "batch size": config.batch_size,
            "epochs": config.epochs,
            "rates": "the data set's own, the same for all",
            "not trained on": f"the last {HELD:,} samples of each training",
            "scored": "the whole next slice; values that a model does not know are out of vocabulary",
            "not counted": "preparing the data, scoring, reading and writing checkpoints, loading of compiled kernels",
        },
        ratios={f"retraining, {policy}": round(ratio, 4) for policy, ratio in times(points).items()},
        quality={name: round(spread.mean, 5) for name, spread in differences(points).items()},
        rows=summary(points),
        points=points,
    )


def _prepared(source: Path, folder: Path, slices: int, hours: float, users: float) -> list[Store]:
    """One store a slice, each vocabulary extending the one before."""
    log = pl.scan_parquet(source / "*.parquet" if source.is_dir() else source)
    stores: list[Store] = []
    try:
        start = int(log.select(pl.col("click_timestamp").min()).collect().item())
        chosen = log.filter(pl.col("user_id").hash(seed=1) % 1000 < round(1000 * users))
        for number in range(slices):
            first, last = (start + round((number + i) * hours * 3600) for i in (0, 1))
            clicks = folder / f"slice{number}" / _CLICKS
            clicks.parent.mkdir()
            time = pl.col("click_timestamp")
            rows = chosen.filter((time >= first) & (time < last)).sort("click_timestamp", maintain_order=True).collect()
            if len(rows) < HELD:
                raise DataError(
                    f"slice {number + 1} holds {len(rows)} clicks, fewer than {HELD:,}",
                    file=source,
                    remedy="take longer slices, fewer of them, or more users",
                )
            rows.write_parquet(clicks)
            previous = stores[-1].path if stores else None
            stores.append(prepare(clicks, folder / f"part{number}", extend=previous))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"holds no Globo clicks: {error}", file=source) from error
    return stores


def _joined(parts: Sequence[Store], out: Path) -> Store:
    """The samples of several slices, with the encoder of the last."""
    last = parts[-1]
    manifest = last.manifest
    writer = StoreWriter(
        out, last.features, dense=manifest.dense, label_dtype=manifest.label_dtype, has_time=manifest.has_time
    )
    with writer:
        for part in parts:
            batch = part.slice(0, part.num_samples)
            dense, time = batch.inputs.dense.numpy(), None if batch.time is None else batch.time.numpy()
            bags = [(bag.values.numpy(), bag.offsets.numpy()) for bag in batch.inputs.bags]
            writer.append(batch.inputs.ids.numpy(), dense, batch.labels.numpy(), time, bags)
        for file in (last.path / ENCODER, *sorted((last.path / "vocabulary").rglob("*.*"))):
            writer.add_file(str(file.relative_to(last.path)), lambda path, file=file: shutil.copyfile(file, path))
        return writer.commit(manifest.provenance)


def _measure(config: TrainConfig, parts: Sequence[Store], wholes: Sequence[Store], runs: Path) -> list[dict[str, Any]]:
    """Brings a model up to date after each slice, and scores it on the next."""

    def trained(name: str, store: Store, continued: Path | None = None) -> Result:
        update = {"out": runs / name, "continue_from": continued, "holdout": HELD / store.num_samples}
        return train(config.model_copy(update=update), store=store)

    results = {STALE: trained("first", parts[0])}
    newest = runs / "first"
    points: list[dict[str, Any]] = []
    for number, (part, whole, following) in enumerate(zip(parts[1:-1], wholes, parts[2:], strict=True), start=1):
        results[CONTINUED] = trained(f"continued{number}", part, newest)
        results[RETRAINED] = trained(f"retrained{number}", whole)
        newest = runs / f"continued{number}"
        for way, run in ((CONTINUED, newest), (RETRAINED, runs / f"retrained{number}"), (STALE, runs / "first")):
            scores, result = evaluate(run, following).scores, results[way]
            points.append(
                {
                    "way": way,
                    "slice": number + 1,
                    "auc": scores.auc,
                    "log_loss": scores.log_loss,
                    "calibration": scores.calibration,
                    "samples_scored": scores.samples,
                    "seconds": 0.0 if way == STALE else result.seconds,
                    "samples": 0 if way == STALE else result.samples,
                    "share_of_inputs_trained": result.share_of_inputs_trained,
                    "share_of_row_updates_skipped": result.share_of_row_updates_skipped,
                }
            )
    return points
