"""Samples a second of whole training steps, broken down, all systems taking turns on the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers import catalogue, datasets
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.catalogue import System
from benchmarks.peers.common import Options, conditions, without_paths
from benchmarks.peers.datasets import Dataset
from benchmarks.peers.processes import NotThere, PeerFailed, Worker, starting
from benchmarks.peers.protocol import PHASES, Fit, Fitted, Job, Opened, Spent, Steps

from slipstream.bench import workload
from slipstream.bench.rounds import ratio
from slipstream.errors import ConfigError
from slipstream.evaluation import score
from slipstream.report.record import Record
from slipstream.report.timing import summarise

HEADLINE = (16, 2048)
"""Row size and batch size of DLRM's Criteo Kaggle configuration."""
TRIMMED = ((16, 2048), (64, 2048), (128, 2048), (16, 512), (16, 8192))
CROSS = tuple((dim, batch) for dim in (16, 64, 128) for batch in (512, 2048, 8192))
LIKE_FOR_LIKE: Mapping[str, str] = {
    "dlrm_reference": "slipstream_sgd",
    "xdl": "slipstream_sgd",
    "torchrec": "slipstream",
    "fuxictr": "slipstream",
    "fuxictr_dcnv2": "slipstream",
    "fuxictr_deepfm": "slipstream",
    "torchrec_bf16": "slipstream_bf16",
    "dlrm_reference_bf16": "slipstream_bf16",
}
"""Which of ours each peer is set against: the same optimizer and precision where ours has it."""
FASTEST = ("dlrm_reference", "torchrec")
"""Float32 peers that ours in bf16, compiled, is set against besides."""
HEADLINE_SYSTEMS = ("slipstream", "slipstream_bf16", "slipstream_sgd", *dict.fromkeys(LIKE_FOR_LIKE))
OTHER_SYSTEMS = tuple(n for n in HEADLINE_SYSTEMS if n not in ("fuxictr", "fuxictr_dcnv2", "fuxictr_deepfm", "xdl"))
QUICK_SYSTEMS = ("slipstream", "slipstream_sgd", "dlrm_reference", "torchrec", "fuxictr")
LIBRARY_BYTES = 700 << 20
"""Of a process before it has tables."""
TABLE_COPIES: Mapping[str, int] = {"fuxictr": 4}
"""Tables, and what is as large: FuxiCTR has dense gradients and Adam's moments."""
FEATURES, STEP_COPIES = 27, 10
"""Vectors of a sample, and how often a step holds those of a batch, gradients included."""
SAMPLES = 131_072
SGD_RATE = 0.3
"""As in ``slipstream bench step``, on the same kind of data."""
SLOW_PEER = "fuxictr"
"""Passes over whole tables in every step: one step a turn."""


def run(options: Options, sizes: Sequence[tuple[int, int]] | None = None, earlier: Record | None = None) -> Record:
    """Measure.

    Args:
        options: Options.
        sizes: Pairs of row size and batch size; None: the trimmed cross, with ``full`` the whole one, with ``quick``
            the headline alone. Away from it ``quick`` takes the two systems of the bf16 goals.
        earlier: A record of the same commit, to which these sizes are added.

    Raises:
        ConfigError: ``earlier`` is of another commit; the systems of a size do not fit in memory.
    """
    sizes = sizes or ((HEADLINE,) if options.quick else CROSS if options.full else TRIMMED)
    record = Record(name="peers_throughput")
    titles: list[str] = []
    needed: dict[str, float] = {}
    if earlier is not None:
        if earlier.commit != record.commit or earlier.name != record.name:
            raise ConfigError(f"the earlier record is {earlier.name} of commit {earlier.commit}, not {record.commit}")
        record.rows = [row for row in earlier.rows if (row["dim"], row["batch_size"]) not in sizes]
        record.ratios, record.versions = dict(earlier.ratios), dict(earlier.versions)
        record.command = earlier.command
        titles = earlier.dataset.split("; synthetic")
        titles = [titles[0], *("synthetic" + title for title in titles[1:])]
        needed |= earlier.conditions["memory estimate, GiB"]
        options.left_out = {**earlier.conditions["not installed or left out"], **options.left_out}
    for dim, batch in sizes:
        # As many bytes of tables at every row size.
        rows = 300_000 if options.quick else workload.TOTAL_ROWS * HEADLINE[0] // dim
        data = datasets.criteo_shaped(rows, 16_384 if options.quick else SAMPLES, options.cache)
        data = replace(data, batch_size=batch, model={**data.model, "dim": dim})
        titles += [data.title] if data.title not in titles else []
        needed[f"{dim}x{batch}"] = round(check_memory(_wanted(dim, batch, options), data, options) / 2**30, 1)
        _size(record, data, dim, batch, options)
    record.dataset = "; ".join(titles)
    record.versions |= options.versions
    record.conditions = conditions(
        options,
        **{
            "model": "DLRM, bottom 13-512-256-64-D, top 512-256-1, 26 tables; FuxiCTR: its DLRM, both MLPs 512-256",
            "unit": "seconds a step; its phases by the same clock for all; TorchRec updates its tables in backward",
            "quality": "AUC after the turns and one more epoch, rates not tuned; none of FuxiCTR, as slow",
            "set against": dict(LIKE_FOR_LIKE),
            "bf16": "autocast, dense part compiled, on both sides",
            "memory estimate, GiB": needed,
            "samples_per_second_bf16": "ours in bf16, compiled, against float32 peers",
        },
    )
    return record


def _wanted(dim: int, batch: int, options: Options) -> dict[str, System]:
    """Who takes part at a size: those that were named, else the usual ones."""
    wanted = HEADLINE_SYSTEMS if (dim, batch) == HEADLINE or options.full else OTHER_SYSTEMS
    if options.systems is not None:
        wanted = tuple(name for name in options.systems if name in HEADLINE_SYSTEMS)
    elif options.quick:
        wanted = QUICK_SYSTEMS if (dim, batch) == HEADLINE else ("slipstream_bf16", "torchrec_bf16")
    elif not options.full:
        wanted = tuple(name for name in wanted if name not in ("fuxictr_dcnv2", "fuxictr_deepfm"))
    return catalogue.chosen(catalogue.CLICKS, options.peers, wanted)


def check_memory(systems: Mapping[str, System], data: Dataset, options: Options) -> int:
    """Bytes that the systems take side by side, roughly.

    Libraries, compiled code, tables with their state, and the vectors of a step: as measured, rounded up.

    Raises:
        ConfigError: More than the machine has free.
    """
    rows = sum(Arrays.load(data.folder).rows)
    dim, batch = data.model["dim"], data.batch_size
    total = 0
    for name, system in systems.items():
        there = system.peer is None or (options.venvs / system.peer).exists()
        copies = TABLE_COPIES.get(name.split("_")[0], 1) + (name == "dlrm_reference_adagrad")
        step = 4 * batch * FEATURES * dim * STEP_COPIES
        total += there * (LIBRARY_BYTES + 4 * rows * dim * copies + step)
    free = _available()
    if free is not None and total > free:
        raise ConfigError(
            f"{len(systems)} systems at {dim}x{batch} take about {total / 2**30:.1f} GiB, {free / 2**30:.1f} are free",
            remedy="name fewer with --systems (slipstream_bf16,torchrec_bf16 is the pair of the bf16 goals)",
        )
    return total


def _available() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _size(record: Record, data: Dataset, dim: int, batch: int, options: Options) -> None:
    systems = _wanted(dim, batch, options)
    with ExitStack() as stack:
        workers = _open(systems, data, options, stack)
        spent = _rounds(workers, systems, batch, options)
        for name in list(spent):
            epoch = {}
            try:
                if (dim, batch) == HEADLINE and (options.quick or systems[name].peer != SLOW_PEER):
                    epoch = _epoch(workers[name], data)
                peak = workers[name].close().peak_rss
            except PeerFailed as error:
                options.left_out[name] = without_paths(str(error))
                del spent[name]
                continue
            if epoch:
                record.quality |= {f"AUC {name}": epoch["AUC"], f"log-loss {name}": epoch["log-loss"]}
            record.rows.append(_row(name, dim, batch, spent[name], peak) | epoch)
    seconds = {name: [sum(s.seconds.values()) / s.samples for s in turns] for name, turns in spent.items()}
    headline = (dim, batch) == HEADLINE
    suffix = "" if headline else f"_dim{dim}" if batch == HEADLINE[1] else f"_dim{dim}_batch{batch}"
    for peer, ours in LIKE_FOR_LIKE.items():
        if peer in seconds and ours in seconds:
            record.ratios[f"samples_per_second{suffix}/{peer}"] = ratio(seconds[ours], seconds[peer])
    for peer in FASTEST:
        if peer in seconds and "slipstream_bf16" in seconds:
            record.ratios[f"samples_per_second_bf16{suffix}/{peer}"] = ratio(seconds["slipstream_bf16"], seconds[peer])


def _open(systems: Mapping[str, System], data: Dataset, options: Options, stack: ExitStack) -> dict[str, Worker]:
    """Processes of all systems that could be started; they get ready side by side."""
    started: dict[str, Worker] = {}
    for name, system in systems.items():
        python = options.python(name, system)
        if python is not None:
            settings, ranges = _settings(system, data), (list(data.train), list(data.test))
            job = Job(system.module, str(data.folder), *ranges, settings, options.threads)
            started[name] = stack.enter_context(starting(python, name, job))[0]
    ready: dict[str, Worker] = {}
    for name, worker in started.items():
        try:
            options.note(systems[name], worker.receive(Opened))
            ready[name] = worker
        except (NotThere, PeerFailed) as error:
            options.left_out[name] = without_paths(str(error))
    return ready


def _settings(system: System, data: Dataset) -> dict[str, Any]:
    settings = system.settings(data)
    if system.peer == "fuxictr":
        settings["batch_size"] = data.batch_size
    for tree in (settings, settings.get("optimizer")):
        if isinstance(tree, dict) and "sgd" in (tree.get("optimizer"), tree.get("name")):
            tree["lr"] = SGD_RATE
    return settings


def _rounds(
    workers: Mapping[str, Worker], systems: Mapping[str, System], batch: int, options: Options
) -> dict[str, list[Spent]]:
    """What each took in each turn; who fails is left out."""
    rounds = 3 if options.quick else 8
    steps = max(1, min(2 if options.quick else 4, 8_192 // batch))
    spent: dict[str, list[Spent]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name in list(spent):
            count = 1 if systems[name].peer == SLOW_PEER else steps
            try:
                answer = workers[name].ask(Steps(count), Spent)
            except PeerFailed as error:
                options.left_out[name] = without_paths(str(error))
                del spent[name]
                continue
            if turn:  # the first warms up
                spent[name].append(answer)
    return spent


def _epoch(worker: Worker, data: Dataset) -> dict[str, float]:
    """Speed of a pass over all training samples by the system's own loop, and its quality then."""
    with tempfile.TemporaryDirectory(prefix="slipstream-peers-") as folder:
        fitted = worker.ask(Fit("holdout", folder, [data.train[1]]), Fitted)
        end = fitted.points[-1]
        labels = np.asarray(Arrays.load(data.folder).labels[slice(*data.test)])
        scores = score(labels, np.load(end.files[0]))
    assert scores.auc is not None and scores.log_loss is not None
    return {
        "samples per second, epoch": round(end.samples / end.seconds),
        "AUC": round(scores.auc, 5),
        "log-loss": round(scores.log_loss, 5),
    }


def _row(name: str, dim: int, batch: int, turns: Sequence[Spent], peak: int) -> dict[str, Any]:
    per_step = [sum(turn.seconds.values()) / turn.samples * batch for turn in turns]
    figures = summarise(per_step)
    parts = {p: summarise([t.seconds[p] / t.samples * batch for t in turns])["p50"] for p in PHASES}
    return {
        "system": name,
        "dim": dim,
        "batch_size": batch,
        "samples per second": round(batch / figures["p50"]),
        **figures,
        **{f"{phase} p50": round(value, 6) for phase, value in parts.items()},
        "rounds": len(turns),
        "peak RSS MiB": round(peak / 2**20),
    }
