"""Several tables of one row size, looked up in one kernel call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from slipstream.embedding.memory import empty_table
from slipstream.embedding.operators import look_up
from slipstream.embedding.table import Site, Table
from slipstream.errors import ConfigError


class TableConfig(NamedTuple):
    """A table of a collection.

    Attributes:
        name: Its name, without dots, and its key in the ``state_dict``: ``tables.<name>.weight``; an underscore follows
            where torch's modules have an attribute of that name (``type``, ``float``).
        num_embeddings: Rows, R.
        embedding_dim: Elements of a row, D; the same for all tables of a collection.
        init: ``uniform`` (in ±1/sqrt(R), as DLRM does) or ``normal`` (with ``init_std``).
        init_std: Standard deviation for ``normal``.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: Literal["uniform", "normal"] = "uniform"
    init_std: float = 0.01


class BagLike(Protocol):
    """A multi-hot feature of B samples: ``values`` [N] and ``offsets`` [B + 1]."""

    @property
    def values(self) -> Tensor:
        """Rows, integers [N]."""
        ...

    @property
    def offsets(self) -> Tensor:
        """Integers [B + 1]."""
        ...


def initialise(weight: Tensor, config: TableConfig, generator: torch.Generator | None = None) -> None:
    """Fill a table [R, D] as its configuration says, in place."""
    with torch.no_grad():
        if config.init == "uniform":
            bound = 1.0 / math.sqrt(config.num_embeddings)
            weight.uniform_(-bound, bound, generator=generator)
        elif weight.device.type != "meta":  # there torch would import its compiler: 125 MB
            weight.normal_(0.0, config.init_std, generator=generator)


class _Weight(nn.Module):
    """Holds one table's parameter, so that its key is ``<name>.weight``."""

    def __init__(self, weight: Tensor, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.table = Table(self.weight, name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and isinstance(value, nn.Parameter) and "table" in self.__dict__:
            self.table = Site.give(self.table, value)  # load_state_dict(assign=True), tying


class _Modules(nn.Module):
    """Modules by table name. ``nn.ModuleDict`` refuses names of its attributes, among them ``type`` and ``items``."""

    def __init__(self) -> None:
        super().__init__()
        self.keys_by_name: dict[str, str] = {}

    def add(self, name: str, module: nn.Module) -> None:
        """Register a module under its table's name."""
        key = key_of(name)
        self.add_module(key, module)
        self.keys_by_name[name] = key

    def __getitem__(self, name: str) -> Any:
        """The module of a table."""
        return self._modules[self.keys_by_name[name]]

    def __iter__(self) -> Iterator[str]:
        """The tables' names."""
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.keys_by_name)


def key_of(name: str) -> str:
    """What stands for a table's name in the keys of a ``state_dict``."""
    # A column `type_` beside `type` gets one more underscore too, so that no two names meet.
    return f"{name}_" if name.rstrip("_") in _TAKEN else name


_TAKEN = frozenset(name.rstrip("_") for name in dir(_Modules()))


def check_tables(tables: Sequence[TableConfig], multi_hot: Sequence[str]) -> None:
    """Raise ConfigError unless names are unique and without dots, sizes positive and rows of one size."""
    names = [table.name for table in tables]
    if not tables:
        raise ConfigError("an EmbeddingCollection needs at least one table")
    if len(set(names)) != len(names):
        raise ConfigError(f"table names must be unique, got {names}")
    if dotted := [name for name in names if not name or "." in name]:
        raise ConfigError(f"table names {dotted}", remedy="use names with at least one character and no dot")
    if unknown := sorted(set(multi_hot) - set(names)):
        raise ConfigError(f"multi_hot names unknown tables {unknown}", remedy=f"use names of {names}")
    for table in tables:
        if not 0 < table.num_embeddings <= 2**31 or table.embedding_dim < 1:
            raise ConfigError(
                f"table {table.name!r}: {table.num_embeddings} rows of {table.embedding_dim} elements",
                remedy="use 1 to 2^31 rows and at least 1 element",
            )
    if len({table.embedding_dim for table in tables}) != 1:
        raise ConfigError("all tables of a collection have rows of one size", remedy="make a collection for each size")


class EmbeddingCollection(nn.Module):
    """Several tables of one row size D, looked up in one kernel call.

    The one-hot tables come first in the result, in the order of ``tables``, then the multi-hot ones. ``state_dict``
    keys are ``tables.<name>.weight`` (see :class:`TableConfig`).

    Example:
        >>> collection = EmbeddingCollection([TableConfig("user", 100, 8), TableConfig("item", 50, 8)])
        >>> collection(torch.tensor([[1, 2], [3, 4], [5, 6]])).shape
        torch.Size([3, 2, 8])

    Args:
        tables: The tables.
        multi_hot: Names of those that are read by bags.
        pooling: ``sum`` or ``mean`` over a bag.
        weights: Ready-made weights by name (float32 [R, D], memory-mapped ones for example) instead of initialised
            ones.
        device: Where new tables are made.

    Raises:
        ConfigError: Tables that make no sense together.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        multi_hot: Sequence[str] = (),
        pooling: Literal["sum", "mean"] = "sum",
        weights: dict[str, Tensor] | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        check_tables(tables, multi_hot)
        self.configs = tuple(tables)
        self.pooling = pooling
        self.embedding_dim = tables[0].embedding_dim
        self.out_dtype: torch.dtype | None = None
        self.one_hot_names = tuple(table.name for table in tables if table.name not in set(multi_hot))
        self.multi_hot_names = tuple(table.name for table in tables if table.name in set(multi_hot))
        self.tables = _Modules()
        for config in tables:
            weight = (weights or {}).get(config.name)
            if weight is None:
                weight = empty_table(config.num_embeddings, config.embedding_dim, device)
                initialise(weight, config)
            elif weight.shape != (config.num_embeddings, config.embedding_dim):
                raise ConfigError(
                    f"weights of table {config.name!r} have shape {tuple(weight.shape)}, "
                    f"expected {(config.num_embeddings, config.embedding_dim)}"
                )
            self.tables.add(config.name, _Weight(weight, config.name))
        # The dictionaries: functional_call and others put parameters straight into them, and nn.Module's own attribute
        # look-up costs more than the lookup of a row.
        self._one_hot_weights = [self.tables[name]._parameters for name in self.one_hot_names]
        self._multi_hot_weights = [self.tables[name]._parameters for name in self.multi_hot_names]
        self.one_hot = Site([self.tables[name].table for name in self.one_hot_names])
        self.bags = Site([self.tables[name].table for name in self.multi_hot_names])
        self._gathered: dict[tuple[str, ...], Site] = {}

    @property
    def table_of(self) -> dict[str, Table]:
        """The tables by name; tied ones are one."""
        of = dict(zip(self.one_hot_names + self.multi_hot_names, self.one_hot.tables + self.bags.tables, strict=True))
        return {name: of[name] for name in self.tables}

    def forward(self, ids: Tensor, bags: Sequence[BagLike] = ()) -> Tensor:
        """Rows of the one-hot features and pooled rows of the multi-hot ones, [B, F + len(bags), D].

        Args:
            ids: int32 or int64 [B, F], a column for each one-hot table.
            bags: For each multi-hot table ``values`` [N] and ``offsets`` [B + 1].

        Raises:
            ConfigError: The number of columns or of bags is not that of the tables.
            IndexOutOfRange: An id is outside its table.
        """
        if ids.dim() != 2 or ids.shape[1] != len(self.one_hot_names) or len(bags) != len(self.multi_hot_names):
            raise ConfigError(
                f"got ids of shape {tuple(ids.shape)} and {len(bags)} bags for "
                f"{len(self.one_hot_names)} one-hot and {len(self.multi_hot_names)} multi-hot tables"
            )
        if bags and any(bag.offsets.shape[0] != ids.shape[0] + 1 for bag in bags):
            raise ConfigError(
                f"{ids.shape[0]} samples, but bags with {[bag.offsets.shape[0] for bag in bags]} offsets",
                remedy="give every bag one more offset than there are samples",
            )
        parts: list[Tensor] = []
        if self.one_hot_names:
            weights = [parameters["weight"] for parameters in self._one_hot_weights]
            parts.append(look_up(self.one_hot, weights, ids, out_dtype=self.out_dtype))
        if bags:
            parts.append(self._pooled(bags))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def gather(self, names: Sequence[str], ids: Tensor) -> Tensor:
        """Rows of tables that may be named several times, [B, N, D]: a user's, for example, and those of two items.

        Args:
            names: N tables.
            ids: int32 or int64 [B, N], a column for each name.

        Raises:
            ConfigError: There is no such table, or the number of columns is not that of the names.
            IndexOutOfRange: An id is outside its table.
        """
        names = tuple(names)
        if unknown := [name for name in names if name not in self.tables.keys_by_name]:
            raise ConfigError(f"there are no tables {unknown}", remedy=f"use names of {list(self.tables)}")
        if ids.dim() != 2 or ids.shape[1] != len(names):
            raise ConfigError(f"got ids of shape {tuple(ids.shape)} for {len(names)} tables")
        if names not in self._gathered:
            table_of = self.table_of
            self._gathered[names] = Site([table_of[name] for name in names])
        weights = [self.tables[name].weight for name in names]
        return look_up(self._gathered[names], weights, ids, out_dtype=self.out_dtype)

    def _pooled(self, bags: Sequence[BagLike]) -> Tensor:
        mean = self.pooling == "mean"
        weights = [parameters["weight"] for parameters in self._multi_hot_weights]
        if len(bags) == 1:
            values, offsets = bags[0].values, bags[0].offsets
        else:
            values = torch.cat([bag.values for bag in bags])
            starts = [0]
            for bag in bags:
                starts.append(starts[-1] + bag.values.shape[0])
            joined = [bag.offsets[:-1] + start for bag, start in zip(bags, starts, strict=False)]
            offsets = torch.cat([*joined, bags[0].offsets.new_full((1,), starts[-1])])
        return look_up(self.bags, weights, values, offsets, mean=mean, out_dtype=self.out_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        for name, table in self.table_of.items():
            table.moved(self.tables[name].weight, fn)
        for site in (self.one_hot, self.bags, *self._gathered.values()):
            site.place_tokens()
        return result

    def extra_repr(self) -> str:
        """Sizes."""
        rows = sum(config.num_embeddings for config in self.configs)
        return f"{len(self.configs)} tables, {rows:,} rows, embedding_dim={self.embedding_dim}, pooling={self.pooling}"


class PlainEmbeddingCollection(nn.Module):
    """The baseline: the same tables, interface and ``state_dict`` keys over ``torch.nn.EmbeddingBag``.

    Args:
        tables: The tables.
        multi_hot: Names of those that are read by bags.
        pooling: ``sum`` or ``mean``.
        sparse: Sparse (COO) gradients, as facebookresearch/dlrm trains.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        multi_hot: Sequence[str] = (),
        pooling: Literal["sum", "mean"] = "sum",
        sparse: bool = True,
    ) -> None:
        super().__init__()
        check_tables(tables, multi_hot)
        self.configs = tuple(tables)
        self.embedding_dim = tables[0].embedding_dim
        self.one_hot_names = tuple(table.name for table in tables if table.name not in set(multi_hot))
        self.multi_hot_names = tuple(table.name for table in tables if table.name in set(multi_hot))
        self.tables = _Modules()
        for config in tables:
            weight = empty_table(config.num_embeddings, config.embedding_dim)
            initialise(weight, config)
            module = nn.EmbeddingBag.from_pretrained(
                weight, freeze=False, mode=pooling, sparse=sparse, include_last_offset=True
            )
            self.tables.add(config.name, module)

    def forward(self, ids: Tensor, bags: Sequence[BagLike] = ()) -> Tensor:
        """See :meth:`EmbeddingCollection.forward`."""
        parts = [self._rows(name, ids[:, f]) for f, name in enumerate(self.one_hot_names)] + [
            self.tables[name](bag.values, bag.offsets.to(bag.values.dtype))
            for name, bag in zip(self.multi_hot_names, bags, strict=True)
        ]
        return torch.stack(parts, dim=1)

    def gather(self, names: Sequence[str], ids: Tensor) -> Tensor:
        """See :meth:`EmbeddingCollection.gather`."""
        parts: list[Tensor] = [ids.new_empty(0)] * len(names)
        for name in dict.fromkeys(names):
            places = [place for place, other in enumerate(names) if other == name]
            rows = self._rows(name, ids[:, places].t().reshape(-1))
            for place, part in zip(places, rows.chunk(len(places)), strict=True):
                parts[place] = part
        return torch.stack(parts, dim=1)

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        """A table's rows [N, D] of ids [N]."""
        offsets = torch.arange(ids.shape[0] + 1, dtype=ids.dtype, device=ids.device)
        return self.tables[name](ids.contiguous(), offsets)
