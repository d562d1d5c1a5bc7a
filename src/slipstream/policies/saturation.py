"""Saturation [ours]: rows whose updates no longer agree with each other are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from slipstream.staleness.saturation import ripe_count, saturation_cut, set_gates

_MOST_UPDATES = 40_160  # the counts' end
_PATIENCE = 64
"""Batches after which tables must have been updated, however many an optimizer step accumulates."""
_REMEDY = "train the table by an optimizer of slipstream.optim with untouched='lazy', or use policy 'psse'"


class _Measured(Gated, Protocol):
    """A table whose updates leave a signal."""

    trail: Tensor | None

    def measure(self) -> Tensor:
        """The signal, uint16 [R], from now on measured."""
        ...

    def open_trail(self) -> Tensor:
        """Where rows have come from, float32 [R, 5]."""
        ...


class SaturationConfig(PolicyBaseConfig):
    """Saturation."""

    name: Literal["saturation"] = "saturation"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.7
    """Share of the row accesses whose update is kept; in (0, 1]."""
    min_updates: int = Field(default=32, ge=1, le=_MOST_UPDATES)
    """Steps in which a row must have been updated before it may be gated: the tail never is."""
    probe: float = Field(default=1 / 16, ge=0.0, lt=1.0)
    """Probability with which a gated row is updated nevertheless, in [0, 1), in steps of 1/256; 0 never thaws a row."""
    every: int = Field(default=200, ge=1)
    """Steps between two decisions."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps before the first decision; until then every row is updated.
    None: 500, and at most a tenth of the training where its length is known."""
    half_life: float = Field(default=2_000.0, gt=0.0, allow_inf_nan=False)
    """Steps after which an access counts half."""
    refresh: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training, at its end, in which every row is updated; in [0, 1)."""


class Saturation(Policy):
    """Gates the rows whose recent updates agree least, until the gated accesses make up what the budget leaves out.

    The signal is measured inside the update, not by extra passes (see :mod:`slipstream.staleness.moments`): for Adam
    sum(m²) / sum(v), else the net movement over the path. Rows updated in fewer than ``min_updates`` steps stay open.
    A gated row is still updated with probability ``probe``: the signal goes on, and a row whose gradients agree again
    opens at the next decision. Updates let through by probes are part of the budget; a budget below what probes and
    the open tail take is met as far as it goes.

    Memory: 7 bytes a row (2 signal, 4 accesses, 1 gate), and 20 more with optimizers that have no moments.

    With ``on_skip="catch_up"`` moments decay between updates too, so Adam's signal then falls with a row's rarity.

    Args:
        budget: Share of the row accesses whose update is kept; in (0, 1].
        min_updates: Steps before a row may be gated, 1 to 40160; estimated, since one step in 5 is measured.
        probe: Probability of updating a gated row, in [0, 1).
        every: Steps between decisions, 1 or more.
        warmup_steps: Steps before the first decision, 0 or more; None: 500, and at most a tenth of the training.
        half_life: Steps after which an access counts half, above 0.
        refresh: Share of the training at its end with all rows open, in [0, 1).

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "saturation"
    skips_rows = True

    def __init__(
        self,
        budget: float = 0.7,
        *,
        min_updates: int = 32,
        probe: float = 1 / 16,
        every: int = 200,
        warmup_steps: int | None = None,
        half_life: float = 2_000.0,
        refresh: float = 0.0,
    ) -> None:
        self.config = validated(
            SaturationConfig,
            {
                "budget": budget,
                "min_updates": min_updates,
                "probe": probe,
                "every": every,
                "warmup_steps": warmup_steps,
                "half_life": half_life,
                "refresh": refresh,
            },
        )
        self._cadence = Cadence(self.name, warmup_steps, every)
        self._ripe = ripe_count(min_updates)
        self._tables: dict[str, _Measured] = {}
        self._counts: dict[str, DecayedCounts] = {}
        self._counts_of: dict[int, DecayedCounts] = {}
        self._lookups: dict[str, int] = {}
        self._step = 0
        self._decisions = 0
        self._thawed = 0
        self._shut = 0
        self._refreshing = False
        self._cut: tuple[float, float] | None = None  # the last decision's shares gated and skipped

    @property
    def _probe_gate(self) -> int:
        probe = self.config.probe
        return min(max(round(256 * probe), 1), OPEN - 1) if probe else 0

    def warm_up(self) -> None:
        """Loads the counting, the cut and the setting of gates."""
        counts, signal = DecayedCounts(2, 1.0), torch.zeros(2, dtype=torch.uint16)
        counts.add(torch.ones(1, dtype=torch.int32))
        cut = saturation_cut([signal], [counts.scores], 0.5, ripe=1, probe=0)
        set_gates(torch.full((2,), OPEN, dtype=torch.uint8), signal, cut, 1)

    def set_budget(self, budget: float) -> None:
        """Changes the share of row accesses, from the next decision on."""
        self.config = validated(SaturationConfig, self.config.model_dump() | {"budget": budget})

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Has every table measured from now on.

        Raises:
            ConfigError: A table has no signal to measure.
        """
        for name, table in tables.items():
            if not isinstance(getattr(table, "measure", None), Callable):
                raise ConfigError(f"policy 'saturation' cannot measure table {name!r}", remedy=_REMEDY)
            cast(_Measured, table).measure()
        self._tables = {name: cast(_Measured, table) for name, table in tables.items()}
        half_life = self.config.half_life
        self._counts = {name: DecayedCounts(t.num_rows, half_life, t.weight.device) for name, t in tables.items()}
        self._counts_of = {id(table): self._counts[name] for name, table in tables.items()}
        self._lookups = {name: table.lookups for name, table in tables.items()}

    def check_length(self, batches: int) -> None:
        """The warm-up must end before the training does; one that was not set is fitted to it."""
        self._cadence.fit(batches)

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Counts the lookups."""
        self._counts_of[id(table)].add(ids)

    def update_gates(self, progress: Progress) -> None:
        """Lets accesses fade, decides when it is time, and opens every gate for the refresh at the end.

        Raises:
            ConfigError: A refresh is asked for and the training's length is not known; a table is trained and leaves
                no signal.
        """
        if progress.step > self._step:
            for counts in self._counts.values():
                counts.advance(progress.step - self._step)
            self._step = progress.step
        if self._in_refresh(progress):
            return
        if self._due(progress):
            self._decide()

    def _due(self, progress: Progress) -> bool:
        return self._cadence.is_due(progress.step)

    def decides(self, progress: Progress) -> bool:
        """Every ``every`` steps after the warm-up, and where the refresh begins."""
        begins = progress.share is None or progress.share >= 1.0 - self.config.refresh
        return self._due(progress) or (self.config.refresh > 0.0 and not self._refreshing and begins)

    def _in_refresh(self, progress: Progress) -> bool:
        if not self.config.refresh:
            return False
        if progress.share is None:
            raise ConfigError(
                f"policy 'saturation': refresh={self.config.refresh} needs the length of the training",
                remedy="pass total_samples to the Skipper, or set refresh=0",
            )
        if progress.share < 1.0 - self.config.refresh:
            return False
        if not self._refreshing:
            self._refreshing = True
            self._shut = 0
            for table in self._tables.values():
                if table.gate is not None:
                    table.gate.fill_(OPEN)
        return True

    def _decide(self) -> None:
        signals = {name: table.measure() for name, table in self._tables.items()}
        for name, table in self._tables.items():
            idle = table.lookups == self._lookups[name] and self._step >= _PATIENCE
            if idle and table.weight.requires_grad and bool(self._counts[name].scores.any()):
                raise ConfigError(f"the updates of table {name!r} leave no signal to decide by", remedy=_REMEDY)
        scores = [self._counts[name].scores for name in signals]
        cut = saturation_cut(
            list(signals.values()), scores, 1.0 - self.config.budget, ripe=self._ripe, probe=self._probe_gate
        )
        self._cut = cut.gated_share, cut.skipped_share
        self._shut = 0
        for name, signal in signals.items():
            if cut.gated_share == 0.0 and self._tables[name].gate is None:
                continue
            shut, thawed = set_gates(self._tables[name].open_gate(), signal, cut, self._ripe)
            self._shut += shut
            self._thawed += thawed
        self._decisions += 1

    def state_dict(self) -> dict[str, Any]:
        """Accesses, signals, trails, gates, clock and counts of what was done."""
        return {
            "counts": {name: counts.state_dict() for name, counts in self._counts.items()},
            "signals": {name: table.measure() for name, table in self._tables.items()},
            "trails": {name: table.trail for name, table in self._tables.items() if table.trail is not None},
            "gates": {name: table.gate for name, table in self._tables.items() if table.gate is not None},
            "step": self._step,
            "warmup_steps": self._cadence.warmup_steps,
            "decisions": self._decisions,
            "thawed": self._thawed,
            "shut": self._shut,
            "refreshing": self._refreshing,
            "cut": None if self._cut is None else list(self._cut),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of other tables or rows.
        """
        if state["counts"].keys() != self._counts.keys():
            raise ConfigError(f"saturation state is of tables {sorted(state['counts'])}, not {sorted(self._counts)}")
        for name, counts in self._counts.items():  # refuses other numbers of rows
            counts.load_state_dict(state["counts"][name])
        for name, signal in state["signals"].items():
            copy_into(self._tables[name].measure(), signal, f"signal of {name}")
        for name, trail in state["trails"].items():
            copy_into(self._tables[name].open_trail(), trail, f"trail of {name}")
        for name, gate in state["gates"].items():
            copy_into(self._tables[name].open_gate(), gate, f"gates of {name}")
        self._step, self._decisions = whole_number(state, "step"), whole_number(state, "decisions")
        self._thawed, self._shut = whole_number(state, "thawed"), whole_number(state, "shut")
        self._refreshing = bool(state["refreshing"])
        cut = state["cut"]
        self._cut = None if cut is None else (finite_number(cut, 0, of="cut "), finite_number(cut, 1, of="cut "))

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """New rows have no updates behind them: they are open until they are ripe."""
        counts = {
            name: {**saved, "scores": grow_rows(saved["scores"], rows[name])} for name, saved in state["counts"].items()
        }
        fills = {"signals": 0, "trails": 0, "gates": OPEN}
        grown = {
            part: {name: grow_rows(value, rows[name], fill) for name, value in state[part].items()}
            for part, fill in fills.items()
        }
        self.load_state_dict({**state, **grown, "counts": counts, "refreshing": False})

    def report(self) -> dict[str, Any]:
        """Settings, decisions, what the last one gated, and how many rows were gated once and opened again."""
        rows = sum(table.num_rows for table in self._tables.values())
        report: dict[str, Any] = {
            "budget": self.config.budget,
            "min_updates": self.config.min_updates,
            "probe": self._probe_gate / 256,
            "warmup_steps": self._cadence.warmup_steps,
            "decisions": self._decisions,
            "thawed_rows": self._thawed,
            "share_of_rows_gated": self._shut / rows if rows else 0.0,
        }
        if self._cut is not None:
            report["share_of_accesses_gated"], report["share_of_updates_to_skip"] = self._cut
        return report
