"""Tables in host memory, the rows in use on a card: a cache of rows with write-back, and what goes over the bus.

[ours] The idea of FAE and Hotline, without a split that is fixed before training: the rows of a batch are brought to
the card before its forward pass, and the least popular rows (decayed lookups) that neither this batch nor the one
looked ahead to needs make room.

What crosses the bus is what must:

- a row that is missing: its weights, once, when a batch reads it;
- its optimizer state: only when a step will update it. A row whose gate is shut in a step is read and nothing else;
- a row that leaves: its weights and state, only if a step updated it since it came.

The card's rows are an ordinary table for the optimizer, so updates are those of the same tables in one memory, bit for
bit: a row's sum is in sample order whatever its place, and gates are drawn here, by the row's own number.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.kernels.hashing import gate_draw

_RESCALE_AT = 2.0**40
Keys = npt.NDArray[np.int64]


@dataclass(slots=True)
class BusBytes:
    """Bytes that crossed the bus."""

    weights_in: int = 0
    """Weights of rows that came to the card."""
    state_in: int = 0
    """Optimizer state of rows that came."""
    weights_out: int = 0
    """Weights of rows that left changed."""
    state_out: int = 0
    """Their state."""
    ahead: int = 0
    """Of all that came, what was brought for a batch before its turn."""
    hits: int = 0
    """Distinct rows of batches that were on the card when their batch's turn came."""
    misses: int = 0
    """Those that were not."""

    @property
    def total(self) -> int:
        """Both ways."""
        return self.weights_in + self.state_in + self.weights_out + self.state_out


class RowCache:
    """S rows on a card out of R in host memory.

    Rows of several tables share the cache; a row's *key* counts through the tables.

    Args:
        rows: Rows of each table.
        weight: float32 [R, D] in host memory, all tables one after another; changed in place.
        slots: S, rows that the card holds.
        device: The card; the CPU will do, for tests and for measuring traffic.
        half_life: Batches after which an access counts half.

    Raises:
        ConfigError: The card would hold no row.
    """

    def __init__(
        self, rows: Sequence[int], weight: Tensor, slots: int, device: torch.device, half_life: float = 1_000.0
    ) -> None:
        if slots < 1:
            raise ConfigError(f"a row cache of {slots} rows", remedy="give it a budget of at least one row")
        self.rows = tuple(rows)
        self.bases: Keys = np.concatenate([[0], np.cumsum(np.asarray(rows, np.int64))])
        self.slots = min(slots, int(self.bases[-1]))
        self.device, self.half_life = device, half_life
        self.gate: Tensor | None = None
        """uint8 [R] in host memory, or None while every row is open."""
        self.seeds: tuple[int, ...] = tuple(range(len(rows)))
        """Keys of each table's gate draws."""
        self.bytes = BusBytes()
        self._host: dict[str, Tensor] = {"weight": _pinned(weight, device)}
        self._card: dict[str, Tensor] = {"weight": torch.zeros(self.slots, weight.shape[1], device=device)}
        self._slot_of = np.full(int(self.bases[-1]), -1, np.int32)
        self._key_of = np.full(self.slots, -1, np.int64)
        self._changed = np.zeros(self.slots, np.bool_)
        self._has_state = np.zeros(self.slots, np.bool_)
        self._held = np.zeros(self.slots, np.bool_)  # by batches since the last step: no row of theirs may leave
        self._held_for = -1
        self._scores = np.zeros(int(self.bases[-1]), np.float32)
        self._increment = 1.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: list[tuple[Tensor, dict[str, Tensor], torch.cuda.Event]] = []  # on their way to the host

    @property
    def weight(self) -> Tensor:
        """The card's rows, [S, D]."""
        return self._card["weight"]

    @property
    def host_weight(self) -> Tensor:
        """All rows, [R, D] in host memory; up to date after :meth:`flush`."""
        return self._host["weight"]

    @property
    def state_names(self) -> list[str]:
        """Names of the states that come and go with the rows."""
        return [name for name in self._host if name != "weight"]

    def state(self, name: str) -> Tensor:
        """A state of all rows, [R, …] in host memory; up to date after :meth:`flush`."""
        return self._host[name]

    def card_state(self, name: str) -> Tensor:
        """A state of the rows on the card, [S, …]."""
        return self._card[name]

    def add_state(self, name: str, card: Tensor) -> Tensor:
        """Has a state of the card's rows come and go with them; returns its host memory, [R, …].

        Args:
            name: Its name.
            card: [S, …] on the card, as fresh state is: every row alike.
        """
        fresh = card[:1].cpu()
        host = fresh.expand(len(self._slot_of), *card.shape[1:]).clone()
        self._host[name], self._card[name] = _pinned(host, self.device), card
        return self._host[name]

    def keys(self, table: int, ids: Tensor) -> Keys:
        """Keys of ids (any shape, on the CPU) of a table, int64, flat.

        Raises:
            IndexOutOfRange: An id is outside the table.
        """
        flat = ids.reshape(-1).numpy().astype(np.int64)
        if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= self.rows[table]):
            bad = flat[(flat < 0) | (flat >= self.rows[table])][0]
            raise IndexOutOfRange(
                f"feature {table}: a lookup has id {bad}, the table has {self.rows[table]} rows",
                remedy="use ids from 0 to num_embeddings - 1",
            )
        return flat + self.bases[table]

    def resident(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Whether each key's row is on the card, same shape."""
        return self._slot_of[keys] >= 0

    def place(self, keys: Keys, step: int) -> npt.NDArray[np.int32]:
        """Brings the rows of a batch to the card for an optimizer step and returns each key's slot, same shape.

        Args:
            keys: int64, any shape, repeats allowed.
            step: Number of the optimizer step that will follow, from 1: gates are drawn for it.

        Raises:
            ConfigError: The batch (with those before it in the same step) has more distinct rows than the card.
        """
        self._settle()
        distinct = np.unique(keys)
        if step != self._held_for:
            self._held[:] = False
            self._held_for = step
        known = self.resident(distinct)
        self.bytes.hits += int(known.sum())
        self.bytes.misses += int((~known).sum())
        self._count(distinct)
        self._bring(distinct, step, ahead=False)
        slots = self._slot_of[distinct]
        self._held[slots] = True
        is_open = self._open(distinct, step)
        self._changed[slots[is_open]] = True
        return self._slot_of[keys]

    def gates(self, keys: Keys, step: int) -> npt.NDArray[np.uint8]:
        """255 for keys whose row the step updates, 0 for the others."""
        return np.where(self._open(keys, step), 255, 0).astype(np.uint8)

    def prefetch(self, keys: Keys, step: int) -> None:
        """Brings rows for a later batch, on a stream of its own, while the card computes what is queued after this.

        To be called after :meth:`place` of the batch before and ahead of its forward pass. Rows that do not find room
        are left to :meth:`place`.
        """
        self._settle()
        if self._stream is None:
            self._bring(np.unique(keys), step, ahead=True)
            return
        # Rows that leave were last updated in steps queued already.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._bring(np.unique(keys), step, ahead=True)

    def flush(self) -> None:
        """Writes every changed row back; the rows stay on the card."""
        self._settle()
        changed = np.flatnonzero(self._changed)
        self._write_back(changed)
        self._changed[changed] = False
        self._settle()

    def forget(self) -> None:
        """Takes every row from the card without writing it back: the host's rows were replaced."""
        self._settle()
        self._slot_of[:], self._key_of[:] = -1, -1
        self._changed[:], self._has_state[:], self._held[:] = False, False, False

    def _count(self, distinct: Keys) -> None:
        self._scores[distinct] += np.float32(self._increment)
        self._increment *= 2.0 ** (1.0 / self.half_life)
        if self._increment > _RESCALE_AT:
            self._scores *= np.float32(1.0 / self._increment)
            self._increment = 1.0

    def _open(self, keys: Keys, step: int) -> npt.NDArray[np.bool_]:
        if self.gate is None:
            return np.ones(keys.shape, np.bool_)
        gate = self.gate.numpy()[keys]
        is_open = gate == 255
        drawn = np.flatnonzero((gate > 0) & (gate < 255))
        if drawn.size:
            table = np.searchsorted(self.bases, keys[drawn], side="right") - 1
            for number in np.unique(table):
                mine = drawn[table == number]
                rows = torch.from_numpy(keys[mine] - self.bases[number])
                is_open[mine] = gate_draw(rows, step, self.seeds[number]).numpy() < gate[mine]
        return is_open

    def _bring(self, distinct: Keys, step: int, *, ahead: bool) -> None:
        missing = distinct[~self.resident(distinct)]
        if missing.size:
            slots = self._room(missing.size, distinct, ahead=ahead)
            missing = missing[: slots.size]
            self._slot_of[missing], self._key_of[slots] = slots, missing
            self._has_state[slots] = self._changed[slots] = False
            moved = self._move_in(["weight"], missing, slots)
            self.bytes.weights_in += moved
            self.bytes.ahead += moved if ahead else 0
        states = self.state_names
        wanted = distinct[self.resident(distinct) & self._open(distinct, step)]
        slots = self._slot_of[wanted]
        wanted, slots = wanted[~self._has_state[slots]], slots[~self._has_state[slots]]
        if states and wanted.size:
            moved = self._move_in(states, wanted, slots)
            self.bytes.state_in += moved
            self.bytes.ahead += moved if ahead else 0
        self._has_state[slots] = True

    def _room(self, count: int, distinct: Keys, *, ahead: bool) -> npt.NDArray[np.int64]:
        """Slots for so many rows: free ones, then those of the least popular rows that nobody needs now."""
        free = np.flatnonzero(self._key_of < 0)[:count]
        if free.size == count:
            return free
        needed = self._held.copy()
        own = self._slot_of[distinct]
        needed[own[own >= 0]] = True
        candidates = np.flatnonzero(~needed & (self._key_of >= 0))
        short = count - free.size
        if candidates.size < short:
            if not ahead:
                raise ConfigError(
                    f"a step needs {distinct.size} rows on the card, which holds {self.slots}",
                    remedy="give the row cache a larger budget, or train on smaller batches",
                )
            short = candidates.size
        # A stable sort: ties go by the slot, so that a run repeats.
        scores = self._scores[self._key_of[candidates]]
        leaving = candidates[np.argsort(scores, kind="stable")[:short]]
        self._write_back(leaving[self._changed[leaving]])
        self._slot_of[self._key_of[leaving]] = -1
        self._key_of[leaving] = -1
        return np.concatenate([free, leaving])

    def _move_in(self, names: Sequence[str], keys: Keys, slots: npt.NDArray[np.integer]) -> int:
        moved = 0
        to, source = torch.from_numpy(slots.astype(np.int64)), torch.from_numpy(keys)
        to = to.to(self.device, non_blocking=True)
        for name in names:
            rows = self._host[name].index_select(0, source)
            moved += rows.nbytes
            self._card[name].data.index_copy_(0, to, _pinned(rows, self.device).to(self.device, non_blocking=True))
        return moved

    def _write_back(self, slots: npt.NDArray[np.integer]) -> None:
        if not slots.size:
            return
        keys = torch.from_numpy(self._key_of[slots])
        places = torch.from_numpy(slots.astype(np.int64)).to(self.device, non_blocking=True)
        moved: dict[str, Tensor] = {}
        for name in self._host:
            rows = self._card[name].detach().index_select(0, places)
            if name == "weight":
                self.bytes.weights_out += rows.nbytes
            else:
                self.bytes.state_out += rows.nbytes
            if self.device.type == "cuda":
                rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            moved[name] = rows
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._leaving.append((keys, moved, event))
        else:
            for name, rows in moved.items():
                self._host[name].index_copy_(0, keys, rows)

    def _settle(self) -> None:
        """Takes in the rows that left, and has what the card computes from now on wait for the rows that came."""
        for keys, moved, event in self._leaving:
            event.synchronize()
            for name, rows in moved.items():
                self._host[name].index_copy_(0, keys, rows)
        self._leaving.clear()
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor
