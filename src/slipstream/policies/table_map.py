"""Which table each id column and bag of the data is looked up in: found by asking the model.

Tables stand in the model in the order in which it was written, columns in that of the data: nothing says that the two
agree. So a few made-up inputs are passed through the model, no two columns of which are alike, and what reaches its
embedding modules tells which table each column belongs to.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.data.batch import Bag, Inputs
from slipstream.embedding import CachedEmbeddingCollection, Embedding, EmbeddingBag, EmbeddingCollection
from slipstream.errors import ConfigError
from slipstream.policies.base import Gated

_SAMPLES = 64
"""Made-up inputs: as many bits tell columns apart."""
_REMEDY = "use a model that reads every feature from a table of its own, or leave features out of the data"


class _Lookup(NamedTuple):
    """What reached a table."""

    values: Tensor
    lengths: Tensor | None
    """Of bags; None where each input had one id."""


def tables_of_inputs(name: str, tables: Mapping[str, Gated], model: nn.Module | None, inputs: Inputs) -> list[Gated]:
    """The table of each id column, then of each bag.

    Args:
        name: The policy's, for messages.
        tables: The model's, by parameter name.
        model: The model, whose ``forward`` takes :class:`~slipstream.data.batch.Inputs`.
        inputs: Some inputs of the data: whose ids are rows of the tables.

    Raises:
        ConfigError: There are not as many tables as columns and bags, or which belongs to which cannot be known; says
            why.
    """
    columns, bags = inputs.ids.shape[1], len(inputs.bags)
    if len(tables) != columns + bags or not tables:
        raise ConfigError(
            f"policy {name!r} needs one table for each of the {columns} id columns and {bags} bags; the model has "
            f"{len(tables)}",
            remedy=_REMEDY,
        )
    if len(tables) == 1:
        return list(tables.values())
    if model is None:
        raise ConfigError(
            f"policy {name!r} cannot know which table each column is looked up in without the model",
            remedy="train with a Skipper",
        )
    probe = _probe(inputs)
    wanted = [_Lookup(probe.ids[:, column], None) for column in range(columns)]
    wanted += [_Lookup(bag.values, bag.offsets.diff()) for bag in probe.bags]
    places: dict[str, list[int]] = {}
    seen = _lookups(model, probe)
    for parameter, table in tables.items():
        found = [lookup for key, lookup in seen if key is table]
        matches = [[place for place, other in enumerate(wanted) if _same(lookup, other)] for lookup in found]
        if not matches or not all(matches):
            how = "with ids that are no column of the data" if matches else "nowhere in the forward pass"
            raise ConfigError(f"policy {name!r}: table {parameter!r} is looked up {how}", remedy=_REMEDY)
        if any(match != matches[0] for match in matches):
            raise ConfigError(f"policy {name!r}: table {parameter!r} serves several columns", remedy=_REMEDY)
        places[parameter] = matches[0]
    return _assigned(name, tables, places)


def _assigned(name: str, tables: Mapping[str, Gated], places: Mapping[str, list[int]]) -> list[Gated]:
    """One table for each place; columns whose ids are all 0 so far look alike, and are told apart by elimination."""
    by_place: dict[int, Gated] = {match[0]: tables[key] for key, match in places.items() if len(match) == 1}
    for key, match in places.items():
        if len(match) == 1:
            if by_place[match[0]] is not tables[key]:
                raise ConfigError(f"policy {name!r}: two tables are looked up with column {match[0]}", remedy=_REMEDY)
            continue
        left = [place for place in match if place not in by_place]
        if len(left) != 1:
            raise ConfigError(
                f"policy {name!r}: cannot tell which of the columns {match} table {key!r} belongs to: row 0 is all "
                "that they hold",
                remedy="leave columns of one value out of the data",
            )
        by_place[left[0]] = tables[key]
    return [by_place[place] for place in range(len(tables))]


def _probe(inputs: Inputs) -> Inputs:
    """Inputs of which each column holds row 0 or another that occurs in it, by bits of its own."""
    draw = np.random.default_rng(0)

    def ids(values: Tensor, size: int) -> Tensor:
        most = int(values.max()) if values.numel() else 0
        bits = torch.from_numpy(draw.integers(0, 2, size))
        bits[0] = 1  # so that only a column of zeros is all 0
        return (bits * most).to(values.dtype)

    columns = [ids(inputs.ids[:, column], _SAMPLES) for column in range(inputs.ids.shape[1])]
    bags: list[Bag] = []
    for bag in inputs.bags:
        lengths = torch.from_numpy(draw.integers(0, 3, _SAMPLES))
        lengths[:2] = torch.tensor([1, 2])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        bags.append(Bag(ids(bag.values, int(offsets[-1])), offsets))
    together = torch.stack(columns, dim=1) if columns else inputs.ids.new_empty(_SAMPLES, 0)
    return Inputs(torch.zeros(_SAMPLES, inputs.dense.shape[1]), together, tuple(bags))


def _lookups(model: nn.Module, probe: Inputs) -> list[tuple[Gated, _Lookup]]:
    """What reaches each of our tables when the model predicts the probe; nothing of the training changes."""
    seen: list[tuple[Gated, _Lookup]] = []
    hooks = [
        module.register_forward_pre_hook(_watch(seen), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, Embedding | EmbeddingBag | EmbeddingCollection | CachedEmbeddingCollection)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(model):
            # forward, not __call__: a compiled model is kept for the batch size of the training.
            model.forward(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode for a while: running statistics stay as they are."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _watch(seen: list[tuple[Gated, _Lookup]]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if isinstance(module, EmbeddingCollection | CachedEmbeddingCollection):
            ids, bags = _arguments(("ids", "bags"), arguments, named)
            for place, name in enumerate(module.one_hot_names):
                seen.append((module.table_of[name], _Lookup(ids[:, place], None)))
            for bag, name in zip(bags or (), module.multi_hot_names, strict=True):
                seen.append((module.table_of[name], _Lookup(bag.values, bag.offsets.diff())))
        elif isinstance(module, Embedding | EmbeddingBag):
            ids, offsets = _arguments(("input", "offsets"), arguments, named)
            if offsets is None:  # ids [B], or [B, L]: each of L is looked at alone
                parts = ids.reshape(ids.shape[0], -1).unbind(1)
                seen.extend((module.table, _Lookup(part, None)) for part in parts)
            else:
                last = module.include_last_offset if isinstance(module, EmbeddingBag) else True
                ends = offsets if last else torch.cat([offsets, offsets.new_full((1,), ids.shape[0])])
                lengths = ends.diff()
                seen.append((module.table, _Lookup(ids, None if bool((lengths == 1).all()) else lengths)))

    return hook


def _arguments(names: tuple[str, str], given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    found = dict(zip(names, given, strict=False)) | named
    return found[names[0]], found.get(names[1])


def _same(one: _Lookup, other: _Lookup) -> bool:
    if (one.lengths is None) != (other.lengths is None) or one.values.numel() != other.values.numel():
        return False
    alike = bool((one.values.to(torch.int64) == other.values.to(torch.int64)).all())
    return alike and (one.lengths is None or other.lengths is None or torch.equal(one.lengths, other.lengths))
