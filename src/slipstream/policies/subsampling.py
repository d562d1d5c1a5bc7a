"""Subsampling [ours]: of a popular row's lookups a part is enough to know where its gradient points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.policies.base import (
    OPEN,
    Gated,
    Policy,
    PolicyBaseConfig,
    Progress,
    share_in_range,
    validated,
)
from slipstream.policies.cadence import Cadence
from slipstream.restored import copy_into, finite_number, whole_number
from slipstream.staleness import DecayedCounts
from slipstream.staleness.growth import grow_rows
from slipstream.staleness.subsampling import set_gates, subsampling_cut


class _Drawn(Gated, Protocol):
    """A table whose gates can draw for each sample."""

    by_sample: bool


class SubsamplingConfig(PolicyBaseConfig):
    """Subsampling."""

    name: Literal["subsampling"] = "subsampling"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.7
    """Share of the row accesses that take part in updates; in (0, 1]."""
    exponent: float = Field(default=0.5, gt=0.0, le=4.0)
    """How fast the keep-probability falls with popularity, in (0, 4]: 0.5 is word2vec's, 1 keeps about as many lookups
    a step of every popular row."""
    every: int = Field(default=200, ge=1)
    """Steps between two decisions."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps before the first decision; until then all lookups take part.
    None: 500, and at most a tenth of the training where its length is known."""
    half_life: float = Field(default=2_000.0, gt=0.0, allow_inf_nan=False)
    """Steps after which an access counts half."""


class Subsampling(Policy):
    """Updates popular rows from a random part of their lookups, weighed up; rare rows from all of them.

    A lookup of a row of popularity n takes part with probability p = min(1, (t / n)^exponent), drawn for each row,
    sample and step, and t follows from the budget. What is left of a row's gradient is scaled by 1 / p: its
    expectation is that of all lookups. A popular row has many lookups in a batch, so it is still updated in nearly
    every step, from fewer gradients; a row that a batch looks up once is left alone. That is what tells it from row
    gates (``saturation``, ``psse``), which leave out all of a row's lookups in a step, and so slow it down.

    The form of p is word2vec's subsampling of frequent words (Mikolov et al., "Distributed Representations of Words
    and Phrases", NeurIPS 2013), without its dropping of the words themselves: forward pass, loss and the gradients of
    everything else see every lookup.

    Draws go by a sample's place in its pass: where a step accumulates k passes they share draws, so that gradients keep
    their expectation and their variance is up to k times that of one pass of as many samples.

    Memory: 5 bytes a row (4 accesses, 1 gate).

    Args:
        budget: Share of the row accesses that take part in updates; in (0, 1].
        exponent: How fast p falls with popularity, in (0, 4].
        every: Steps between decisions, 1 or more.
        warmup_steps: Steps before the first decision, 0 or more; None: 500, and at most a tenth of the training.
        half_life: Steps after which an access counts half, above 0.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "subsampling"
    skips_rows = True

    def __init__(
        self,
        budget: float = 0.7,
        *,
        exponent: float = 0.5,
        every: int = 200,
        warmup_steps: int | None = None,
        half_life: float = 2_000.0,
    ) -> None:
        self.config = validated(
            SubsamplingConfig,
            {
                "budget": budget,
                "exponent": exponent,
                "every": every,
                "warmup_steps": warmup_steps,
                "half_life": half_life,
            },
        )
        self._cadence = Cadence(self.name, warmup_steps, every)
        self._tables: dict[str, Gated] = {}
        self._counts: dict[str, DecayedCounts] = {}
        self._counts_of: dict[int, DecayedCounts] = {}
        self._step = 0
        self._decisions = 0
        self._thinned_rows = 0
        self._shares: tuple[float, float] | None = None  # of the last decision: accesses thinned, and left out

    def warm_up(self) -> None:
        """Loads the counting, the cut and the setting of gates."""
        counts = DecayedCounts(2, 1.0)
        counts.add(torch.ones(1, dtype=torch.int32))
        set_gates(torch.full((2,), OPEN, dtype=torch.uint8), counts.scores, subsampling_cut([counts.scores], 0.5, 1.0))

    def set_budget(self, budget: float) -> None:
        """Changes the share of row accesses, from the next decision on."""
        self.config = validated(SubsamplingConfig, self.config.model_dump() | {"budget": budget})

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Has the gates of every table draw by the sample from now on.

        Raises:
            ConfigError: A table's gates cannot.
        """
        for name, table in tables.items():
            if not hasattr(table, "by_sample"):
                raise ConfigError(
                    f"policy 'subsampling' cannot draw for single samples in table {name!r}: its rows are behind a row "
                    "cache, or it is a shard of TorchRec's",
                    remedy="train without a row cache, or use policy 'psse'",
                )
            cast(_Drawn, table).by_sample = True
        half_life = self.config.half_life
        self._tables = dict(tables)
        self._counts = {name: DecayedCounts(t.num_rows, half_life, t.weight.device) for name, t in tables.items()}
        self._counts_of = {id(table): self._counts[name] for name, table in tables.items()}

    def check_length(self, batches: int) -> None:
        """The warm-up must end before the training does; one that was not set is fitted to it."""
        self._cadence.fit(batches)

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Counts the lookups."""
        self._counts_of[id(table)].add(ids)

    def update_gates(self, progress: Progress) -> None:
        """Lets accesses fade, and decides when it is time."""
        if progress.step > self._step:
            for counts in self._counts.values():
                counts.advance(progress.step - self._step)
            self._step = progress.step
        if self._cadence.is_due(progress.step):
            self._decide()

    def _decide(self) -> None:
        scores = {name: counts.scores for name, counts in self._counts.items()}
        cut = subsampling_cut(list(scores.values()), 1.0 - self.config.budget, self.config.exponent)
        self._shares = cut.thinned_share, cut.skipped_share
        self._thinned_rows = 0
        for name, table in self._tables.items():
            if cut.thinned_share or table.gate is not None:
                self._thinned_rows += set_gates(table.open_gate(), scores[name], cut)
        self._decisions += 1

    def state_dict(self) -> dict[str, Any]:
        """Accesses, gates, clock and what the last decision did."""
        return {
            "counts": {name: counts.state_dict() for name, counts in self._counts.items()},
            "gates": {name: table.gate for name, table in self._tables.items() if table.gate is not None},
            "step": self._step,
            "decisions": self._decisions,
            "thinned_rows": self._thinned_rows,
            "shares": None if self._shares is None else list(self._shares),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of other tables or rows.
        """
        if state["counts"].keys() != self._counts.keys():
            raise ConfigError(f"subsampling state is of tables {sorted(state['counts'])}, not {sorted(self._counts)}")
        for name, counts in self._counts.items():  # refuses other numbers of rows
            counts.load_state_dict(state["counts"][name])
        for name, gate in state["gates"].items():
            copy_into(self._tables[name].open_gate(), gate, f"gates of {name}")
        self._step, self._decisions = whole_number(state, "step"), whole_number(state, "decisions")
        self._thinned_rows = whole_number(state, "thinned_rows")
        shares = state["shares"]
        self._shares = None if shares is None else (finite_number(shares, 0), finite_number(shares, 1))

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """New rows were never looked up: all of their lookups take part until the next decision."""
        counts = {
            name: {**saved, "scores": grow_rows(saved["scores"], rows[name])} for name, saved in state["counts"].items()
        }
        gates = {name: grow_rows(gate, rows[name], OPEN) for name, gate in state["gates"].items()}
        self.load_state_dict({**state, "counts": counts, "gates": gates})

    def report(self) -> dict[str, Any]:
        """Settings, decisions, and what the last one left out."""
        rows = sum(table.num_rows for table in self._tables.values())
        report: dict[str, Any] = {
            "budget": self.config.budget,
            "exponent": self.config.exponent,
            "warmup_steps": self._cadence.warmup_steps,
            "decisions": self._decisions,
            "share_of_rows_thinned": self._thinned_rows / rows if rows else 0.0,
        }
        if self._shares is not None:
            report["share_of_accesses_thinned"], report["share_of_accesses_to_skip"] = self._shares
        return report
