"""Which rows of several tables are popular: counts of every row, or a sketch, and three ways to cut.

The summary of PSSE leaves the cut open, so they are [ours]; all three share the order of the rows, most popular first.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.staleness.hot_rows import top_rows
from slipstream.staleness.popularity import DecayedCounts, make_counts
from slipstream.staleness.sketch import PopularitySketch
from slipstream.staleness.threshold import Reduce, share_cut

CutName = Literal["share", "top_k", "min_count"]


class Rule(NamedTuple):
    """Where to cut."""

    cut: CutName
    """``share``: the smallest set of rows with that share of the accesses, rows of equal score sharing one fate;
    ``top_k``: that many rows, at equal scores the earlier table, then the lower row, first; ``min_count``: rows with
    at least that many (decayed) accesses."""
    value: float


class Kept(NamedTuple):
    """Rows that the cut keeps; never one without any access."""

    marks: dict[str, Tensor]
    """By table: bool [R]."""
    rows: int
    """How many they are."""
    share: float
    """Share of the accesses that they hold, in [0, 1]."""


class PopularRows(Protocol):
    """Popularity of the rows of several tables, known by name."""

    def add(self, table: str, ids: Tensor) -> None:
        """Counts lookups: ids int32 or int64, any shape, repeats allowed."""
        ...

    def advance(self, amount: float) -> None:
        """Lets that many units of the half-life pass."""
        ...

    def keep(self, tables: Sequence[str], rule: Rule) -> Kept | None:
        """The popular rows among these tables; None before the first lookup."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        ...


class CountedRows:
    """A count for every row: 4 bytes each.

    Args:
        num_rows: R of each table.
        half_life: Units after which an access counts half; None: exact counts.
        devices: Where each table's lookups are, and are counted; the CPU where nothing is said.
        reduce: These are some of the rows, and other ranks have the others: the cut is among all of them.
    """

    def __init__(
        self,
        num_rows: Mapping[str, int],
        half_life: float | None,
        devices: Mapping[str, torch.device] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        where = devices or {}
        self._reduce = reduce
        self._kind = torch.int32 if half_life is None else torch.float32
        self._counts = {name: make_counts(rows, half_life, where.get(name)) for name, rows in num_rows.items()}

    def add(self, table: str, ids: Tensor) -> None:
        """Counts lookups."""
        self._counts[table].add(ids)

    def advance(self, amount: float) -> None:
        """Lets time pass for all tables."""
        for counts in self._counts.values():
            counts.advance(amount)

    def keep(self, tables: Sequence[str], rule: Rule) -> Kept | None:
        """The popular rows among these tables; None before the first lookup."""
        counts = [self._counts[name] for name in tables]
        scores = [count.scores.cpu() for count in counts]
        if rule.cut == "share":
            cut = share_cut(scores or [torch.empty(0, dtype=self._kind)], rule.value, self._reduce)
            if math.isinf(cut.threshold):
                return None
            marks = [_at_least(score, cut.threshold) for score in scores]
            return Kept(dict(zip(tables, marks, strict=True)), cut.kept_rows, cut.kept_share)
        (total,) = self._of_all(_mass(scores))
        if total == 0.0:
            return None
        if rule.cut == "top_k":
            if self._reduce is not None:
                raise ConfigError("cut=top_k needs all rows on one rank", remedy="use cut=share or cut=min_count")
            marks = [
                mark.bool() & (score > 0) for mark, score in zip(top_rows(scores, int(rule.value)), scores, strict=True)
            ]
        else:
            # Scores of decayed counts are in units of the increment, which is the same for tables advanced alike.
            units = [count.increment if isinstance(count, DecayedCounts) else 1.0 for count in counts]
            marks = [_at_least(score, rule.value * unit) for score, unit in zip(scores, units, strict=True)]
            marks = [mark & (score > 0) for mark, score in zip(marks, scores, strict=True)]
        rows = sum(int(torch.count_nonzero(mark)) for mark in marks)
        held = _mass([score * mark for score, mark in zip(scores, marks, strict=True)])
        rows, held = self._of_all(rows, held)
        return Kept(dict(zip(tables, marks, strict=True)), int(rows), min(held / total, 1.0))

    def _of_all(self, *numbers: float) -> tuple[float, ...]:
        """Their sums over the ranks."""
        together = np.array(numbers, dtype=np.float64)
        if self._reduce is not None:
            self._reduce(together)
        return tuple(together.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Each table's counts."""
        return {name: counts.state_dict() for name, counts in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: It is of other tables, other rows, or another kind of counts.
        """
        if state.keys() != self._counts.keys():
            raise ConfigError(f"popularity state is of tables {sorted(state)}, not {sorted(self._counts)}")
        for name, counts in self._counts.items():
            counts.load_state_dict(state[name])


class SketchedRows:
    """One sketch for all tables: rows that it holds as heavy can be kept, all others are not popular.

    Shares are of estimates over the exact total: as estimates are never too low, the rows of a share may hold somewhat
    less than that share, by at most eps · (rows kept) in expectation.

    Args:
        num_rows: R of each table.
        half_life: Units after which an access counts half; None: exact counts.
        width: Counters of each hash function.
        depth: Hash functions.
        heavy: Heavy rows of all tables together.
        seed: Seed of the hash functions.
    """

    def __init__(
        self, num_rows: Mapping[str, int], half_life: float | None, *, width: int, depth: int, heavy: int, seed: int
    ) -> None:
        self._number = {name: number for number, name in enumerate(num_rows)}
        self._num_rows = dict(num_rows)
        self.sketch = PopularitySketch(
            list(num_rows.values()), half_life, width=width, depth=depth, heavy=heavy, seed=seed
        )

    def add(self, table: str, ids: Tensor) -> None:
        """Counts lookups."""
        self.sketch.add(self._number[table], ids)

    def advance(self, amount: float) -> None:
        """Lets time pass."""
        self.sketch.advance(amount)

    def keep(self, tables: Sequence[str], rule: Rule) -> Kept | None:
        """The popular rows among these tables; None before the first lookup."""
        numbers = [self._number[name] for name in tables]
        total = float(self.sketch.totals[numbers].sum()) / self.sketch.increment
        if total == 0.0:
            return None
        heavy = self.sketch.heavy()
        mine = np.isin(heavy.tables.numpy(), numbers)
        found, rows, estimates = heavy.tables.numpy()[mine], heavy.rows.numpy()[mine], heavy.estimates.numpy()[mine]
        if rule.cut == "top_k":
            count = min(int(rule.value), estimates.size)
        elif rule.cut == "min_count":
            count = int(np.count_nonzero(estimates >= rule.value))
        else:
            reached = int(np.searchsorted(np.cumsum(estimates), total * rule.value * (1 - 1e-12)))
            last = min(reached, estimates.size - 1)
            count = int(np.count_nonzero(estimates >= estimates[last])) if last >= 0 else 0
        marks: dict[str, Tensor] = {}
        for name in tables:
            marks[name] = torch.zeros(self._num_rows[name], dtype=torch.bool)
            chosen = rows[:count][found[:count] == self._number[name]]
            marks[name][torch.from_numpy(chosen)] = True
        return Kept(marks, count, min(float(estimates[:count].sum()) / total, 1.0))

    def state_dict(self) -> dict[str, Any]:
        """The sketch."""
        return {"sketch": self.sketch.state_dict(), "num_rows": dict(self._num_rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: It is of other tables, or no sketch of this size.
        """
        if list(state.get("num_rows", {}).items()) != list(self._num_rows.items()):
            raise ConfigError(f"the sketch's state is not of tables {self._num_rows} (rows by name)")
        self.sketch.load_state_dict(state["sketch"])
        heavy, sizes = self.sketch.heavy(), torch.tensor(list(self._num_rows.values()))
        if bool((heavy.tables >= len(sizes)).any()) or bool((heavy.rows >= sizes[heavy.tables]).any()):
            raise ConfigError("the sketch's state has heavy rows that no table has")


def _at_least(scores: Tensor, threshold: float) -> Tensor:
    """Which scores (int32 or float32 [R]) are at or above the threshold, bool [R]."""
    if scores.dtype == torch.int32:
        # torch would compare in float32, which from 2^24 on does not hold every count. Above 2^31 - 1 there is none.
        return scores > math.ceil(min(threshold, 2.0**31)) - 1
    return scores >= threshold


def _mass(scores: Sequence[Tensor]) -> float:
    return sum(float(score.sum(dtype=torch.float64)) for score in scores)
