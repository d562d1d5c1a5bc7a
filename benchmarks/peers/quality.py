"""Time to quality: seconds to the AUC, or NDCG@20, that full training with the reference reaches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers import catalogue, datasets
from benchmarks.peers.catalogue import Settings, System, with_rate
from benchmarks.peers.common import RANKED_USERS, TOP_K, Mark, Options, Training, conditions, rate_of, train
from benchmarks.peers.datasets import Dataset
from benchmarks.peers.tuning import EPOCHS, tune

from slipstream.bench.rounds import ratio
from slipstream.data.atomic import write_text
from slipstream.report.machine import WITHOUT_BF16, commit, instructions
from slipstream.report.record import Record
from slipstream.report.timing import summarise

QUICK_CLICKS = ("slipstream", "importance_0.5", "dlrm_reference", "torchrec", "fuxictr")
QUICK_PAIRS = ("slipstream", "slipstream_hardest_of_8", "recbole_bpr", "implicit_bpr")
CLICK_SYSTEMS = tuple(name for name in catalogue.CLICKS if name not in ("fuxictr_dcnv2", "fuxictr_deepfm"))
"""Without ``--full``."""
RANKING_EPOCHS = {"gowalla": 10, "ml1m": 10, "movietweetings": 2}
REFERENCES = ("dlrm_reference", "dlrm_reference_adagrad")
TOLERANCE = 0.001
"""Of AUC: nearer to a target counts as equal, as in ``bench frontier``. At its last digit it is chance which of two
that do the same arithmetic lies above the other."""


def clicks(name: str, options: Options) -> Record:
    """Time to AUC on a data set of clicks.

    Each seed's target is the best final AUC of the DLRM references (SGD, Adagrad) of that seed.
    """
    if options.quick:
        options.samples = options.samples or 30_000
    data = datasets.clicks(name, options.cache, folder=options.folder, samples=options.samples)
    wanted = QUICK_CLICKS if options.quick else None if options.full else CLICK_SYSTEMS
    return _measure(f"peers_time_to_quality_{name}", catalogue.CLICKS, wanted, data, REFERENCES, "AUC", options)


def ranking(name: str, options: Options) -> Record:
    """Time to RecBole-BPR's NDCG@20 on pairs."""
    data = datasets.pairs(name, options.cache, folder=options.folder, quick=options.quick)
    wanted = QUICK_PAIRS if options.quick else tuple(catalogue.PAIRS)
    if name != "ml1m" and not options.quick:
        # 30,000 users times 41,000 items through its MLP: scoring takes hours.
        options.left_out["recbole_neumf"] = "has no vectors; its lists are made on ml1m alone"
        wanted = tuple(system for system in wanted if system != "recbole_neumf")
    epochs = RANKING_EPOCHS[data.name]
    measure = f"NDCG@{TOP_K}"
    return _measure(
        f"peers_ranking_{data.name}", catalogue.PAIRS, wanted, data, ("recbole_bpr",), measure, options, epochs=epochs
    )


def _measure(
    title: str,
    known: Mapping[str, System],
    wanted: tuple[str, ...] | None,
    data: Dataset,
    references: Sequence[str],
    measure: str,
    options: Options,
    *,
    epochs: int = 1,
) -> Record:
    systems = catalogue.chosen(known, options.peers, wanted)
    if options.systems is not None:
        systems = {name: system for name, system in systems.items() if name in options.systems}
    if data.mode == "prequential":
        for name in [name for name in systems if name in ("fae", "slipstream_paper")]:
            options.left_out[name] = "orders or drops within an epoch: has no prequential form"
            del systems[name]
    if options.systems is None and instructions() in WITHOUT_BF16:
        for name in [name for name, system in systems.items() if system.settings(data).get("bf16")]:
            options.left_out[name] = f"this processor ({instructions()}) lacks bfloat16 products: --systems takes it"
            del systems[name]
    tuned = tune(systems, data, options, known)
    if options.tune_only:
        return Record(name=title, dataset=data.title, conditions=conditions(options, tuning=tuned))
    settings = {name: with_rate(s, s.settings(data), tuned[name]["factor"]) for name, s in systems.items()}
    done: dict[str, list[Training]] = {name: [] for name in systems}
    for seed in range(options.seeds):
        for name, system in systems.items():
            passes = epochs if options.quick else system.epochs or epochs
            training = _once(name, system, settings[name], data, options, seed, passes)
            if training is not None:
                done[name].append(training)
    complete = {name: trainings for name, trainings in done.items() if len(trainings) == options.seeds}
    record = Record(
        name=title,
        dataset=data.title,
        conditions=conditions(
            options,
            measure=measure,
            mode=data.mode,
            samples=data.train[1],
            **{"samples scored": data.test[1] - data.test[0], "epochs": epochs, "model": data.model},
            **_words(measure, epochs, prequential=data.mode == "prequential"),
            **({"tuned on": data.rates_from.name} if data.rates_from is not None else {}),
            tuning=tuned,
            rates={name: rate_of(settings[name], systems[name]) for name in systems},
            **({"negatives": {name: s.draws for name, s in systems.items()}} if data.mode == "ranking" else {}),
        ),
    )
    record.versions |= options.versions
    _fill(record, systems, complete, [name for name in references if name in complete], measure, data.mode)
    record.conditions["not installed or left out"] = dict(sorted(options.left_out.items()))
    return record


def _once(
    name: str, system: System, settings: Settings, data: Dataset, options: Options, seed: int, epochs: int
) -> Training | None:
    """A training, kept in the cache: a long measurement may be made in pieces."""
    what = [commit(), name, settings, data.title, seed, epochs, options.threads]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    file = options.cache / "trained" / f"{name}-{key}.json"
    if options.resume and not str(commit()).endswith("dirty") and file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        options.versions |= kept["versions"]
        return Training([Mark(*mark) for mark in kept["curve"]], kept["share_of_inputs"], kept["peak_rss"])
    training = train(name, system, settings, data, options, seed=seed, epochs=epochs)
    if training is not None:
        tree = {
            "curve": [[mark.samples, mark.seconds, mark.quality, mark.log_loss] for mark in training.curve],
            "share_of_inputs": training.share_of_inputs,
            "peak_rss": training.peak_rss,
            "versions": options.versions,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(tree))
    return training


def _words(measure: str, epochs: int, *, prequential: bool) -> dict[str, str]:
    words = {
        "grid": "each system's rates times 1/3, 1, 3, and on to 1/27 or 27 while the best is at an end, chosen on a "
        "part of the training samples not scored in the end; policies have the engine's rates, published systems "
        "and bf16 those of the same arithmetic",
        "not counted": "opening of data, compilation, prediction; every other second of the loop counts",
        "seconds_to": (
            "the whole pass"
            if prequential
            else "first time at or above the target, between two points of the curve by their line"
        )
        + ", of systems that end at or above the target on average over the seeds; a seed that ends below it counts "
        "with its whole training",
    }
    if measure == "AUC":
        words["target"] = "best final AUC of DLRM on plain torch, SGD or Adagrad, of the same seed"
        words["within"] = f"the same, {TOLERANCE:g} below the target"
        words["to its AUC"] = f"to {TOLERANCE:g} below each peer's own final AUC, of the same seed"
    else:
        words["target"] = f"best {measure} of RecBole's BPR within {epochs} epochs, of the same seed"
        words["scored on"] = f"the full catalogue, at most {RANKED_USERS:,} users, the same for all"
        words["grid"] = (
            "each system's rate (ALS: alpha) times 1/3, 1, 3, and on to 1/27 or 27 while the best is at an end, "
            f"{EPOCHS} epochs (implicit BPR 20), a tenth of the training pairs scored"
        )
        words["epochs of implicit"] = "its defaults, BPR 100 and ALS 15; scored after each, later after every tenth"
    return words


def _fill(
    record: Record,
    systems: Mapping[str, System],
    done: Mapping[str, list[Training]],
    references: Sequence[str],
    measure: str,
    mode: str,
) -> None:
    """Rows, points, quality and ratios."""
    ranked = measure != "AUC"
    targets: list[float] = []
    if references:
        seeds = range(len(done[references[0]]))
        targets = [max(_best(done[name][seed], ranked) for name in references) for seed in seeds]
        record.quality[f"{measure} to reach"] = round(sum(targets) / len(targets), 5)
    reached = _reached(done, targets, mode)
    for name, trainings in done.items():
        quality = sum(_best(t, ranked) for t in trainings) / len(trainings)
        record.quality[f"{measure} {name}"] = round(quality, 5)
        whole = [training.seconds for training in trainings]
        samples = trainings[0].curve[-1].samples
        row: dict[str, Any] = {
            "system": name,
            "measure": f"seconds to {measure}" if name in reached else f"{measure} not reached",
            **(summarise(reached[name]) if name in reached else {}),
            **{f"whole training {key}": value for key, value in summarise(whole).items()},
            "samples per second": round(samples / summarise(whole)["p50"]),
            measure: round(quality, 5),
            "log-loss": None
            if ranked
            else round(sum(t.curve[-1].log_loss or 0 for t in trainings) / len(trainings), 5),
            "share of inputs trained": round(trainings[0].share_of_inputs, 4),
            "peak RSS MiB": round(max(t.peak_rss for t in trainings) / 2**20),
        }
        record.rows.append(row)
        record.points += [
            {
                "system": name,
                "seed": seed,
                "curve": [[m.samples, round(m.seconds, 4), round(m.quality, 5)] for m in t.curve],
            }
            for seed, t in enumerate(trainings)
        ]
    _ratios(record, systems, reached, "seconds_to_ndcg" if ranked else "seconds_to_auc")
    if not ranked:
        near = _reached(done, [target - TOLERANCE for target in targets], mode)
        _ratios(record, systems, near, "seconds_to_auc_within")
        _ratios_to_its_own(record, systems, done, mode)


def _reached(done: Mapping[str, list[Training]], targets: Sequence[float], mode: str) -> dict[str, list[float]]:
    """Seconds to the targets, one for each seed, of the systems that get there on average over the seeds.

    A seed that stays below its target counts with its whole training. Empty without targets.
    """
    reached: dict[str, list[float]] = {}
    for name, trainings in done.items():
        ended = [_best(training, mode == "ranking") for training in trainings]
        if targets and sum(ended) >= sum(targets):
            times = [_seconds_to(training, goal, mode) for training, goal in zip(trainings, targets, strict=True)]
            reached[name] = [
                training.seconds if seconds is None else seconds
                for training, seconds in zip(trainings, times, strict=True)
            ]
    return reached


def _ratios_to_its_own(
    record: Record, systems: Mapping[str, System], done: Mapping[str, list[Training]], mode: str
) -> None:
    """What ours gains on the way to what each peer ends with, so that no peer is judged by another's quality."""
    for name, trainings in done.items():
        if systems[name].share:
            continue
        reached = _reached(done, [training.quality - TOLERANCE for training in trainings], mode)
        ours = [reached[other] for other in reached if systems[other].share]
        if ours:
            best = min(ours, key=lambda seconds: summarise(seconds)["p50"])
            record.ratios[f"seconds_to_its_auc/{name}"] = ratio(best, reached[name])


def _ratios(record: Record, systems: Mapping[str, System], reached: Mapping[str, list[float]], measure: str) -> None:
    ours = [name for name in reached if systems[name].share]
    if not ours:
        return

    def fastest(names: Sequence[str]) -> str:
        return min(names, key=lambda name: summarise(reached[name])["p50"])

    best = fastest(ours)
    # Nothing skipped, float32: of our own choice or with the optimizer of a peer.
    alone = [name for name in ours if systems[name].share in ("engine", "like for like")]
    engine = fastest(alone) if alone else None
    record.conditions[f"ours, {measure}"] = f"the fastest of ours ({best})" + (
        f"; engine_alone: nothing skipped, float32 ({engine})" if engine else ""
    )
    for name, seconds in reached.items():
        if not systems[name].share:
            record.ratios[f"{measure}/{name}"] = ratio(reached[best], seconds)
            if engine:
                record.ratios[f"{measure}_engine_alone/{name}"] = ratio(reached[engine], seconds)
        elif engine and name not in alone:
            share = systems[name].share.replace(" ", "_")
            record.ratios[f"{measure}_share_of_{share}/{name}"] = ratio(seconds, reached[engine])


def _seconds_to(training: Training, target: float, mode: str) -> float | None:
    """Seconds to the target; a stream is scored as a whole, so its pass has to end."""
    if mode == "prequential":
        return training.seconds if training.quality >= target else None
    return training.seconds_to(target)


def _best(training: Training, ranked: bool) -> float:
    return max(mark.quality for mark in training.curve) if ranked else training.quality
