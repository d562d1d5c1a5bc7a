"""Slipstream beside what a user would pick instead: ``python -m benchmarks.peers WHAT [--quick] [--json FILE]``.

``make bench-peers`` makes the peers' environments and runs everything. A peer that is not installed is named in the
record, with the reason.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch: see `slipstream doctor`

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers import datasets, memory, quality, throughput
from benchmarks.peers.common import Options, against_goals

from slipstream.bench.frontier_options import PUBLIC
from slipstream.cli import output
from slipstream.errors import ConfigError, Interrupted, SlipstreamError
from slipstream.report.record import Record
from slipstream.training.termination import Termination

WHAT = ("throughput", "time_to_quality", "ranking", "memory", "all")

_CLICKS, _TRAININGS = ("throughput", "time_to_quality"), ("time_to_quality", "ranking")
APPLIES = {
    "full": _CLICKS,
    "tune_only": _TRAININGS,
    "resume": _TRAININGS,
    "systems": ("throughput", *_TRAININGS),
    "data": _TRAININGS,
    "sizes": ("throughput",),
    "add": ("throughput",),
    "seeds": _TRAININGS,
    "samples": ("time_to_quality",),
    "folder": _TRAININGS,
}
"""What each option is for; one that is not here is for all."""
DATA = {"time_to_quality": tuple(datasets.FRONTIER), "ranking": tuple(datasets.PAIRS)}
QUICK = ("throughput", "ranking")
"""What ``all --quick`` takes: every peer that is installed, in under 40 s."""


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    """Measures, prints, and writes records.

    Raises:
        SlipstreamError: What was asked for cannot be measured.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    everything = QUICK if given.quick else WHAT[:-1]
    measures = everything if given.what == "all" else (given.what,)
    _check(given, measures, parser)
    if given.what == "all" and given.quick:
        output.say(f"--quick: {' and '.join(QUICK)}; the others by name")
    records: list[Record] = []
    for measure in measures:
        for title, run in _runs(measure, given):
            options = Options(
                quick=given.quick,
                full=given.full,
                tune_only=given.tune_only,
                resume=given.resume,
                peers=_names(given.peers),
                systems=_names(given.systems),
                seeds=given.seeds,
                samples=given.samples,
                threads=given.threads or len(os.sched_getaffinity(0)),
                cache=given.cache,
                folder=given.folder,
                venvs=given.venvs,
            )
            record = run(options)
            record.conditions["goals"] = against_goals(record.ratios)
            pieces = [record.command] if given.add is not None else []
            record.command = "; ".join([*pieces, _command(measure, title, given)])
            output.record_tables(record.model_copy(update={"conditions": _shown(record), "points": []}))
            for name, reason in options.left_out.items():
                output.say(f"left out: {name}: {reason}")
            if given.json is not None and not given.tune_only:
                file = given.json if given.json.suffix == ".json" else given.json / f"{record.name}.json"
                output.say(f"record: {record.save(file)}")
            records.append(record)
    return records


def _check(given: argparse.Namespace, measures: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Whether every option that was given does something for what is measured.

    Raises:
        ConfigError: One does not; says what it is for.
    """
    named = f"{given.what} --quick" if given.what == "all" and given.quick else given.what
    for name, whose in APPLIES.items():
        if getattr(given, name) != parser.get_default(name) and not set(whose) & set(measures):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is not for {named}", remedy=f"leave it out, or measure {' or '.join(whose)}")
    for name in ("sizes", "full"):
        if given.quick and getattr(given, name):
            raise ConfigError(f"--quick has a size of its own: --{name} goes without it")
    known = [name for measure in measures for name in DATA.get(measure, ())]
    for name in _names(given.data) or ():
        if name not in known:
            raise ConfigError(f"{named} has no data {name!r}", remedy=f"choose among {', '.join(known)}")


def _runs(measure: str, given: argparse.Namespace) -> list[tuple[str, Callable[[Options], Record]]]:
    """Each record that is to be made, by the data it is of."""
    if measure == "throughput":
        earlier = Record.load(given.add) if given.add is not None else None
        return [("", lambda options: throughput.run(options, _sizes(given.sizes), earlier))]
    if measure == "memory":
        return [("", memory.run)]
    known, run = DATA[measure], quality.clicks if measure == "time_to_quality" else quality.ranking
    wanted = [name for name in _names(given.data) or () if name in known]
    if not given.data:
        wanted = [known[1] if measure == "time_to_quality" else known[0]] if given.quick else list(known)
    return [(name, lambda options, name=name: run(name, options)) for name in wanted]


def _shown(record: Record) -> dict[str, object]:
    """Conditions that fit a terminal."""
    return {key: value for key, value in record.conditions.items() if not isinstance(value, dict)}


def _command(measure: str, title: str, given: argparse.Namespace) -> str:
    """The command that makes the record again, without folders of this machine."""
    words = ["python", "-m", "benchmarks.peers", measure]
    chosen = {"peers": given.peers, "systems": given.systems, "sizes": given.sizes, "samples": given.samples}
    for name, value in {**chosen, "threads": given.threads}.items():
        words += [f"--{name}", str(value)] if value is not None else []
    words += ["--data", title] if title else []
    words += ["--seeds", str(given.seeds)] if given.seeds != 1 else []
    words += [f"--{name}" for name in ("quick", "full") if getattr(given, name)]
    return shlex.join(words)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part for part in text.replace(",", " ").split() if part)


def _sizes(text: str | None) -> tuple[tuple[int, int], ...] | None:
    """``16x2048,64x2048`` as pairs.

    Raises:
        ConfigError: It is something else.
    """
    if text is None:
        return None
    try:
        pairs = [tuple(int(number) for number in part.split("x")) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"sizes are DIMxBATCH with commas between, got {text!r}") from error
    if not all(len(pair) == 2 and min(pair) > 0 for pair in pairs):
        raise ConfigError(f"sizes are DIMxBATCH with commas between, got {text!r}")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__.splitlines()[0],
        epilog="quality stands for time_to_quality and ranking; an option that does nothing for WHAT is refused",
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--quick", action="store_true", help="small, under 40 s each, to see that it works")
    parser.add_argument("--full", action="store_true", help="throughput, time_to_quality: all sizes and models")
    parser.add_argument("--tune-only", action="store_true", help="quality: choose rates, kept in --cache")
    parser.add_argument(
        "--resume", action="store_true", help="quality: go on from a run of this commit that ended early"
    )
    parser.add_argument("--peers", help="names of peers, by commas or spaces; all if not given")
    parser.add_argument("--systems", help="all but memory: names of the only systems to take part")
    parser.add_argument("--data", help=f"quality: data sets, of {', '.join(datasets.names())}")
    parser.add_argument("--sizes", help="throughput: DIMxBATCH, by commas")
    parser.add_argument("--add", type=Path, help="throughput: a record of the same commit, to add the sizes to")
    parser.add_argument("--seeds", type=int, default=1, help="quality: trainings of each system")
    parser.add_argument("--samples", type=int, help="time_to_quality: use only the first so many")
    parser.add_argument("--threads", type=int, help="threads of each system; all cores if not given")
    parser.add_argument("--json", type=Path, help="file of the record, or folder of several")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="prepared data and tuned rates")
    parser.add_argument("--folder", type=Path, default=PUBLIC, help="quality: where public data sets lie")
    parser.add_argument("--venvs", type=Path, default=Path(".venv-peers"), help="where the peers' environments lie")
    return parser


if __name__ == "__main__":
    try:
        with Termination():  # the peers' processes end with this one
            main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted:
        sys.exit(128 + signal.SIGTERM)
    except SlipstreamError as error:
        sys.exit(str(error))
