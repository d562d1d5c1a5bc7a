"""An embedding collection whose tables are in host memory, with the rows in use on a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slipstream.embedding.collection import BagLike, TableConfig, check_tables, initialise, key_of
from slipstream.embedding.host_table import HostTable
from slipstream.embedding.memory import empty_table
from slipstream.embedding.operators import look_up
from slipstream.embedding.row_bytes import SIGNAL_BYTES, TRAIL_BYTES, BusBytes, row_bytes
from slipstream.embedding.row_cache import Placed, RowCache, to_card
from slipstream.embedding.row_index import Keys
from slipstream.embedding.table import FROZEN, OPEN, Site, Table
from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.kernels.types import Lookups

_GROUP_SEEDS = 20
"""Bits by which an optimizer's ``gate_seed`` stands above the tables' numbers, as in ``optim.row_step``."""


def cached_tables(model: nn.Module) -> dict[str, HostTable]:
    """The tables of a model's cached collections, by the keys of their weights in its ``state_dict``."""
    found: dict[str, HostTable] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, CachedEmbeddingCollection):
            start = f"{prefix}." if prefix else ""
            found |= {f"{start}tables.{key_of(name)}.weight": table for name, table in module.table_of.items()}
    return found


class CachedEmbeddingCollection(nn.Module):
    """As :class:`EmbeddingCollection`, for tables larger than the card's memory.

    ::

        tables = CachedEmbeddingCollection(configs, budget_bytes=8 << 30, device="cuda")
        optimizer = sl.optim.Adam(model.parameters())
        tables.attach(optimizer)
        for batch, following in pairwise(loader):
            tables.look_ahead(following.inputs.ids, following.inputs.bags)   # may be left out
            rows = tables(batch.inputs.ids, batch.inputs.bags)               # ids in host memory
            ...; loss.backward(); optimizer.step()

    Weights and state after a step are, bit for bit, those of an :class:`EmbeddingCollection` whose tables stand where
    the rows' parameter stands among the optimizer's. Without gradients (evaluation) rows are read in host memory, and
    the card's stay as they are. ``state_dict`` has the same keys; the optimizer's own holds only the rows on the
    card, see :meth:`host_state`.

    Args:
        tables: The tables.
        multi_hot: Names of those that are read by bags.
        pooling: ``sum`` or ``mean`` over a bag.
        budget_bytes: Memory of the card for rows with all that is kept of each: optimizer state, gate, and where a
            policy has rows measured their signal and trail, for which the cache then makes room among its rows.
        state_elements: Elements of state a row, for which the budget makes room: 2 D for Adam, which is the default.
        device: The card.
        half_life: Batches after which an access counts half in what may stay.

    Raises:
        ConfigError: Tables that make no sense together, or a budget of less than a row.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        budget_bytes: int,
        multi_hot: Sequence[str] = (),
        pooling: Literal["sum", "mean"] = "sum",
        state_elements: int | None = None,
        device: torch.device | str = "cpu",
        half_life: float = 1_000.0,
    ) -> None:
        super().__init__()
        check_tables(tables, multi_hot)
        self.configs, self.pooling = tuple(tables), pooling
        self.embedding_dim = dim = tables[0].embedding_dim
        self.out_dtype: torch.dtype | None = None
        rows = [table.num_embeddings for table in tables]
        weight = empty_table(sum(rows), dim)
        for config, part in zip(tables, weight.split(rows), strict=True):
            initialise(part, config)
        self._budget = budget_bytes
        self._row_bytes = row_bytes(dim, 2 * dim if state_elements is None else state_elements)
        slots = budget_bytes // self._row_bytes
        self.cache = RowCache(rows, weight, slots, torch.device(device), half_life)
        self.weight = self.cache.weight
        self.card = Table(self.weight, "rows on the card")
        order = {table.name: number for number, table in enumerate(tables)}
        many = set(multi_hot)
        self._one_hot = [order[table.name] for table in tables if table.name not in many]
        self._multi_hot = [order[table.name] for table in tables if table.name in many]
        self.table_of = {
            table.name: HostTable(table.name, self.cache, number, self._measure) for number, table in enumerate(tables)
        }
        self.one_hot = Site([self.card] * len(self._one_hot))
        self.bags = Site([self.card] * len(self._multi_hot))
        self._optimizer: Any = None
        self._states: tuple[str, ...] = ()  # the optimizer's
        self._ahead: tuple[Tensor, Sequence[BagLike], int] | None = None

    @property
    def one_hot_names(self) -> list[str]:
        """Names of the tables read by one id a sample, in the order of the id columns."""
        return [self.configs[number].name for number in self._one_hot]

    @property
    def multi_hot_names(self) -> list[str]:
        """Names of the tables read by bags, in the order of the bags."""
        return [self.configs[number].name for number in self._multi_hot]

    @property
    def bytes(self) -> BusBytes:
        """What crossed the bus so far."""
        return self.cache.bytes

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Has the optimizer's state of rows come and go with them; once, before training.

        Raises:
            ConfigError: The optimizer is not one of ``slipstream.optim``, or does not have the rows' parameter.
        """
        prepare = getattr(optimizer, "new_row_state", None)
        if prepare is None or not any(p is self.weight for g in optimizer.param_groups for p in g["params"]):
            raise ConfigError(
                "a cached collection needs an optimizer of slipstream.optim that has its weight",
                remedy="make it from model.parameters() and attach it before the first step",
            )
        self._optimizer = optimizer
        for name, state in prepare(self.weight).items():
            if isinstance(state, Tensor):
                self.cache.add_state(name, state)
        self._states = tuple(self.cache.state_names)
        self.cache.steps_done = self._steps_done
        optimizer.register_step_pre_hook(self._before_step)
        everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        place = next(i for i, parameter in enumerate(everything) if parameter is self.weight)
        first = (getattr(optimizer, "gate_seed", 0) << _GROUP_SEEDS) + place
        self.cache.seeds = tuple(first + number for number in range(len(self.configs)))

    def look_ahead(self, ids: Tensor, bags: Sequence[BagLike] = (), *, same_step: bool = False) -> None:
        """Names the lookups that follow the next forward pass, so that their rows come while the card computes.

        Args:
            ids: As for :meth:`forward`.
            bags: As for :meth:`forward`.
            same_step: They belong to the same optimizer step as the next forward pass.
        """
        self._ahead = (ids, bags, 0 if same_step else 1)

    def resident(self, ids: Tensor, bags: Sequence[BagLike] = ()) -> Tensor:
        """For each of B samples whether all of its rows are on the card, bool [B]."""
        found = np.ones(len(ids), np.bool_)
        for column, number in enumerate(self._one_hot):
            found &= self.cache.resident(self.cache.keys(number, ids[:, column]))
        for bag, number in zip(bags, self._multi_hot, strict=True):
            missing = np.concatenate([[0], np.cumsum(~self.cache.resident(self.cache.keys(number, bag.values)))])
            found &= np.diff(missing[bag.offsets.numpy()]) == 0
        return torch.from_numpy(found)

    def forward(self, ids: Tensor, bags: Sequence[BagLike] = ()) -> Tensor:
        """See :meth:`EmbeddingCollection.forward`; ids and bags in host memory, the rows on the card.

        Raises:
            ConfigError: The batch has more distinct rows than the card holds.
            IndexOutOfRange: An id is outside its table.
        """
        if ids.shape[1] != len(self._one_hot) or len(bags) != len(self._multi_hot):
            raise ConfigError(
                f"got ids of shape {tuple(ids.shape)} and {len(bags)} bags for "
                f"{len(self._one_hot)} one-hot and {len(self._multi_hot)} multi-hot tables"
            )
        if not torch.is_grad_enabled():
            return self._read(ids, bags)
        step = self._next_step()
        keys = self._keys(ids, bags)
        found = self.cache.place(keys, step)
        self._shut(found)
        self._tell(ids, bags, found.slots)
        device = self.cache.device
        placed = to_card(torch.from_numpy(found.slots), device)
        parts: list[Tensor] = []
        size = len(ids)
        if self._one_hot:
            chosen = placed[: size * len(self._one_hot)].view(len(self._one_hot), size).t()
            weights = [self.weight] * len(self._one_hot)
            parts.append(look_up(self.one_hot, weights, chosen, out_dtype=self.out_dtype))
        if bags:
            starts, total = [], 0
            for bag in bags:
                starts.append(bag.offsets[:-1] + total)
                total += len(bag.values)
            offsets = to_card(torch.cat([*starts, bags[0].offsets.new_full((1,), total)]), device)
            parts.append(
                look_up(
                    self.bags,
                    [self.weight] * len(bags),
                    placed[size * len(self._one_hot) :],
                    offsets,
                    mean=self.pooling == "mean",
                    out_dtype=self.out_dtype,
                )
            )
        if self._ahead is not None:
            (ids, bags, later), self._ahead = self._ahead, None
            self.cache.prefetch(self._keys(ids, bags), step + later)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def skip_step(self) -> None:
        """To be called where no optimizer step will follow the forward passes since the last one.

        Their rows are kept on the card for it, and would take its room: a loop that leaves steps out, as
        ``torch.amp.GradScaler`` does where gradients overflow, would in the end find none.
        """
        self.cache.skip_step()

    def host_state(self) -> dict[str, dict[str, Tensor]]:
        """For each table its optimizer state in host memory, by name, brought up to date: views, [R, …].

        They may be written to as well, before anything else is asked of the collection: the rows on the card are
        fetched anew, those of a step under way before the optimizer takes it.
        """
        self.cache.flush()
        self.cache.forget()
        rows = [config.num_embeddings for config in self.configs]
        states = {name: self.cache.state(name).split(rows) for name in self._states}
        return {
            config.name: {name: parts[i] for name, parts in states.items()} for i, config in enumerate(self.configs)
        }

    def _keys(self, ids: Tensor, bags: Sequence[BagLike]) -> Keys:
        columns = [self.cache.keys(number, ids[:, column]) for column, number in enumerate(self._one_hot)]
        pooled = [self.cache.keys(number, bag.values) for number, bag in zip(self._multi_hot, bags, strict=True)]
        return np.concatenate([*columns, *pooled])

    def _read(self, ids: Tensor, bags: Sequence[BagLike]) -> Tensor:
        """The lookup in host memory, sent to the card."""
        self.cache.update("weight", self._keys(ids, bags))
        dtype = self.out_dtype or torch.float32
        rows = [config.num_embeddings for config in self.configs]
        tables = self.cache.host_weight.detach().split(rows)
        parts: list[Tensor] = []
        if self._one_hot:
            found = Lookups(ids, None, len(self._one_hot))
            parts.append(registry.pool([tables[number] for number in self._one_hot], found, dtype))
        for bag, number in zip(bags, self._multi_hot, strict=True):
            found = Lookups(bag.values, bag.offsets, 1, mean=self.pooling == "mean")
            parts.append(registry.pool([tables[number]], found, dtype))
        return torch.cat(parts, dim=1).to(self.cache.device)

    def _measure(self) -> None:
        """Has updates measure the rows, whose signals (and trails, where there are no moments) come and go with them.

        A signal's count of updates beyond 128 measured ones is drawn by a row's place on the card, not by its number.
        """
        if self.card.signal is not None:
            return
        has_moments = len(self._attached().row_state) == 2
        measured = self._row_bytes + SIGNAL_BYTES + (0 if has_moments else TRAIL_BYTES)
        self.cache.shrink(self._budget // measured)  # no row stays: those that are here came without
        self.weight.grad = self.card.gate = None
        self.cache.add_state("signal", self.card.measure().view(torch.int16), shared=True)
        if not has_moments:
            self.cache.add_state("trail", self.card.open_trail(), shared=True)

    def _attached(self) -> Any:
        if self._optimizer is None:
            raise ConfigError(
                "a cached collection is trained without its optimizer", remedy="call attach(optimizer) first"
            )
        return self._optimizer

    def _next_step(self) -> int:
        state = self._attached().state[self.weight]
        if any(state[name] is not self.cache.card_state(name) for name in self._states):
            raise ConfigError(
                "the optimizer's state of the rows on the card was replaced (by load_state_dict, say)",
                remedy="load an optimizer before it is attached, and the rows' state into host_state()",
            )
        return int(state["step"]) + 1

    def _before_step(self, *_: Any) -> None:
        self.cache.refresh()

    def _steps_done(self) -> int:
        return int(self._attached().state[self.weight]["step"])

    def _shut(self, found: Placed) -> None:
        """Sets the gates of the batch's rows on the card, drawn already by the rows' own numbers."""
        if self.cache.gate is None:
            self.card.gate = None
            return
        places, device = torch.from_numpy(found.rows), self.cache.device
        drawn = torch.from_numpy(np.where(found.is_open, OPEN, FROZEN).astype(np.uint8))
        self.card.open_gate().index_copy_(0, to_card(places, device), to_card(drawn, device))

    def _tell(self, ids: Tensor, bags: Sequence[BagLike], slots: npt.NDArray[np.int32]) -> None:
        """Counts lookups and skipped ones, and tells the listeners."""
        values = [*(ids[:, column] for column in range(len(self._one_hot))), *(bag.values for bag in bags)]
        begin = 0
        for number, mine in zip([*self._one_hot, *self._multi_hot], values, strict=True):
            table, end = self.table_of[self.configs[number].name], begin + mine.numel()
            table.lookups += mine.numel()
            if self.cache.gate is not None:
                table.skipped += int(np.count_nonzero(~self.cache.is_open(slots[begin:end])))
            begin = end
            for listener in table.listeners:
                listener(table, mine)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.cache.flush()
        rows = [config.num_embeddings for config in self.configs]
        for config, part in zip(self.configs, self.cache.host_weight.split(rows), strict=True):
            destination[f"{prefix}tables.{key_of(config.name)}.weight"] = part

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rows = [config.num_embeddings for config in self.configs]
        wanted: set[str] = set()
        self.cache.flush()
        for config, part in zip(self.configs, self.cache.host_weight.split(rows), strict=True):
            key = f"{prefix}tables.{key_of(config.name)}.weight"
            wanted.add(key)
            found = cast(Tensor | None, state_dict.get(key))
            if found is None:
                missing_keys.append(key)
            elif found.shape != part.shape:
                error_msgs.append(f"{key} has shape {tuple(found.shape)}, the table {tuple(part.shape)}")
            else:
                part.copy_(found)
        unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in wanted]
        self.cache.forget(state=False)

    def extra_repr(self) -> str:
        """Sizes."""
        total = sum(config.num_embeddings for config in self.configs)
        return f"{len(self.configs)} tables, {total:,} rows, {self.cache.slots:,} on {self.cache.device}"
