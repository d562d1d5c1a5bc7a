"""The GPU kernels against the reference, before anything is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.kernels import reference, registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

ROWS, DIM, SAMPLES = 500, 16, 4096


def largest_differences(device: torch.device) -> dict[str, float]:
    """Largest difference of lookups and of each rule's weights after two gated steps, relative above 1."""
    draw = torch.Generator().manual_seed(0)
    ids = (torch.rand(SAMPLES, 2, generator=draw).square() * ROWS).to(torch.int32)
    lengths = torch.randint(0, 5, (2 * SAMPLES,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.randint(0, ROWS, (int(offsets[-1]),), generator=draw)
    factors = torch.rand(len(values), generator=draw)
    found = [
        Lookups(ids.to(device), None, 2),
        Lookups(values.to(device), offsets.to(device), 2, factors.to(device)),
        Lookups(values.to(device), offsets.to(device), 2, mean=True),
    ]
    weights = [torch.randn(ROWS, DIM, generator=draw).to(device) for _ in range(2)]
    differences = {"lookup": max(_apart(registry.pool(weights, f), reference.pool(weights, f)) for f in found)}
    for rule in Rule:
        if rule == Rule.NORM:
            continue
        ours, theirs = _table(rule, device), _table(rule, device)
        for step, lookups in enumerate(found, start=1):
            grad = torch.randn(SAMPLES, 2, DIM, generator=draw).to(device)
            settings = UpdateSettings(rule, step, lr=0.05, eps=1e-3, beta1=0.9, beta2=0.999)
            for back_end, table in ((registry, ours), (reference, theirs)):
                back_end.row_update([table], [RowGradients(lookups, grad, (0, 0))], settings)
        differences[rule.name.lower()] = _apart(ours.weight, theirs.weight)
    registry.check_errors()
    return {f"largest difference, {name}": value for name, value in differences.items()}


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def _table(rule: Rule, device: torch.device) -> TableState:
    draw = torch.Generator().manual_seed(1)
    first = {
        Rule.ADAGRAD: torch.zeros(ROWS, DIM, device=device),
        Rule.ADAM: torch.zeros(ROWS, DIM, device=device),
        Rule.ROWWISE_ADAGRAD: torch.zeros(ROWS, device=device),
    }
    gate = torch.randint(0, 256, (ROWS,), dtype=torch.uint8, generator=draw).to(device)
    second = torch.zeros(ROWS, DIM, device=device) if rule is Rule.ADAM else None
    weight = torch.randn(ROWS, DIM, generator=draw).to(device)
    return TableState(weight, first.get(rule), second, gate, seed=7)
