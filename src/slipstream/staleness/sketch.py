"""Popularity in bounded memory: a count-min sketch, and the rows that it finds most popular.

Count-min: Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and its applications",
J. Algorithms 2005. Conservative update: Estan and Varghese, SIGCOMM 2002.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.restored import checked_tensor, copy_into, finite_number

WAYS = 8
"""Heavy rows that share a bucket."""
MAX_DEPTH = 16
"""Hash functions at most: beyond, delta is below 1.2e-7."""
_SAME_SKETCH = "load the state of a run with the same tables, sketch_width, sketch_depth and sketch_heavy"
_ROW_BITS = 40
_ROWS = (1 << _ROW_BITS) - 1
_EMPTY = -1
_RESCALE_AT = 2.0**40
_STREAM = 0x5CE7


@njit(cache=True, nogil=True)
def _hash(key: Any, seed: Any) -> Any:
    """32 bits of SplitMix64 of a key."""
    x = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + seed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(32)


@njit(cache=True, nogil=True)
def _add(
    counters: npt.NDArray[np.float64],
    keys: npt.NDArray[np.int64],
    estimates: npt.NDArray[np.float64],
    seeds: npt.NDArray[np.uint64],
    ids: npt.NDArray[Any],
    table: int,
    rows: int,
    increment: float,
) -> int:
    """Counts ``ids`` of a table; returns how many were outside it (and left out).

    Args:
        counters: [depth, width].
        keys: [buckets, WAYS], table and row of each heavy row, -1 where there is none.
        estimates: [buckets, WAYS].
        seeds: [depth + 1], the last one for the buckets.
        ids: int32 or int64 [n].
        table: Its number.
        rows: Its rows.
        increment: What an access counts.
    """
    depth, width = counters.shape
    places = np.empty(depth, dtype=np.int64)
    outside = 0
    for id_ in ids:
        if id_ < 0 or id_ >= rows:
            outside += 1
            continue
        key = (np.int64(table) << _ROW_BITS) | np.int64(id_)
        least = np.inf
        for d in range(depth):
            place = np.int64((_hash(key, seeds[d]) * np.uint64(width)) >> np.uint64(32))
            places[d] = place
            least = min(least, counters[d, place])
        least += increment
        for d in range(depth):
            if counters[d, places[d]] < least:
                counters[d, places[d]] = least
        bucket = np.int64((_hash(key, seeds[depth]) * np.uint64(keys.shape[0])) >> np.uint64(32))
        way = 0
        for w in range(keys.shape[1]):
            if keys[bucket, w] == key:
                way = w
                break
            if estimates[bucket, w] < estimates[bucket, way]:
                way = w
        if keys[bucket, way] == key or least > estimates[bucket, way]:
            keys[bucket, way] = key
            estimates[bucket, way] = least
    return outside


@njit(cache=True, nogil=True)
def _estimate(
    counters: npt.NDArray[np.float64],
    seeds: npt.NDArray[np.uint64],
    rows: npt.NDArray[np.int64],
    table: int,
    estimates: npt.NDArray[np.float64],
) -> None:
    """``estimates[i]`` = the least counter of row ``rows[i]`` of a table, in units of the increment."""
    depth, width = counters.shape
    for i in range(rows.size):
        key = (np.int64(table) << _ROW_BITS) | rows[i]
        least = np.inf
        for d in range(depth):
            place = np.int64((_hash(key, seeds[d]) * np.uint64(width)) >> np.uint64(32))
            least = min(least, counters[d, place])
        estimates[i] = least


class Heavy(NamedTuple):
    """Heavy rows, the most popular first."""

    tables: Tensor
    """int64 [H], the number of each one's table."""
    rows: Tensor
    """int64 [H]."""
    estimates: Tensor
    """float64 [H], in units of accesses that count 1 now; never below the truth."""


class PopularitySketch:
    """(Decayed) lookups of the rows of several tables in memory that does not depend on how many rows there are.

    One count-min sketch serves all tables, keyed by (table, row). With N the (decayed) lookups of all tables
    together, an estimate is never below the truth, and with probability at least 1 - delta it is at most eps · N above:

        eps = e / width,   delta = e^-depth

    The conservative update (only the smallest counters of a row grow) keeps both bounds and lowers the error in
    practice. Fading as in :class:`~slipstream.staleness.popularity.DecayedCounts`, by a growing increment.

    Heavy rows: ``heavy`` places in buckets of 8, the bucket chosen by a hash of (table, row). A row that is looked up
    takes the least place of its bucket when its estimate is higher, so a bucket holds the 8 highest of its rows at
    their last lookups; of rows with many lookups only those are lost that share a bucket with 8 higher ones. [ours]

    Memory: 8 · depth · width + 16 · heavy bytes.

    Args:
        num_rows: Rows of each table, each below 2^40.
        half_life: Units after which a lookup counts half; None: lookups do not fade.
        width: Counters of each hash function, 1 or more.
        depth: Hash functions, 1 to 16.
        heavy: Rows kept by name, 8 or more; rounded up to a multiple of 8.
        seed: Seed of the hash functions.

    Raises:
        ConfigError: A size is out of range.
    """

    def __init__(
        self,
        num_rows: list[int],
        half_life: float | None,
        *,
        width: int = 1 << 18,
        depth: int = 4,
        heavy: int = 1 << 16,
        seed: int = 0,
    ) -> None:
        if not 1 <= width < 1 << 32:
            raise ConfigError(f"width must be in [1, 2^32), got {width}")
        if not 1 <= depth <= MAX_DEPTH:
            raise ConfigError(f"depth must be in [1, {MAX_DEPTH}], got {depth}")
        if not WAYS <= heavy < 1 << 32:
            raise ConfigError(f"heavy must be in [{WAYS}, 2^32), got {heavy}")
        if half_life is not None and not 0.0 < half_life < math.inf:
            raise ConfigError(f"half_life must be in (0, inf), got {half_life}")
        self.num_rows = num_rows
        self.half_life = half_life
        self.counters = torch.zeros(depth, width, dtype=torch.float64)
        """float64 [depth, width], in units of ``increment``."""
        buckets = -(-heavy // WAYS)
        self.keys = torch.full((buckets, WAYS), _EMPTY, dtype=torch.int64)
        """int64 [buckets, 8]: table · 2^40 + row, or -1."""
        self.estimates = torch.zeros(buckets, WAYS, dtype=torch.float64)
        """float64 [buckets, 8], in units of ``increment``."""
        self.totals = torch.zeros(len(num_rows), dtype=torch.float64)
        """float64 [tables], the lookups of each table, exact, in units of ``increment``."""
        self.increment = 1.0
        draws = np.random.default_rng((seed, _STREAM))
        self._seeds: npt.NDArray[np.uint64] = draws.integers(1 << 63, size=depth + 1, dtype=np.uint64)

    @property
    def eps(self) -> float:
        """The error as a share of all lookups: e / width."""
        return math.e / self.counters.shape[1]

    @property
    def delta(self) -> float:
        """The probability of a greater error: e^-depth."""
        return math.exp(-self.counters.shape[0])

    @property
    def total(self) -> float:
        """N, the (decayed) lookups of all tables; exact."""
        return float(self.totals.sum()) / self.increment

    def add(self, table: int, ids: Tensor) -> None:
        """Counts lookups.

        Args:
            table: The table's number.
            ids: int32 or int64, any shape, repeats allowed; those on a GPU are waited for.

        Raises:
            IndexOutOfRange: An id is outside the table.
        """
        flat = ids.reshape(-1).contiguous().cpu()
        outside = _add(
            self.counters.numpy(),
            self.keys.numpy(),
            self.estimates.numpy(),
            self._seeds,
            flat.numpy(),
            table,
            self.num_rows[table],
            self.increment,
        )
        self.totals[table] += (flat.numel() - outside) * self.increment
        if outside:
            raise IndexOutOfRange(f"{outside} ids are outside a table of {self.num_rows[table]} rows")

    def advance(self, amount: float) -> None:
        """Lets ``amount`` units pass."""
        if self.half_life is None:
            return
        exponent = math.log2(self.increment) + amount / self.half_life
        if exponent < math.log2(_RESCALE_AT):
            self.increment = 2.0**exponent
            return
        factor = 2.0 ** -min(exponent, 1_000.0)
        self.counters.mul_(factor)
        self.estimates.mul_(factor)
        self.totals.mul_(factor)
        self.increment = 1.0

    def estimate(self, table: int, rows: Tensor) -> Tensor:
        """Estimates of some rows' (decayed) lookups, float64, same shape as ``rows`` (integers)."""
        flat = rows.to(torch.int64).reshape(-1).contiguous().cpu()
        estimates = torch.empty(flat.numel(), dtype=torch.float64)
        _estimate(self.counters.numpy(), self._seeds, flat.numpy(), table, estimates.numpy())
        return estimates.div_(self.increment).reshape(rows.shape)

    def heavy(self) -> Heavy:
        """The heavy rows, highest estimate first; at equal estimates the earlier table, then the lower row, first."""
        filled = self.keys.reshape(-1).numpy() != _EMPTY
        keys = self.keys.reshape(-1).numpy()[filled]
        estimates = self.estimates.reshape(-1).numpy()[filled]
        order = np.lexsort((keys, -estimates))
        keys, estimates = keys[order], estimates[order] / self.increment
        return Heavy(torch.from_numpy(keys >> _ROW_BITS), torch.from_numpy(keys & _ROWS), torch.from_numpy(estimates))

    def state_dict(self) -> dict[str, Any]:
        """Counters, heavy rows, hash functions, increment and total."""
        return {
            "counters": self.counters,
            "keys": self.keys,
            "estimates": self.estimates,
            "seeds": torch.from_numpy(self._seeds.view(np.int64)),
            "totals": self.totals,
            "increment": self.increment,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of the same tables.

        Raises:
            ConfigError: The state is of a sketch of another size.
        """
        for name in ("counters", "keys", "estimates", "totals"):
            copy_into(getattr(self, name), state.get(name), f"sketch ({name})", remedy=_SAME_SKETCH)
        rows = self.keys[self.keys != _EMPTY]
        if bool((rows < 0).any()):
            raise ConfigError("the state's sketch has keys of no row", remedy=_SAME_SKETCH)
        shape = self._seeds.shape
        seeds = checked_tensor(state["seeds"], "sketch (seeds)", shape, torch.int64, remedy=_SAME_SKETCH)
        self._seeds = seeds.numpy().view(np.uint64).copy()
        self.increment = finite_number(state, "increment", above=0.0)
