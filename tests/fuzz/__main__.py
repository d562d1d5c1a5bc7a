"""Fuzzing by processor time: ``python -m tests.fuzz MINUTES [TARGET…] [--jobs N] [--record FILE]``.

Tries damaged input on each target until the record has so many processor minutes of it: what an earlier run did counts,
on an earlier source, too, so that a long run may be done in pieces, the least fuzzed targets first. A finding ends its
target, not the others: its smallest input and what it said are kept in runs/fuzz, and the status is 1, that of later
runs on the source, too. A finding is also an input that takes a minute of processor time, or memory beyond 4 GiB above
the start, or that does not end.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch, as the command line does: else it warns, a finding

import signal
import sys
from argparse import ArgumentParser
from contextlib import closing
from pathlib import Path
from types import FrameType

from tests.fuzz.campaign import QUIET, Outcome, campaign
from tests.fuzz.fuzzing import GROWTH, PER_INPUT, fuzz
from tests.fuzz.rows import DONE, added, kept, minutes_of, present_source, summed_up
from tests.fuzz.targets import NAMES

from slipstream.errors import SlipstreamError
from slipstream.report.record import Record

KEPT = Path("runs/fuzz")


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _say(outcome: Outcome) -> None:
    said = "no finding" if outcome.finding is None else f"FINDING: {outcome.finding}; see {KEPT / outcome.name}.*"
    minutes = outcome.seconds / 60
    print(f"{outcome.name}: {outcome.inputs:,} inputs in {minutes:.1f} processor minutes, {said}", flush=True)


def main() -> None:
    """Fuzzes the targets named on the command line, or all, and keeps the record."""
    parser = ArgumentParser(prog="python -m tests.fuzz", description="Damaged input for every reader.")
    parser.add_argument("minutes", type=float, help="processor minutes of each, those of earlier runs included")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(NAMES)} (all)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (1)")
    parser.add_argument("--record", type=Path, default=KEPT.with_suffix(".json"), help="goes on there (runs/fuzz.json)")
    options = parser.parse_args()
    names = options.targets or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(NAMES)}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")

    record = Record(
        name="fuzz",
        command=f"make fuzz MINUTES={options.minutes:g} JOBS={options.jobs}",
        dataset="the readers' good inputs, damaged by Hypothesis",
        conditions={
            "finding": "anything but success or a typed error of one line; also an input that takes "
            f"{PER_INPUT} s of processor time, {GROWTH >> 20} GiB, or {QUIET / 60:g} minutes on the clock",
            "jobs": options.jobs,
        },
    )
    source = present_source()
    present, earlier = kept(options.record, source)
    found = [name for name in names if present.get(name, {}).get("findings")]
    for name in found:
        print(f"{name}: FINDING of an earlier run: {present[name]['finding']}; see {KEPT / name}.*")
    done = {name: minutes_of((present, earlier), name) for name in names if name not in found}
    left = sorted((name for name in done if done[name] < DONE * options.minutes), key=lambda name: done[name])
    work = [(name, 60 * (options.minutes - done[name])) for name in left]
    if not work and not found:
        print(f"nothing to do: {options.record} has {options.minutes:g} processor minutes of each")
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    now = dict(present)
    with closing(campaign(work, fuzz, jobs=options.jobs, folder=KEPT)) as outcomes:
        for outcome in outcomes:
            now[outcome.name] = added(present.get(outcome.name), outcome, record.commit, source)
            summed_up(record, now, earlier).save(options.record)
            if outcome.ended:
                found += [outcome.name] if outcome.finding is not None else []
                _say(outcome)
    sys.exit(int(bool(found)))


if __name__ == "__main__":
    try:
        main()
    except SlipstreamError as error:
        sys.exit(str(error))
