"""PSSE: popularity-based skipping of stale embeddings.

Reproduces "PSSE: popularity-based skipping of stale embeddings" [summary]: a popularity score for each row from how
often interactions touch it; the most popular rows are updated, the others are not; forward passes still read every
row. The summary gives no numbers, so every default is [ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import (
    FROZEN,
    OPEN,
    Gated,
    Policy,
    PolicyBaseConfig,
    Progress,
    share_in_range,
    validated,
)
from slipstream.policies.cadence import Cadence
from slipstream.restored import copy_into, whole_number
from slipstream.staleness import CountedRows, CutName, PopularRows, Reduce, Rule, SketchedRows, TailCounts
from slipstream.staleness.growth import grow_rows
from slipstream.staleness.sketch import MAX_DEPTH, WAYS

HalfLifeUnit = Literal["steps", "samples", "seconds"]
Scope = Literal["model", "table"]
Scores = Literal["rows", "sketch"]


class PsseConfig(PolicyBaseConfig):
    """PSSE."""

    name: Literal["psse"] = "psse"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.9
    """``cut=share``: share of the access mass that the updated rows hold; in (0, 1]. 1 gates only rows that were never
    looked up."""
    cut: CutName = "share"
    """Which rows are popular: ``share``, those that hold ``budget`` of the accesses; ``top_k``, the ``top_k`` most
    popular; ``min_count``, those with at least ``min_count`` (decayed) accesses."""
    top_k: int | None = Field(default=None, ge=1)
    """``cut=top_k``: rows that are updated."""
    min_count: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """``cut=min_count``: (decayed) accesses from which on a row is updated."""
    half_life: float | None = Field(default=2_000.0, gt=0.0, allow_inf_nan=False)
    """``half_life_unit``s after which an access counts half; None: accesses never fade."""
    half_life_unit: HalfLifeUnit = "steps"
    """Unit of ``half_life``: optimizer steps, samples trained on, or seconds of the data's time."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps before the first decision; until then every row is updated.
    None: 500, and at most a tenth of the training where its length is known."""
    every: int = Field(default=200, ge=1)
    """Steps between two decisions."""
    scope: Scope = "model"
    """Whether the cut is among the rows of all tables together (``model``) or of each table alone (``table``)."""
    protect_tail: int = Field(default=0, ge=0, le=255)
    """Rows looked up fewer than this many times are never gated; 0 (as published) protects none."""
    scores: Scores = "rows"
    """Where accesses are counted: for every row (``rows``) or in memory that does not grow with the rows
    (``sketch``)."""
    sketch_width: int = Field(default=1 << 18, ge=1, lt=1 << 32)
    """Counters of each of the sketch's hash functions: an estimate is too high by at most e / width of all accesses,
    but for a probability of e^-depth."""
    sketch_depth: int = Field(default=4, ge=1, le=MAX_DEPTH)
    """Hash functions of the sketch."""
    sketch_heavy: int = Field(default=1 << 16, ge=WAYS, lt=1 << 32)
    """Rows that the sketch knows by name; no others are updated."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for field, allowed in (("top_k", "1 or more"), ("min_count", "above 0")):
            if self.cut == field and getattr(self, field) is None:
                raise ValueError(f"cut={field} needs {field}, {allowed}")
            if self.cut != field and getattr(self, field) is not None:
                raise ValueError(f"{field} belongs to cut={field}, and cut is {self.cut}")
        if self.scores == "sketch" and self.top_k is not None and self.top_k > self.sketch_heavy:
            raise ValueError(f"top_k must be in [1, sketch_heavy={self.sketch_heavy}] with a sketch, got {self.top_k}")
        return self


class PSSE(Policy):
    """Updates only the popular rows, decided anew every few steps.

    Score [summary]: lookups of the row in training, gated or not, so a row that becomes popular is updated again
    after the next decision. That older accesses fade is [ours]: with exact counts (``half_life=None``, the plain
    reading of the summary) a row that was popular long ago keeps its place. Cut [ours]: by default the smallest set of
    rows, most popular first, with ``budget`` of the accesses; rows of equal score share one fate, so somewhat more may
    be kept. Warm-up [ours]: deciding on the first few batches would freeze whatever they did not hold.

    ``protect_tail`` [ours] never gates a row before it was looked up that often. It is off by default because the
    scheme as published has no such exception: its cut falls on the rare rows first, new ones among them.

    With a sketch, rows that it holds as heavy hitters can be open and all others are frozen; its error bound is in
    :class:`~slipstream.staleness.PopularitySketch`.

    Memory: 5 bytes a row (4 score, 1 gate), 1 more with ``protect_tail``; with a sketch 1 (the gate, and 1 for marks
    while deciding) and 8 · depth · width + 16 · heavy bytes.

    Args:
        budget: ``cut=share``: share of the access mass that the updated rows hold; in (0, 1].
        cut: ``share``, ``top_k`` or ``min_count``.
        top_k: ``cut=top_k``: rows that are updated, 1 or more; with a sketch at most ``sketch_heavy``.
        min_count: ``cut=min_count``: (decayed) accesses of a row that is updated, above 0.
        half_life: Units after which an access counts half, above 0; None: exact counts.
        half_life_unit: ``steps``, ``samples`` or ``seconds``, of data that comes in the order of its time.
        warmup_steps: Steps before the first decision, 0 or more; None: 500, and at most a tenth of the training.
        every: Steps between decisions, 1 or more.
        scope: ``model`` or ``table``.
        protect_tail: Lookups below which a row is never gated, 0 to 255.
        scores: ``rows`` or ``sketch``.
        sketch_width: Counters of each hash function, 1 or more.
        sketch_depth: Hash functions, 1 to 16.
        sketch_heavy: Heavy rows of all tables together, 8 or more.

    Raises:
        ConfigError: A setting is out of range, or does not belong to the cut.
    """

    name = "psse"
    skips_rows = True

    def __init__(
        self,
        budget: float = 0.9,
        *,
        cut: CutName = "share",
        top_k: int | None = None,
        min_count: float | None = None,
        half_life: float | None = 2_000.0,
        half_life_unit: HalfLifeUnit = "steps",
        warmup_steps: int | None = None,
        every: int = 200,
        scope: Scope = "model",
        protect_tail: int = 0,
        scores: Scores = "rows",
        sketch_width: int = 1 << 18,
        sketch_depth: int = 4,
        sketch_heavy: int = 1 << 16,
    ) -> None:
        self.config = validated(
            PsseConfig,
            {
                "budget": budget,
                "cut": cut,
                "top_k": top_k,
                "min_count": min_count,
                "half_life": half_life,
                "half_life_unit": half_life_unit,
                "warmup_steps": warmup_steps,
                "every": every,
                "scope": scope,
                "protect_tail": protect_tail,
                "scores": scores,
                "sketch_width": sketch_width,
                "sketch_depth": sketch_depth,
                "sketch_heavy": sketch_heavy,
            },
        )
        self.follows_time = half_life is not None and half_life_unit == "seconds"
        self._cadence = Cadence(self.name, warmup_steps, every)
        self._tables: dict[str, Gated] = {}
        self._name_of: dict[int, str] = {}
        self._reduce: Reduce | None = None
        self._popular: PopularRows = self._scores_of({}, 0)
        self._tail: dict[str, TailCounts] = {}
        self._clock: int | None = None
        self._epoch: int = -1  # of the clock; -1: none yet of this training
        self._decisions = 0
        self._last: dict[str, float] = {}

    def _scores_of(
        self, num_rows: Mapping[str, int], seed: int, devices: Mapping[str, torch.device] | None = None
    ) -> PopularRows:
        config = self.config
        if config.scores == "rows":
            return CountedRows(num_rows, config.half_life, devices, self._reduce)
        width, depth, heavy = config.sketch_width, config.sketch_depth, config.sketch_heavy
        return SketchedRows(num_rows, config.half_life, width=width, depth=depth, heavy=heavy, seed=seed)

    @property
    def _rule(self) -> Rule:
        config = self.config
        return Rule(config.cut, config.top_k or config.min_count or config.budget)

    def warm_up(self) -> None:
        """Loads the counting and the cut."""
        popular, tail, ids = self._scores_of({"": 2}, 0), TailCounts(2, 1), torch.ones(1, dtype=torch.int32)
        popular.add("", ids)
        popular.keep([""], self._rule)
        tail.add(ids)

    def set_budget(self, budget: float) -> None:
        """Changes the share of the access mass, from the next decision on.

        Raises:
            ConfigError: It is out of range, or the cut is not by share.
        """
        if self.config.cut != "share":
            raise ConfigError(f"policy 'psse' has no budget with cut={self.config.cut}", remedy="set cut=share")
        self.config = validated(PsseConfig, self.config.model_dump() | {"budget": budget})

    def decide_over(self, reduce: Reduce) -> None:
        """Has the cut fall among the rows of several ranks, each of which holds others; before :meth:`attach`.

        Args:
            reduce: Adds an array up over the ranks, in place.

        Raises:
            ConfigError: The rows are cut table by table, by number, or known by a sketch.
        """
        config = self.config
        if config.scope == "table" or config.scores == "sketch" or config.cut == "top_k":
            raise ConfigError(
                "policy 'psse': rows on several ranks need scope=model, scores=rows, and cut=share or cut=min_count",
                remedy="leave these settings as they are by default",
            )
        self._reduce = reduce

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Starts counting for each table."""
        self._tables = dict(tables)
        self._name_of = {id(table): name for name, table in tables.items()}
        num_rows = {name: table.num_rows for name, table in tables.items()}
        devices = {name: table.weight.device for name, table in tables.items()}
        self._popular = self._scores_of(num_rows, seed, devices)
        if self.config.protect_tail:
            self._tail = {name: TailCounts(rows, self.config.protect_tail) for name, rows in num_rows.items()}

    def check_length(self, batches: int) -> None:
        """The warm-up must end before the training does; one that was not set is fitted to it."""
        self._cadence.fit(batches)

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Counts the lookups."""
        name = self._name_of[id(table)]
        self._popular.add(name, ids)
        if self._tail:
            self._tail[name].add(ids)

    def update_gates(self, progress: Progress) -> None:
        """Lets the counts fade by what has passed, and decides when it is time.

        Raises:
            ConfigError: The half-life is in seconds and the data has no time.
        """
        now = self._now(progress)
        if self._clock is not None and now > self._clock:
            self._popular.advance(now - self._clock)
        # Late samples age nothing; an epoch, or a training that continues another, may begin again at an earlier time.
        again = progress.epoch != self._epoch
        self._clock = now if again or self._clock is None else max(now, self._clock)
        self._epoch = progress.epoch
        if self.decides(progress):
            self._decide()

    def decides(self, progress: Progress) -> bool:
        """Every ``every`` steps after the warm-up."""
        return self._cadence.is_due(progress.step)

    def _now(self, progress: Progress) -> int:
        unit = self.config.half_life_unit
        if unit != "seconds" or self.config.half_life is None:
            return progress.samples if unit == "samples" else progress.step
        if progress.time is None:
            raise ConfigError(
                "policy 'psse': half_life_unit=seconds needs data with a time",
                remedy="prepare the data with a time column, or set half_life_unit to steps or samples",
            )
        return progress.time

    def _decide(self) -> None:
        names = list(self._tables)
        shares: list[float] = []
        opened = protected = 0
        for group in [names] if self.config.scope == "model" else [[name] for name in names]:
            kept = self._popular.keep(group, self._rule) if group or self._reduce else None
            if kept is None:
                continue  # nothing was looked up yet, so nothing is known: the gates stay
            shares.append(kept.share)
            opened += kept.rows
            for name in group:
                gate = self._tables[name].open_gate()
                gate.fill_(FROZEN)
                gate.masked_fill_(kept.marks[name].to(gate.device), OPEN)
                if self._tail:
                    protected += self._tail[name].protect(gate, kept.marks[name])
        rows = sum(table.num_rows for table in self._tables.values())
        if self._reduce is not None:
            numbers = np.array([rows, protected])
            self._reduce(numbers)
            rows, protected = numbers.tolist()
        self._last = {}
        if shares:
            self._last = {"share_of_rows_updated": (opened + protected) / rows, "share_of_accesses_kept": min(shares)}
            if self._tail:
                self._last["share_of_rows_protected"] = protected / rows
        self._decisions += 1

    def state_dict(self) -> dict[str, Any]:
        """Counts, gates, clock and its epoch, number of decisions and the last one's figures."""
        state: dict[str, Any] = {
            "counts": self._popular.state_dict(),
            "tail": {name: tail.seen for name, tail in self._tail.items()},
            "gates": {name: table.gate for name, table in self._tables.items() if table.gate is not None},
            "decisions": self._decisions,
            "last": dict(self._last),
        }
        return state if self._clock is None else state | {"clock": self._clock, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of other tables, another ``half_life`` or other ``scores``.
        """
        self._popular.load_state_dict(state["counts"])
        for name, tail in self._tail.items():
            if name in state["tail"]:
                copy_into(tail.seen, state["tail"][name], f"tail of {name}")
        for name, gate in state["gates"].items():
            copy_into(self._tables[name].open_gate(), gate, f"gates of {name}")
        self._clock = whole_number(state, "clock", least=-(2**63), most=2**63 - 1) if "clock" in state else None
        self._epoch = whole_number({"epoch": -1, **state}, "epoch", least=-1)
        self._decisions, self._last = whole_number(state, "decisions"), dict(state["last"])

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """New rows were never looked up, and are open until the next decision."""
        counts: dict[str, Any] = {"sketch": state["counts"].get("sketch"), "num_rows": dict(rows)}
        if self.config.scores == "rows":
            counts = {
                name: {**saved, "scores": grow_rows(saved["scores"], rows[name])}
                for name, saved in state["counts"].items()
            }
        tail = {name: grow_rows(seen, rows[name]) for name, seen in state["tail"].items()}
        gates = {name: grow_rows(gate, rows[name], OPEN) for name, gate in state["gates"].items()}
        self.load_state_dict({**state, "counts": counts, "tail": tail, "gates": gates})
        self._epoch = -1

    def report(self) -> dict[str, Any]:
        """Settings, number of decisions, and of the last one: rows kept and the share of accesses that they hold."""
        rule = self._rule
        name = "budget" if rule.cut == "share" else rule.cut
        report = {name: rule.value, "half_life": self.config.half_life}
        report |= {"warmup_steps": self._cadence.warmup_steps, "decisions": self._decisions}
        return report | self._last
