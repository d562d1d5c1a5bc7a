"""What all measurements of peers share: options, a training from start to score, who could not take part."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.catalogue import Settings, System
from benchmarks.peers.datasets import Dataset
from benchmarks.peers.processes import NotThere, PeerFailed, interpreter, opened
from benchmarks.peers.protocol import Fit, Fitted, Job, Opened

from slipstream.bench.frontier_options import PUBLIC
from slipstream.evaluation import ItemSets, rank_items, score, score_lists

TOP_K = 20
RANKED_USERS = 5_000
"""Users whose lists are scored, the same for all: scoring all takes longer than training."""
MARKS = 10
"""Points of a curve."""


@dataclass
class Options:
    """What is measured, and where things lie.

    Attributes:
        quick: Small: under 40 s, to see that it works.
        full: The whole cross of sizes and models.
        resume: Take trainings that an earlier run of the same commit has finished, from ``cache``.
        tune_only: Tune rates for later runs, and measure nothing.
        peers: Names of peers; None: all.
        systems: Names of the only systems that take part; None: all.
        seeds: Trainings of each system.
        samples: Use only the first so many; None: as the data set has it.
        threads: Threads that each computes with.
        cache: Folder for prepared data and tuned rates.
        folder: Where the public data sets lie.
        venvs: Where the peers' environments lie.
        left_out: Systems that could not take part, with the reason.
        versions: Of the peers' packages.
    """

    quick: bool = False
    full: bool = False
    tune_only: bool = False
    resume: bool = False
    peers: tuple[str, ...] | None = None
    systems: tuple[str, ...] | None = None
    seeds: int = 1
    samples: int | None = None
    threads: int = 2
    cache: Path = Path("runs/cache")
    folder: Path = PUBLIC
    venvs: Path = Path(".venv-peers")
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def python(self, name: str, system: System) -> Path | None:
        """The system's interpreter, None (and a reason in ``left_out``) where it is not installed."""
        try:
            return interpreter(system.peer, self.venvs)
        except NotThere as error:
            self.left_out[name] = without_paths(str(error))
            return None

    def note(self, system: System, answer: Opened) -> None:
        """Keeps the versions of a peer's packages."""
        if system.peer is not None:
            self.versions |= {f"{package} ({system.peer})": number for package, number in answer.versions.items()}


@dataclass(frozen=True)
class Mark:
    """A point of a curve."""

    samples: int
    seconds: float
    quality: float
    """AUC, or NDCG@20."""
    log_loss: float | None = None


@dataclass(frozen=True)
class Training:
    """A training with its scores.

    Attributes:
        curve: In order.
        share_of_inputs: Inputs trained on ÷ inputs that passed.
        peak_rss: Most bytes that its process held.
    """

    curve: list[Mark]
    share_of_inputs: float
    peak_rss: int

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.curve[-1].seconds

    @property
    def quality(self) -> float:
        """At its end."""
        return self.curve[-1].quality

    def seconds_to(self, target: float) -> float | None:
        """When it reached a quality, between two points of the curve by their line; None if it did not."""
        before: Mark | None = None
        for mark in self.curve:
            if mark.quality >= target:
                if before is None:
                    return mark.seconds
                share = (target - before.quality) / (mark.quality - before.quality)
                return before.seconds + share * (mark.seconds - before.seconds)
            before = mark
        return None


def train(
    name: str,
    system: System,
    settings: Settings,
    data: Dataset,
    options: Options,
    *,
    seed: int = 0,
    epochs: int = 1,
    marks: int = MARKS,
) -> Training | None:
    """One training in a process of its own, scored here; None, with a reason in ``left_out``, where it failed."""
    python = options.python(name, system)
    if python is None:
        return None
    job = Job(
        system.module, str(data.folder), list(data.train), list(data.test), settings, options.threads, seed, epochs
    )
    stop = data.train[1]
    at = sorted({max(1, stop * number // marks) for number in range(1, marks + 1)})
    try:
        with opened(python, name, job) as (worker, answer, out):
            options.note(system, answer)
            fitted = worker.ask(Fit(data.mode, str(out), at, data.chunk), Fitted)
            curve = _curve(fitted, data)
            if math.isnan(curve[-1].quality):
                options.left_out[name] = "diverged: its scores are not finite, or of one class alone"
                return None
            return Training(curve, fitted.share_of_inputs, worker.close().peak_rss)
    except (NotThere, PeerFailed) as error:
        options.left_out[name] = without_paths(str(error))
        return None


def without_paths(text: str) -> str:
    """A message without the folders of this machine."""
    return " ".join(word if "/" not in word else Path(word.strip("'\"():,")).name for word in text.split())


def _curve(fitted: Fitted, data: Dataset) -> list[Mark]:
    arrays = Arrays.load(data.folder)
    start, stop = data.test
    if data.mode == "ranking":
        return [_ranked(point.samples, point.seconds, point.files, data, arrays) for point in fitted.points]
    labels = np.asarray(arrays.labels)
    if data.mode == "holdout":
        return [_scored(p.samples, p.seconds, labels[start:stop], np.load(p.files[0])) for p in fitted.points]
    scores = np.load(fitted.scores)
    last = fitted.points[-1]
    inner = [point for point in fitted.points if start < point.samples < last.samples]
    thinned = inner[:: max(1, len(inner) // (2 * MARKS))]
    return [
        _scored(point.samples, point.seconds, labels[start : point.samples], scores[start : point.samples])
        for point in [*thinned, last]
    ]


def _scored(samples: int, seconds: float, labels: npt.NDArray, logits: npt.NDArray) -> Mark:
    if not np.isfinite(logits).all():
        return Mark(samples, seconds, float("nan"))
    figures = score(labels, logits)
    return Mark(samples, seconds, float("nan") if figures.auc is None else figures.auc, figures.log_loss)


def _ranked(samples: int, seconds: float, files: Sequence[str], data: Dataset, arrays: Arrays) -> Mark:
    """NDCG@20 over the full catalogue less the user's training items, for users with a held-out item."""
    import torch

    users, items = arrays.rows
    known = _sets(arrays, data.train)
    relevant = _sets(arrays, data.test).without(known)
    chosen = np.flatnonzero(relevant.counts)
    if len(chosen) > RANKED_USERS:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, RANKED_USERS, replace=False))
    if len(files) == 2:
        left, right = (torch.from_numpy(np.load(file)) for file in files)
        bias = torch.zeros(items)
        bias[0] = -torch.inf  # stands for whatever is unknown
        lists = rank_items(left[chosen], right, TOP_K, item_bias=bias, exclude=known.select(chosen))
    else:
        owners = np.load(Path(files[0]).with_name("users.npy"))
        given = np.full((users, TOP_K), -1, dtype=np.int64)
        given[owners] = np.load(files[0])
        lists = given[chosen]
    return Mark(samples, seconds, score_lists(lists, relevant.select(chosen), items - 1).ndcg)


def _sets(arrays: Arrays, where: tuple[int, int]) -> ItemSets:
    pairs = np.asarray(arrays.ids[slice(*where)])
    pairs = pairs[(pairs > 0).all(1)]
    return ItemSets.of_pairs(pairs[:, 0], pairs[:, 1], arrays.rows[0])


def conditions(options: Options, **more: Any) -> dict[str, Any]:
    """What stands in every record."""
    return {
        "quick": options.quick,
        "threads": options.threads,
        "seeds": list(range(options.seeds)),
        **more,
        "not installed or left out": dict(sorted(options.left_out.items())),
        "load average when it ended": round(os.getloadavg()[0], 1),
        "processes": "each system in a process of its own, one at work at a time, in turn; GOMP_SPINCOUNT the same",
    }


GOALS: Mapping[str, float] = {
    "samples_per_second/dlrm_reference": 3.0,
    "samples_per_second_bf16/dlrm_reference": 3.0,
    "samples_per_second/torchrec": 2.0,
    "samples_per_second_bf16/torchrec": 2.0,
    "samples_per_second_dim64/torchrec_bf16": 1.2,
    "samples_per_second_dim128/torchrec_bf16": 1.2,
    "seconds_to_auc/dlrm_reference": 4.0,
    "seconds_to_auc/torchrec": 2.4,
    "seconds_to_auc/fae": 1.3,
    "seconds_to_auc_within/dlrm_reference": 4.0,
    "seconds_to_auc_within/dlrm_reference_adagrad": 4.0,
    "seconds_to_auc_within/torchrec": 2.4,
    "seconds_to_auc_within/fae": 1.3,
    "seconds_to_its_auc/dlrm_reference": 4.0,
    "seconds_to_its_auc/dlrm_reference_adagrad": 4.0,
    "seconds_to_its_auc/torchrec": 2.4,
    "seconds_to_its_auc/fae": 1.3,
    "seconds_to_ndcg/recbole_bpr": 10.0,
    "seconds_to_ndcg/implicit_bpr": 1.0,
    "seconds_to_ndcg/implicit_als": 1.0,
}
"""Ratios that we set out to reach."""


def against_goals(ratios: Mapping[str, float]) -> dict[str, str]:
    """What a record says of each goal."""
    return {
        key: f"{ratio:.2f}x of {GOALS[key]:g}x"
        + ("" if ratio >= GOALS[key] else f", short by {1 - ratio / GOALS[key]:.0%}")
        for key, ratio in ratios.items()
        if key in GOALS
    }


def rate_of(settings: Mapping[str, Any], system: System) -> dict[str, float]:
    """The rates that a system trains with."""
    found: dict[str, float] = {}
    for name in system.rates:
        tree: Any = settings
        for part in name.split("."):
            tree = tree[part]
        found[name] = round(float(tree), 6)
    return found
