"""A table: weights and what is kept per row beside them."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from slipstream.embedding.row_gradient import RowGradient
from slipstream.embedding.unseen import refuse_hooks
from slipstream.errors import ConfigError, UnsupportedOption
from slipstream.kernels.types import DrawnLookups, Lookups, RowGradients

OPEN = 255
"""Gate of a row that every step updates."""
FROZEN = 0
"""Gate of a row that no step updates."""


class _Probe:
    """Counts references as :meth:`Table.receive` does; the number differs between versions of Python."""

    def __init__(self) -> None:
        self._spare: object = object()

    def count(self) -> int:
        gradient = self._spare
        return sys.getrefcount(gradient)


_UNSHARED = _Probe().count()
"""References to a spare gradient that nobody else holds."""
_SMALL = 1 << 15
"""Numbers of a table's gradients that may outlive ``zero_grad()``: another tensor would take longer than such rows."""

_MOST_TOTALS = 64
"""Tensors of counts that a table remembers: an optimizer makes a new one when it meets other tables or gates."""

Listener = Callable[["Table", Tensor], None]
Sampler = Callable[[Sequence["Table"], Lookups, Tensor], "Lookups | DrawnLookups"]
"""Given a table for each feature, the lookups of a forward pass and the gradient [B, F, D] of its output: the lookups
that take part in the update, weighed so that their expected sum is that of all."""


class Table:
    """Weights [R, D] with a gate per row, and counts of the work done and skipped.

    Attributes:
        name: The weight's parameter name, for messages.
        weight: The parameter.
        gate: uint8 [R], or None while every row is open. 255: each step updates the row; 0: frozen; g between:
            updated with probability g / 256 a step.
        by_sample: Whether gates between 0 and 255 draw for each sample's lookups of a row instead of once for the row;
            what is kept of the row's gradient then weighs 256 / g.
        listeners: Called in every backward pass with (table, ids) of its lookups, those of gated rows included; ids
            are integers of any shape.
        sampler: Chooses, in every backward pass, which lookups take part in updates; held weakly, as it belongs to a
            running policy. None: all do, as far as gates let them.
        signal: uint16 [R], or None while nobody asked for it: what updates measure of each row (see
            :mod:`slipstream.staleness.moments`).
        trail: float32 [R, 5], or None: where rows have come from, for the signal of optimizers without moments.
    """

    sampler: weakref.ref[Sampler] | None = None  # of the class, for models that were pickled before there was one
    _shared: weakref.ref[Table] | None = None  # what its weight shared before it was untied

    def __init__(self, weight: nn.Parameter, name: str = "") -> None:
        self.name = name
        self.weight = weight
        self.gate: Tensor | None = None
        self.by_sample = False
        self.signal: Tensor | None = None
        self.trail: Tensor | None = None
        self.listeners: list[Listener] = []
        self._lookups = 0
        self._skipped = 0
        self._on_device: dict[int, tuple[Tensor, int]] = {}
        self._spare: RowGradient | None = None  # used again from step to step

    @property
    def num_rows(self) -> int:
        """R."""
        return self.weight.shape[0]

    @property
    def lookups(self) -> int:
        """Row lookups that optimizer steps consumed; waits for the table's GPU, if it is on one."""
        return self._lookups + self._counted(0) if self._on_device else self._lookups

    @lookups.setter
    def lookups(self, value: int) -> None:
        self._lookups = value - self._counted(0)

    @property
    def skipped(self) -> int:
        """Those of them whose update was skipped; waits likewise."""
        return self._skipped + self._counted(1) if self._on_device else self._skipped

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value - self._counted(1)

    def count(self, lookups: int, skipped: int) -> None:
        """Add what an optimizer step did."""
        self._lookups += lookups
        self._skipped += skipped

    def count_on_device(self, totals: Tensor, position: int) -> None:
        """Have lookups and skipped read from a tensor that optimizer steps add to, when somebody asks.

        Args:
            totals: int64 [T, 2], lookups and skipped of T tables.
            position: This table's among them.
        """
        if id(totals) not in self._on_device:
            if len(self._on_device) >= _MOST_TOTALS:
                self._lookups, self._skipped, self._on_device = self.lookups, self.skipped, {}
            self._on_device[id(totals)] = (totals, position)

    def _counted(self, which: int) -> int:
        return sum(int(totals[position, which]) for totals, position in self._on_device.values())

    @property
    def sites(self) -> weakref.WeakSet[Site]:
        """Where it is looked up."""
        return self.__dict__.setdefault("_sites", weakref.WeakSet())

    def drawn_by(self) -> Sampler | None:
        """The sampler, while its policy lives."""
        return None if self.sampler is None else self.sampler()

    def open_gate(self) -> Tensor:
        """The gate, made (all rows open) if there is none yet."""
        if self.gate is None:
            self.gate = torch.full((self.num_rows,), OPEN, dtype=torch.uint8, device=self.weight.device)
        return self.gate

    def measure(self) -> Tensor:
        """The signal, measured from now on (one step in a few), all 0 at first."""
        if self.signal is None:
            self.signal = torch.zeros(self.num_rows, dtype=torch.uint16, device=self.weight.device)
        return self.signal

    def open_trail(self) -> Tensor:
        """The trail, made (all 0) if there is none yet."""
        if self.trail is None:
            self.trail = torch.zeros(self.num_rows, 5, dtype=torch.float32, device=self.weight.device)
        return self.trail

    def set_gate(self, gate: Tensor | None) -> None:
        """Replace the gate.

        Raises:
            ConfigError: It is not uint8 [R].
        """
        if gate is not None and (gate.dtype != torch.uint8 or gate.shape != (self.num_rows,)):
            raise ConfigError(
                f"gate of table {self.name!r} is {gate.dtype} {tuple(gate.shape)}, must be uint8 ({self.num_rows},)"
            )
        self.gate = None if gate is None else gate.to(self.weight.device).contiguous()

    def moved(self, weight: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow a weight that went through ``Module._apply``: to another device, say."""
        self._have(weight)
        self.gate, self.signal, self.trail = (_placed(kept, fn) for kept in (self.gate, self.signal, self.trail))

    def take(self, weight: nn.Parameter) -> None:
        """Have another parameter as the weight: on another device, maybe, as ``load_state_dict(assign=True)`` gives."""
        self._have(weight)
        self.gate, self.signal, self.trail = (_on(weight.device, kept) for kept in (self.gate, self.signal, self.trail))

    def _have(self, weight: nn.Parameter) -> None:
        self.weight = weight
        if self.sites:
            Site.note(self)

    def untied(self, weight: nn.Parameter) -> Table:
        """A table for a weight [R, D] that was this one's and is no more, while others go on to share it.

        No running policy knows it, so that gates which one set here, and nobody would open there, are not taken over.
        """
        own = Table(weight, self.name)
        own._shared = weakref.ref(self)
        of_policy = self.listeners or self.drawn_by() is not None or self.signal is not None
        if self.gate is not None and not of_policy:
            own.by_sample, own.gate = self.by_sample, _on(weight.device, self.gate.clone())
        return own

    def is_untied_from(self, other: Table) -> bool:
        """Whether :meth:`untied` made it of another table."""
        return self._shared is not None and self._shared() is other

    def receive(self, block: RowGradients, features: tuple[int, ...]) -> None:
        """Take the row gradients of one backward pass into ``weight.grad``."""
        weight = self.weight
        if weight._backward_hooks or weight._post_accumulate_grad_hooks:
            refuse_hooks(self.name)
        grad = weight.grad
        if type(grad) is RowGradient:
            if grad.table is not self:
                raise UnsupportedOption(
                    f"the weight of table {self.name!r} has a gradient of another table that has the same weight",
                    remedy="call optimizer.zero_grad() after you tie weights, and tie by assigning the parameter",
                )
            grad.add_block(block, features)
            return
        gradient = self._spare
        if gradient is None or sys.getrefcount(gradient) > _UNSHARED:
            gradient = RowGradient(self)
        gradient.start(block, features, grad)
        try:
            weight.grad = gradient
        except RuntimeError:  # the weight has become one of another size, type or device
            gradient = RowGradient(self)
            gradient.start(block, features, grad)
            weight.grad = gradient
        small = block.grad.numel() * len(features) <= _SMALL * block.lookups.num_features
        self._spare = gradient if grad is None and small else None

    def let_go(self) -> None:
        """Keep no gradient longer than ``zero_grad()`` does: it has grown."""
        self._spare = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and saved models keep: not the listeners and the sampler, which belong to a running policy."""
        counts = {"_lookups": self.lookups, "_skipped": self.skipped, "_on_device": {}}
        state = self.__dict__ | counts | {"listeners": [], "sampler": None, "_spare": None, "_shared": None}
        state.pop("_sites", None)
        return state

    def __repr__(self) -> str:
        """Name and size."""
        return f"Table({self.name!r}, rows={self.num_rows}, dim={self.weight.shape[1]})"


def _on(device: torch.device, kept: Tensor | None) -> Tensor | None:
    """What is kept of rows, on a device; None if there is nothing, as on the meta device."""
    return None if kept is None or (kept.is_meta and device.type != "meta") else kept.to(device)


def _placed(kept: Tensor | None, fn: Callable[[Tensor], Tensor]) -> Tensor | None:
    """What is kept of rows, where a function of ``Module._apply`` puts tensors.

    What else it does, a cast or ``to_empty``, is for weights.
    """
    placed = None if kept is None else fn(kept)
    return kept if placed is None or placed is kept else _on(placed.device, kept)


class Site:
    """A place in a model that looks tables up: what the backward operator hands its gradients to.

    Compiled graphs can hold numbers but not objects, so a site has a handle by which the operator finds it.
    """

    _handles: ClassVar[itertools.count[int]] = itertools.count(1)
    _alive: ClassVar[weakref.WeakValueDictionary[int, Site]] = weakref.WeakValueDictionary()
    _of_weight: ClassVar[weakref.WeakValueDictionary[int, Table]] = weakref.WeakValueDictionary()

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tuple(tables)
        self._take_handle()

    def _take_handle(self) -> None:
        self.place_tokens()
        self.handle = next(self._handles)
        self._alive[self.handle] = self
        self._find_readers()

    def _find_readers(self) -> None:
        readers: dict[int, list[int]] = {}
        for feature, table in enumerate(self.tables):
            readers.setdefault(id(table), []).append(feature)
        self._readers = [(self.tables[features[0]], tuple(features)) for features in readers.values()]
        for table, _ in self._readers:
            table.sites.add(self)
            self.note(table)

    def place_tokens(self) -> None:
        """Have the tokens where the tables are: backward makes the token's gradient there."""
        device = self.tables[0].weight.device if self.tables else None
        self.token = torch.zeros(1, requires_grad=True, device=device)
        self.frozen_token = torch.zeros(1, device=device)

    @classmethod
    def of(cls, handle: int) -> Site:
        """The site with a handle."""
        return cls._alive[handle]

    @classmethod
    def tables_of(cls, handle: int) -> Sequence[Table]:
        """The tables of the site with a handle; none if the site is gone, whose exported program lives on."""
        site = cls._alive.get(handle)
        return () if site is None else site.tables

    @classmethod
    def table_of(cls, weight: Tensor) -> Table | None:
        """The table of a parameter, if it is looked up anywhere."""
        table = cls._of_weight.get(id(weight))
        # A table goes on to another weight, and an id to another object.
        return table if table is not None and table.weight is weight and table.sites else None

    @classmethod
    def note(cls, table: Table) -> None:
        """Have :meth:`table_of` find a table by its weight."""
        cls._of_weight[id(table.weight)] = table

    @classmethod
    def give(cls, table: Table, weight: nn.Parameter) -> Table:
        """Have a table's weight be another parameter wherever it is looked up.

        Returns:
            The weight's table from now on: the one that it has already, if it has one.
        """
        other = cls.table_of(weight)
        if other is None or other is table:
            table.take(weight)
            for site in table.sites:
                site.place_tokens()
        else:
            cls._replace(table, other)
        return other or table

    @classmethod
    def _replace(cls, table: Table, other: Table) -> None:
        for site in list(table.sites):
            table.sites.discard(site)
            site.tables = tuple(other if mine is table else mine for mine in site.tables)
            site._find_readers()
            site.place_tokens()

    def with_weight(self, weight: nn.Parameter) -> Site:
        """The one-table site of a module whose weight became another parameter.

        A tied table stays with the others, and a weight that is a table's already has that table here, too. Weights
        that are tied again, as after ``load_state_dict(assign=True)``, have the table that they shared before: it is
        the one that a running policy knows.
        """
        (table,) = self.tables
        other = self.table_of(weight)
        if other is table:
            return self
        alone = len(table.sites) == 1
        if other is not None and not (alone and other.is_untied_from(table)):
            return Site([other])
        if not alone:
            return Site([table.untied(weight)])
        if other is not None:
            self._replace(other, table)
        table.take(weight)
        self.place_tokens()
        return self

    def receive(self, lookups: Lookups, grad: Tensor) -> None:
        """Hand the gradient [B, F, D] of the pooled output to the tables that are trained.

        Both are read until the optimizer's step, and must not change (see :mod:`slipstream.embedding.held`).
        """
        sampler = self._sampler()
        taken = lookups if sampler is None else sampler(self.tables, lookups, grad)
        block = RowGradients(taken, grad, ())
        for table, features in self._readers:
            if table.weight.requires_grad:
                table.receive(block, features)
            if table.listeners:
                for listener in tuple(table.listeners):
                    listener(table, _ids_of(lookups, features))

    def _sampler(self) -> Sampler | None:
        return next((found for table, _ in self._readers if (found := table.drawn_by()) is not None), None)

    def __getstate__(self) -> dict[str, Any]:
        """The tables: copies and loaded models get handles of their own."""
        return {"tables": self.tables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a new handle."""
        self.tables = state["tables"]
        self._take_handle()


def _ids_of(lookups: Lookups, features: tuple[int, ...]) -> Tensor:
    if lookups.offsets is None:
        return lookups.ids[:, features[0]] if len(features) == 1 else lookups.ids[:, list(features)]
    if lookups.num_features == 1:
        return lookups.ids
    size = lookups.batch_size
    if not size:
        return lookups.ids[:0]
    ends = lookups.offsets[::size].tolist()
    return torch.cat([lookups.ids[ends[f] : ends[f + 1]] for f in features])
