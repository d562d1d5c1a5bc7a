"""Hypothesis strategies for lookups at their most awkward, and copies of tables to run two back ends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

GATES = (0, 1, 128, 254, 255)
"""Frozen, almost frozen, one step in two, almost open, open."""


@dataclass
class Case:
    """Tables, the backward passes that reached them, and a rule."""

    tables: list[TableState]
    gradients: list[RowGradients]
    settings: UpdateSettings


def _ids(draw: st.DrawFn, rows: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Ids of several features one after another; the first and the last row often, so duplicates too."""
    out: list[int] = []
    for size, count in zip(rows, counts, strict=True):
        row = st.one_of(st.just(0), st.just(size - 1), st.integers(0, size - 1))
        out += draw(st.lists(row, min_size=count, max_size=count))
    return out


def eighths(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Multiples of 1/8 in [-2, 2]: their sums are exact in any order."""
    return torch.randint(-16, 17, shape, generator=generator) / 8


@st.composite
def lookups(draw: st.DrawFn, rows: Sequence[int], *, max_batch: int = 6) -> Lookups:
    """Lookups of one forward pass over features whose tables have ``rows`` rows."""
    features, batch = len(rows), draw(st.integers(0, max_batch))
    dtype = draw(st.sampled_from((torch.int32, torch.int64)))
    padding: tuple[int, ...] = ()
    if draw(st.booleans()):
        padding = tuple(draw(st.sampled_from((-1, 0, size - 1))) for size in rows)
    if draw(st.booleans()):  # one lookup a sample and feature
        ids = torch.tensor(_ids(draw, rows, [batch] * features), dtype=dtype).view(features, batch).t()
        layout = draw(st.sampled_from(("transposed", "contiguous", "strided")))
        if layout == "contiguous":
            ids = ids.contiguous()
        elif layout == "strided":
            ids = ids.repeat_interleave(2, dim=0).repeat_interleave(3, dim=1)[::2, ::3]
        return Lookups(ids, None, features, padding=padding)
    all_empty = draw(st.booleans()) and draw(st.booleans())
    lengths = [0 if all_empty else draw(st.sampled_from((0, 0, 1, 2, 5))) for _ in range(features * batch)]
    counts = [sum(lengths[f * batch : (f + 1) * batch]) for f in range(features)]
    ids = torch.tensor(_ids(draw, rows, counts), dtype=dtype)
    if draw(st.booleans()):
        ids = ids.repeat_interleave(2)[::2]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(draw(st.sampled_from((torch.int32, torch.int64))))
    kind = draw(st.sampled_from(("sum", "mean", "weighted")))
    weights = None
    if kind == "weighted":
        weights = torch.tensor(
            draw(st.lists(st.sampled_from((-1.0, 0.0, 0.25, 3.0)), min_size=len(ids), max_size=len(ids)))
        )
    return Lookups(ids, offsets, features, weights, kind == "mean", padding)


def _gradient(shape: tuple[int, int, int], layout: str, generator: torch.Generator) -> Tensor:
    size, features, dim = shape
    if layout == "features first":
        return eighths((features, size, dim), generator).transpose(0, 1)
    if layout == "elements first":
        return eighths((dim, size, features), generator).permute(1, 2, 0)
    if layout == "expanded":
        return eighths((1, 1, dim), generator).expand(shape)
    return eighths(shape, generator)


@st.composite
def settings_of(draw: st.DrawFn, rule: Rule) -> UpdateSettings:
    """A rule with its settings; eps is large: a sum that is zero in one order and 1e-9 in another must make no step."""
    decay = draw(st.sampled_from((0.0, 0.0, 0.1)))
    beta1 = draw(st.sampled_from((0.0, 0.9))) if rule == Rule.SGD else 0.9
    step = draw(st.sampled_from((1, 2, 50)))
    return UpdateSettings(
        rule, step, 0.1, 0.05, beta1, 0.99, decay, decoupled=rule == Rule.ADAM and draw(st.booleans())
    )


@st.composite
def cases(draw: st.DrawFn, rule: Rule, dim: int) -> Case:
    """One to three tables of rows of ``dim`` elements, none to three backward passes over them, gates of every kind."""
    settings = draw(settings_of(rule))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    sizes = draw(st.lists(st.sampled_from((1, 2, 7, 40)), min_size=1, max_size=3))
    tables = []
    for size in sizes:
        table = TableState(
            torch.randn(size, dim, generator=generator),
            scale=draw(st.sampled_from((1.0, 0.5))),
            seed=draw(st.sampled_from((0, 7, 2**63 + 1))),
        )
        shape = (size,) if rule == Rule.ROWWISE_ADAGRAD else (size, dim)
        if rule > Rule.SGD or (rule == Rule.SGD and settings.beta1):
            table.first = torch.rand(shape, generator=generator)
        if rule == Rule.ADAM:
            table.second = torch.rand(shape, generator=generator)
        if draw(st.booleans()):
            table.gate = torch.tensor(
                draw(st.lists(st.sampled_from(GATES), min_size=size, max_size=size)), dtype=torch.uint8
            )
            table.by_sample = draw(st.booleans())
        if rule != Rule.NORM and draw(st.booleans()):
            table.last_step = torch.randint(0, settings.step, (size,), generator=generator, dtype=torch.int32)
        tables.append(table)
    gradients = []
    for _ in range(draw(st.integers(0, 3))):
        reads = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=4))
        block = draw(lookups([sizes[table] for table in reads]))
        layout = draw(st.sampled_from(("contiguous", "features first", "elements first", "expanded")))
        grad = _gradient((block.batch_size, len(reads), dim), layout, generator)
        targets = tuple(table if draw(st.integers(0, 5)) else -1 for table in reads)
        gradients.append(RowGradients(block, grad, targets))
    return Case(tables, gradients, settings)


def copies(tables: Sequence[TableState]) -> list[TableState]:
    """Tables whose weights and state are copies; gates are shared."""

    def clone(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.clone()

    return [
        replace(t, weight=t.weight.clone(), first=clone(t.first), second=clone(t.second), last_step=clone(t.last_step))
        for t in tables
    ]


def written(table: TableState) -> dict[str, Tensor]:
    """What an update may write."""
    parts = {"weight": table.weight, "first": table.first, "second": table.second, "last_step": table.last_step}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}
