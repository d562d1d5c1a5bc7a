"""PSSE: popularity-based skipping of stale embeddings.

Reproduces "PSSE: popularity-based skipping of stale embeddings" [summary]: a popularity score for each row from how
often interactions touch it; the most popular rows are updated, the others are not; forward passes still read every
row. The summary gives no numbers, so every default is [ours].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import FROZEN, OPEN, Gated, Policy, PolicyBaseConfig, Progress, share_in_range, validated
from slipstream.staleness import Cut, PopularityCounts, make_counts, share_cut

HalfLifeUnit = Literal["steps", "samples"]
Scope = Literal["model", "table"]


class PsseConfig(PolicyBaseConfig):
    """PSSE."""

    name: Literal["psse"] = "psse"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.9
    """Share of the access mass that the updated rows hold; in (0, 1]. 1 gates only rows that were never looked up."""
    half_life: float | None = Field(default=2_000.0, gt=0.0, allow_inf_nan=False)
    """``half_life_unit``s after which an access counts half; None: accesses never fade."""
    half_life_unit: HalfLifeUnit = "steps"
    """Unit of ``half_life``: optimizer steps or samples trained on."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps before the first decision; until then every row is updated."""
    every: int = Field(default=200, ge=1)
    """Steps between two decisions."""
    scope: Scope = "model"
    """Whether the share is of the accesses of all tables together (``model``) or of each table's own (``table``)."""


class PSSE(Policy):
    """Updates only the rows that together hold a share of the (decayed) accesses; decided anew every few steps.

    Score [summary]: lookups of the row in training, gated or not, so a row that becomes popular is updated again
    after the next decision. That older accesses fade is [ours]: with exact counts (``half_life=None``, the plain
    reading of the summary) a row that was popular long ago keeps its place. Cut [ours]: the smallest set of rows,
    most popular first, with ``budget`` of the accesses; rows of equal score share one fate, so somewhat more may be
    kept. Warm-up [ours]: deciding on the first few batches would freeze whatever they did not hold.

    Memory: 5 bytes a row (4 score, 1 gate).

    Args:
        budget: Share of the access mass that the updated rows hold; in (0, 1].
        half_life: Units after which an access counts half, above 0; None: exact counts.
        half_life_unit: ``steps`` or ``samples``.
        warmup_steps: Steps before the first decision, 0 or more.
        every: Steps between decisions, 1 or more.
        scope: ``model`` or ``table``.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "psse"
    skips_rows = True

    def __init__(
        self,
        budget: float = 0.9,
        *,
        half_life: float | None = 2_000.0,
        half_life_unit: HalfLifeUnit = "steps",
        warmup_steps: int = 500,
        every: int = 200,
        scope: Scope = "model",
    ) -> None:
        self.config = validated(
            PsseConfig,
            {
                "budget": budget,
                "half_life": half_life,
                "half_life_unit": half_life_unit,
                "warmup_steps": warmup_steps,
                "every": every,
                "scope": scope,
            },
        )
        self._tables: dict[str, Gated] = {}
        self._counts: dict[str, PopularityCounts] = {}
        self._counts_of: dict[int, PopularityCounts] = {}
        self._clock = 0
        self._decisions = 0
        self._cuts: dict[str, Cut] = {}

    def warm_up(self) -> None:
        """Loads the counting and the cut."""
        counts = make_counts(2, self.config.half_life)
        counts.add(torch.ones(1, dtype=torch.int32))
        share_cut([counts.scores], self.config.budget)

    def set_budget(self, budget: float) -> None:
        """Changes the share of the access mass, from the next decision on."""
        self.config = validated(PsseConfig, self.config.model_dump() | {"budget": budget})

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Starts counting for each table."""
        self._tables = dict(tables)
        self._counts = {name: make_counts(table.num_rows, self.config.half_life) for name, table in tables.items()}
        self._counts_of = {id(table): self._counts[name] for name, table in tables.items()}

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Counts the lookups."""
        self._counts_of[id(table)].add(ids)

    def update_gates(self, progress: Progress) -> None:
        """Lets the counts fade by what has passed, and decides when it is time."""
        now = progress.step if self.config.half_life_unit == "steps" else progress.samples
        if now > self._clock:
            for counts in self._counts.values():
                counts.advance(now - self._clock)
            self._clock = now
        since = progress.step - max(self.config.warmup_steps, 1)
        if since >= 0 and since % self.config.every == 0:
            self._decide()

    def _decide(self) -> None:
        if self.config.scope == "model":
            groups = {"": list(self._counts)}
        else:
            groups = {name: [name] for name in self._counts}
        self._cuts = {}
        for group, names in groups.items():
            cut = share_cut([self._counts[name].scores for name in names], self.config.budget)
            if math.isinf(cut.threshold):
                continue  # nothing was looked up yet, so nothing is known: the gates stay
            self._cuts[group] = cut
            for name in names:
                gate = self._tables[name].open_gate()
                gate.fill_(FROZEN)
                gate.masked_fill_(self._counts[name].scores >= cut.threshold, OPEN)
        self._decisions += 1

    def state_dict(self) -> dict[str, Any]:
        """Counts, gates, clock and number of decisions."""
        return {
            "counts": {name: counts.state_dict() for name, counts in self._counts.items()},
            "gates": {name: table.gate for name, table in self._tables.items() if table.gate is not None},
            "clock": self._clock,
            "decisions": self._decisions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of other tables or another ``half_life``.
        """
        if state["counts"].keys() != self._counts.keys():
            raise ConfigError(f"popularity state is of tables {sorted(state['counts'])}, not {sorted(self._counts)}")
        for name, counts in self._counts.items():
            counts.load_state_dict(state["counts"][name])
        for name, gate in state["gates"].items():
            self._tables[name].open_gate().copy_(gate)
        self._clock = int(state["clock"])
        self._decisions = int(state["decisions"])

    def report(self) -> dict[str, Any]:
        """Settings, number of decisions, and of the last one: rows kept and the share of accesses that they hold."""
        rows = sum(table.num_rows for table in self._tables.values())
        kept = sum(cut.kept_rows for cut in self._cuts.values())
        report: dict[str, Any] = {
            "budget": self.config.budget,
            "half_life": self.config.half_life,
            "decisions": self._decisions,
        }
        if self._cuts:
            report["share_of_rows_updated"] = kept / rows
            report["share_of_accesses_kept"] = min(cut.kept_share for cut in self._cuts.values())
        return report
