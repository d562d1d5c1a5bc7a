"""Training without end: ``python -m tests.soak MINUTES [RECORD.json [PLOT.svg]]``.

One process continues from slice to slice of the bundled MovieTweetings, as a nightly job does: each day's ratings are
prepared with the vocabulary so far, trained on with checkpoints, scored and predicted; after the last slice it starts
again with the next policy. After every training the resident memory, threads and open files of the process are noted.
In the second half resident memory may grow by 2 %, threads and open files not at all; else status 1. The first half
is for what torch and oneDNN keep of every batch size that they have met: a policy that drops inputs ends each training
on a batch of another size.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from slipstream.data.atomic import write_text
from slipstream.data.prepare import prepare
from slipstream.report import plots
from slipstream.report.record import Record
from slipstream.training import TrainConfig, evaluate, predict, train

RATINGS = Path(__file__).parents[1] / "examples" / "movietweetings"
SLICES, ROWS = 5, 6_000
POLICIES: dict[str, Any] = {
    "none": "none",
    "random": {"name": "random", "budget": 0.5},
    "psse": {"name": "psse", "budget": 0.8, "warmup_steps": 10, "every": 10},
    "saturation": {"name": "saturation", "budget": 0.5, "warmup_steps": 10, "every": 10},
    "slipstream": {"name": "slipstream", "budget": 0.5, "mode": "periodic", "every": 20, "window": 4},
    "row_importance": {"name": "row_importance", "budget": 0.5},
    "subsampling": {"name": "subsampling", "budget": 0.5, "warmup_steps": 10, "every": 10},
    "importance": {"name": "importance", "budget": 0.5},
    "guard": {"name": "guard", "policy": "importance", "measure_every": 5, "first_copy": 1000},
}
ALLOWED = 1.02


def slices(folder: Path) -> list[Path]:
    """The first ratings, cut in time order: one folder of raw files a slice."""
    lines = (RATINGS / "ratings.dat").read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=lambda line: int(line.rsplit("::", 1)[1]))
    made: list[Path] = []
    for number in range(SLICES):
        raw = folder / f"raw{number}"
        raw.mkdir()
        (raw / "ratings.dat").write_text("".join(lines[number * ROWS : (number + 1) * ROWS]), encoding="utf-8")
        shutil.copy(RATINGS / "movies.dat", raw)
        made.append(raw)
    return made


def continue_through(raw: list[Path], folder: Path, policy: Any, seed: int) -> None:
    """Prepares and trains one slice after the other, each from what the one before has learned."""
    before = None
    for number, source in enumerate(raw):
        store = prepare(source, folder / f"data{number}", extend=before and before / "data")
        run = folder / f"run{number}"
        settings: dict[str, Any] = {
            "data": store.path,
            "model": {"name": "dlrm", "embedding_dim": 16, "top": [64, 32]},
            "optimizer": {"name": "adam", "lr": 0.003},
            "batch_size": 128,
            "mode": "prequential",
            "chunk_size": 1024,
            "checkpoint": {"steps": 20},
            "policy": policy,
            "seed": seed,
            "out": run,
        }
        if before is not None:
            settings["continue_from"] = before / "run"
        train(TrainConfig.model_validate(settings).resolved(), store=store)
        evaluate(run, store.path)
        predict(run, store.path)
        previous, before = before, folder / f"kept{number}"
        before.mkdir()
        run.rename(before / "run")
        (before / "data").symlink_to(store.path)
        if previous is not None:
            shutil.rmtree(previous)


def usage() -> dict[str, float]:
    """Resident memory in MiB, threads and open files of this process."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {
        "rss_mib": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def soak(minutes: float) -> list[dict[str, Any]]:
    """Trains for so long; returns what was used after each round of slices."""
    began = time.monotonic()
    noted: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-soak-") as temporary:
        raw = slices(Path(temporary))
        while len(noted) < 3 * len(POLICIES) or noted[-1]["minutes"] < minutes:
            number = len(noted)
            name = list(POLICIES)[number % len(POLICIES)]
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                continue_through(raw, Path(folder), POLICIES[name], seed=number)
            noted.append({"minutes": (time.monotonic() - began) / 60, "policy": name} | usage())
            print(" ".join(f"{key}={value:.5g}" if key != "policy" else name for key, value in noted[-1].items()))
            sys.stdout.flush()
    return noted


def growth(noted: list[dict[str, Any]], key: str) -> float:
    """The last turn of every policy against the one at half time: median of the ratios, policy by policy."""
    turns = len(noted) // len(POLICIES)
    half, last = ((turn - 1) * len(POLICIES) for turn in ((turns + 1) // 2, turns))
    return median(noted[last + i][key] / noted[half + i][key] for i in range(len(POLICIES)))


def main() -> None:
    """Soaks, keeps the record and the plot, and judges."""
    minutes, *paths = sys.argv[1:]
    noted = soak(float(minutes))
    grown = {key: growth(noted, key) for key in ("rss_mib", "threads", "files")}
    record = Record(
        name="soak",
        command=f"make soak MINUTES={minutes}",
        dataset=f"MovieTweetings, {SLICES} slices of {ROWS:,} ratings in time order",
        conditions={
            "minutes": round(noted[-1]["minutes"], 1),
            "trainings": len(noted) * SLICES,
            "policies": list(POLICIES),
            "growth": "the last turn of every policy against the one at half time; above 1 has grown",
        },
        quality={f"growth of {key}": round(value, 4) for key, value in grown.items()},
        rows=noted,
    )
    if paths:
        record.save(paths[0])
    if len(paths) > 1:
        at = [row["minutes"] for row in noted]
        series = {"resident memory": (at, [row["rss_mib"] for row in noted])}
        write_text(paths[1], plots.lines(series, x="minutes", y="MiB", name="soak"))
    print(f"{len(noted) * SLICES} trainings, growth: " + ", ".join(f"{k} {v:.3f}" for k, v in grown.items()))
    sys.exit(int(grown["rss_mib"] > ALLOWED or grown["threads"] > 1 or grown["files"] > 1))


if __name__ == "__main__":
    main()
