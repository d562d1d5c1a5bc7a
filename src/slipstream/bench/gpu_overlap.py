"""How much of the input copies' time a GPU computes meanwhile, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 8

Span = tuple[float, float]
"""Begin and end."""


def overlap(step: Callable[[int], object]) -> tuple[float, float]:
    """Share of the time of copies to the card in which kernels run, and microseconds of such copies a step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for number in range(STEPS):
            step(number)
        torch.cuda.synchronize()
    # Named ranges (an optimizer's step, a compiled region) stand among the card's events, and are no kernels.
    events: list[Any] = [e for e in found.events() or () if e.device_type.name == "CUDA" and not e.is_user_annotation]
    copies = [(e.time_range.start, e.time_range.end) for e in events if "HtoD" in e.name]
    kernels = [(e.time_range.start, e.time_range.end) for e in events if not e.name.startswith(("Memcpy", "Memset"))]
    length = sum(end - begin for begin, end in merged(copies))
    return covered(copies, kernels) / length if length else 0.0, length / STEPS


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not touch, in order, that cover the same."""
    out: list[Span] = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((begin, end))
    return out


def covered(spans: Sequence[Span], by: Sequence[Span]) -> float:
    """Length of what lies in both."""
    total, others, at = 0.0, merged(by), 0
    for begin, end in merged(spans):
        while at < len(others) and others[at][1] <= begin:
            at += 1
        for other in others[at:]:
            if other[0] >= end:
                break
            total += min(end, other[1]) - max(begin, other[0])
    return total
