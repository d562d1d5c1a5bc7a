"""Tables in host memory, the rows in use on a card: a cache of rows with write-back, and what goes over the bus.

[ours] The idea of FAE and Hotline, without a split that is fixed before training: the rows of a batch are brought to
the card before its forward pass, and the least popular rows (decayed lookups) that neither this batch nor the one
looked ahead to needs make room.

What crosses the bus is what must:

- a row that is missing: its weights, once, when a batch reads it;
- its optimizer state: only when a step will update it, and only once a step has: until then the card knows how it
  begins. A row whose gate is shut in a step is read and nothing else;
- a row that leaves: its weights and state, only if a step updated it since it came.

The card's rows are an ordinary table for the optimizer, so updates are those of the same tables in one memory, bit for
bit: a row's sum is in sample order whatever its place, and gates are drawn here, by the row's own number.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slipstream.embedding.row_bytes import BusBytes
from slipstream.embedding.row_index import Keys, RowIndex, Slots, number_rows
from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.kernels.hashing import gate_draw


class Placed(NamedTuple):
    """A batch's rows on the card."""

    slots: npt.NDArray[np.int32]
    """Where the row of each lookup is, same shape as the keys."""
    rows: Slots
    """Slots of the distinct rows."""
    is_open: npt.NDArray[np.bool_]
    """Whether the step updates each of them."""


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
        self.rows = tuple(rows)
        self.bases: Keys = np.concatenate([[0], np.cumsum(np.asarray(rows, np.int64))])
        self._make_slots(min(slots, int(self.bases[-1])))
        self.device = device
        self.gate: Tensor | None = None
        """uint8 [R] in host memory, or None while every row is open."""
        self.seeds: tuple[int, ...] = tuple(range(len(rows)))
        """Keys of each table's gate draws."""
        self.steps_done: Callable[[], int] | None = None
        """Steps that the optimizer has done; without it a step counts as under way until the next is placed."""
        self.bytes = BusBytes()
        self._index = RowIndex(int(self.bases[-1]), self.slots, half_life)
        # Not pinned: rows are gathered into pinned memory on their way, and pinning would copy whole tables.
        self._host: dict[str, Tensor] = {"weight": weight}
        self.weight = nn.Parameter(torch.zeros(self.slots, weight.shape[1], device=device))
        """The card's rows, [S, D]."""
        # The parameter itself, not a tensor in its memory: copies of a model, and .to(), leave them together.
        self._card: dict[str, Tensor] = {"weight": self.weight}
        self._fresh: dict[str, Tensor] = {}  # a row's states before its first update, [1, …] on the card
        self._is_fresh = np.ones(int(self.bases[-1]), np.bool_)  # of rows in host memory
        self._step = -1
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: list[tuple[Tensor, dict[str, Tensor], torch.cuda.Event]] = []  # on their way to the host

    def _make_slots(self, slots: int) -> None:
        if slots < 1:
            raise ConfigError(f"a row cache of {slots} rows", remedy="give it a budget of at least one row")
        self.slots = slots
        self._changed = np.zeros(slots, np.bool_)
        self._has_state = np.zeros(slots, np.bool_)
        self._open_now = np.ones(slots, np.bool_)  # whether the step updates the row; of the rows of its batches
        # By state: rows that changed since the host last saw it, of those that did since it saw all of the row.
        self._news: dict[str, npt.NDArray[np.bool_]] = {}
        self._stale: Slots = np.empty(0, np.int64)  # rows of the step under way that are to come anew before it

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

    def add_state(self, name: str, card: Tensor, *, shared: bool = False) -> Tensor:
        """Has a state of the card's rows come and go with them; returns its host memory, [R, …].

        Args:
            name: Its name.
            card: [S, …] on the card, as fresh state is: every row alike.
            shared: Others write to its host memory, so what it holds there of a row is not known on the card.
        """
        fresh = card[:1].clone()
        if not shared:
            self._fresh[name] = fresh
        self._host[name] = fresh.cpu().expand(int(self.bases[-1]), *card.shape[1:]).clone()
        self._card[name] = card
        return self._host[name]

    def shrink(self, slots: int) -> None:
        """Has the card hold at most ``slots`` rows; its tensors stay, with less memory, which is allocated anew.

        Raises:
            ConfigError: The card would hold no row, or a step is under way, whose gradients go by the rows' places.
        """
        if self._is_under_way():
            raise ConfigError(
                "the rows on the card are to be measured, so fewer of them fit, while a step is under way",
                remedy="attach the policy before a forward pass with gradients, or after its optimizer's step",
            )
        self.flush()
        self._make_slots(min(slots, self.slots))
        self._index.resize(self.slots)
        for state in self._card.values():
            state.data = state.data[: self.slots].clone()

    def keys(self, table: int, ids: Tensor) -> Keys:
        """Keys of ids (any shape, on the CPU) of a table, int64, flat.

        Raises:
            IndexOutOfRange: An id is outside the table.
        """
        flat = ids.reshape(-1).numpy()
        keys = np.empty(flat.size, np.int64)
        bad = number_rows(flat, self.rows[table], int(self.bases[table]), keys)
        if bad >= 0:
            raise IndexOutOfRange(
                f"feature {table}: a lookup has id {flat[bad]}, the table has {self.rows[table]} rows",
                remedy="use ids from 0 to num_embeddings - 1",
            )
        return keys

    def resident(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Whether each key's row is on the card, same shape."""
        return self._index.slot_of[keys] >= 0

    def place(self, keys: Keys, step: int) -> Placed:
        """Brings the rows of a batch to the card for an optimizer step.

        Args:
            keys: int64 [N], repeats allowed.
            step: Number of the optimizer step that will follow, from 1: gates are drawn for it.

        Raises:
            ConfigError: The batch (with those before it in the same step) has more distinct rows than the card.
        """
        self._settle()
        self.refresh()
        if step != self._step:
            self._index.let_go()
            self._step = step
        rows, is_open = self._bring(keys, step, ahead=False)
        self._index.hold(rows)
        self.bytes.rows_read += rows.size
        self.bytes.rows_updated += int(np.count_nonzero(is_open))
        self._will_change(rows[is_open])
        self._open_now[rows] = is_open
        slots = self._index.slot_of[keys]
        return Placed(slots, rows, is_open)

    def is_open(self, slots: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether the step updates the rows, which :meth:`place` brought, in these slots; same shape."""
        return self._open_now[slots]

    def prefetch(self, keys: Keys, step: int) -> None:
        """Brings rows for a later batch, on a stream of its own, while the card computes what is queued after this.

        To be called after :meth:`place` of the batch before and ahead of its forward pass. Rows that do not find room
        are left to :meth:`place`.
        """
        self._settle()
        if self._stream is None:
            self._bring(keys, step, ahead=True)
            return
        # Rows that leave were last updated in steps queued already.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._bring(keys, step, ahead=True)

    def flush(self) -> None:
        """Writes every changed row back; the rows stay on the card."""
        self._settle()
        changed = np.flatnonzero(self._changed)
        self._write_back(changed)
        self._changed[changed] = False
        if self._is_under_way():  # it will change its rows once more
            mine = self._index.holding()
            self._changed[mine] = self._open_now[mine]
            self._changed[self._stale] = False
        self._settle()

    def update(self, name: str, keys: Keys | None = None) -> None:
        """Writes one state, or ``weight``, back: of the rows in which it may have changed since the last time.

        Args:
            name: Its name.
            keys: Rows that are enough; None: all.
        """
        self._settle()
        news = self._news.setdefault(name, np.ones(self.slots, np.bool_))
        if keys is None:
            changed = np.flatnonzero(news & self._changed)
        else:
            slots = np.unique(self._index.slot_of[keys]).astype(np.int64)
            changed = slots[(slots >= 0) & news[slots] & self._changed[slots]]
        self._write_back(changed, [name])
        news[changed] = False
        if self._is_under_way():
            mine = self._index.holding()
            news[mine] |= self._open_now[mine]
        self._settle()

    def forget(self, *, state: bool = True) -> None:
        """Takes every row from the card without writing it back: the host's rows were replaced, or are about to be.

        Rows that a step under way is to update keep their places, which its gradients go by, and come anew before it.

        Args:
            state: Optimizer state may be replaced, too.
        """
        self._settle()
        under_way = self._is_under_way()
        self._index.clear(keep_held=under_way)
        self._changed[:], self._has_state[:] = False, False
        if state:
            self._is_fresh[:] = False
        self._stale = self._index.holding() if under_way else self._stale[:0]

    def skip_step(self) -> None:
        """Lets the rows leave again that were placed for a step which is left out."""
        self.refresh()  # they stay on the card until then
        self._index.let_go()
        self._step = -1

    def refresh(self) -> None:
        """Brings what :meth:`forget` left for later; to be called before an optimizer's step."""
        rows, self._stale = self._stale, self._stale[:0]
        if rows.size:  # else an optimizer's step need not wait for rows that come for the next batch
            self._settle()
            self.bytes.weights_in += self._move_in(["weight"], rows, ahead=False)
            updated = rows[self._open_now[rows]]
            self._bring_state(updated, ahead=False)
            self._will_change(updated)

    def _will_change(self, rows: Slots) -> None:
        self._changed[rows] = True
        for news in self._news.values():
            news[rows] = True

    def _is_under_way(self) -> bool:
        """Whether rows were placed for a step that is still to update them."""
        return self._step >= 0 and (self.steps_done is None or self.steps_done() < self._step)

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

    def _bring(self, keys: Keys, step: int, *, ahead: bool) -> tuple[Slots, npt.NDArray[np.bool_]]:
        """Slots of the distinct rows that are on the card then, and whether the step updates each."""
        here, missing = self._index.split(keys)
        free, leaving = self._index.room(missing.size)
        new = np.concatenate([free, leaving])
        if not ahead:
            if new.size < missing.size:
                kept = np.setdiff1d(self._index.holding(), here).size
                beside = f" beside the {kept} of batches before, which no step has followed yet" if kept else ""
                raise ConfigError(
                    f"a step needs {here.size + missing.size} rows on the card{beside}; it holds {self.slots}",
                    remedy="give the row cache a larger budget, or train on smaller batches"
                    + ("; call skip_step() where a step is left out" if kept else ""),
                )
            self.bytes.hits += here.size
            self.bytes.misses += missing.size
        if new.size:
            self._write_back(leaving[self._changed[leaving]])
            self._index.leave(leaving)
            self._index.enter(missing[: new.size], new)
            self._has_state[new] = self._changed[new] = False
            self.bytes.weights_in += self._move_in(["weight"], new, ahead=ahead)
        rows = np.concatenate([here, new])
        if not ahead:
            self._index.count(rows)
        is_open = self._open(self._index.key_of[rows], step)
        self.bytes.rows_in += new.size
        self.bytes.rows_in_shut += int(np.count_nonzero(~is_open[here.size :]))
        self._bring_state(rows[is_open & ~self._has_state[rows]], ahead=ahead)
        return rows, is_open

    def _bring_state(self, slots: Slots, *, ahead: bool) -> None:
        is_fresh = self._is_fresh[self._index.key_of[slots]]
        shared = [name for name in self.state_names if name not in self._fresh]
        for names, coming in ((list(self._fresh), slots[~is_fresh]), (shared, slots)):
            if coming.size:
                self.bytes.state_in += self._move_in(names, coming, ahead=ahead)
        places = self._sent(torch.from_numpy(slots[is_fresh]))
        for name, value in self._fresh.items():
            self._card[name].data.index_copy_(0, places, value.expand(len(places), *value.shape[1:]))
        self._has_state[slots] = True

    def _move_in(self, names: Sequence[str], slots: Slots, *, ahead: bool) -> int:
        moved = 0
        source, to = torch.from_numpy(self._index.key_of[slots]), self._sent(torch.from_numpy(slots))
        for name in names:
            host = self._host[name]
            rows = self._staged((slots.size, *host.shape[1:]), host.dtype)
            torch.index_select(host, 0, source, out=rows)
            moved += rows.nbytes
            self._card[name].data.index_copy_(0, to, rows.to(self.device, non_blocking=True))
        self.bytes.ahead += moved if ahead else 0
        return moved

    def _write_back(self, slots: Slots, names: Sequence[str] | None = None) -> None:
        if not slots.size:
            return
        self._is_fresh[self._index.key_of[slots]] = False
        keys, places = torch.from_numpy(self._index.key_of[slots]), self._sent(torch.from_numpy(slots))
        moved: dict[str, Tensor] = {}
        for name in self._host if names is None else names:
            rows = self._card[name].detach().index_select(0, places)
            if name == "weight":
                self.bytes.weights_out += rows.nbytes
            else:
                self.bytes.state_out += rows.nbytes
            moved[name] = self._staged(rows.shape, rows.dtype).copy_(rows, non_blocking=True)
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._leaving.append((keys, moved, event))
        else:
            for name, rows in moved.items():
                self._host[name].index_copy_(0, keys, rows)

    def _staged(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for rows on their way; a copy from or to memory that is not pinned would wait for the card."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.device.type == "cuda")

    def _sent(self, tensor: Tensor) -> Tensor:
        return to_card(tensor, self.device)

    def _settle(self) -> None:
        """Takes in the rows that left, and has what the card computes from now on wait for the rows that came."""
        for keys, moved, event in self._leaving:
            event.synchronize()
            for name, rows in moved.items():
                self._host[name].index_copy_(0, keys, rows)
        self._leaving.clear()
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)


def to_card(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the card, sent without waiting."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
