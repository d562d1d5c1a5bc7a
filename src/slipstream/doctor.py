"""Is this installation sound? Versions, what computes, and a self-check of the kernels against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from slipstream.kernels import reference, registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings
from slipstream.report.machine import describe_machine, spin_setting, versions
from slipstream.report.timing import summarise

ROWS, DIM, SAMPLES = 500, 16, 256
TOLERANCE = 1e-5
"""Largest difference from the reference: both add up at most a few hundred float32 numbers, in different orders."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        healthy: Whether it is as it should be; None where that is for the reader to judge.
        detail: What was found, and what to do about it.
    """

    name: str
    healthy: bool | None
    detail: str


def describe() -> dict[str, str]:
    """Versions, machine, kernel back end, threads, threading layer and spin setting."""
    machine = describe_machine()
    return {
        **versions(),
        "processor": machine.processor,
        "instructions": machine.instructions or "not known",
        "cores": str(machine.cores),
        "memory": f"{machine.memory_gib} GiB",
        "system": machine.system,
        "kernels, float32 on the CPU": registry.backend_name(torch.empty(0)),
        "GPU": _gpu(),
        "threads": str(torch.get_num_threads()),
        "threading layer": registry.threading_layer(),
        "spin": spin_setting() or "not set",
    }


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    return f"{torch.cuda.get_device_name()}, kernels {registry.backend_name(torch.empty(0, device='cuda'))}"


def compile_kernels() -> float:
    """Compile what the checks need (kept between processes); returns the seconds that took."""
    start = perf_counter()
    with torch.random.fork_rng(devices=[]):
        compare_pool()
        for rule in Rule:
            compare_update(rule)
    return perf_counter() - start


def self_check(seconds: float = 5.0) -> list[Finding]:
    """Compare the kernels with the reference on random input until the time is up, then measure how threads wait.

    Args:
        seconds: Time for the comparisons, in seconds; each is made at least once.
    """
    start, rounds = perf_counter(), 0
    worst_pool = worst_update = 0.0
    with torch.random.fork_rng(devices=[]):
        # The last second is for the checks after the loop.
        while rounds == 0 or perf_counter() - start < seconds - 1:
            torch.manual_seed(rounds)
            worst_pool = max(worst_pool, compare_pool())
            worst_update = max(worst_update, *(compare_update(rule) for rule in Rule if rule is not Rule.NORM))
            rounds += 1
        threads, waiting = same_for_any_threads(), spin()
    word = "comparison" if rounds == 1 else "comparisons"
    return [
        Finding("lookup", worst_pool <= TOLERANCE, f"{rounds} {word}, largest difference {worst_pool:.1e}"),
        Finding("row update", worst_update <= TOLERANCE, f"{rounds} {word}, largest difference {worst_update:.1e}"),
        Finding("threads", threads, "1 and 2 threads give " + ("the same bits" if threads else "different results")),
        waiting,
    ]


def spin() -> Finding:
    """Whether idle threads are kept from spinning, and what it costs kernels to take turns with matrix products."""
    alone, mixed = _turns()
    cost = f"kernels between matrix products take {mixed / alone:.2f}x their time alone"
    if spin_setting() is None:
        return Finding(
            "spin", False, f"{cost}; set GOMP_SPINCOUNT=1000 before Python starts, or trainings side by side"
        )
    return Finding("spin", True, f"{spin_setting()}; {cost}")


def _turns(rounds: int = 40) -> tuple[float, float]:
    """Median seconds of a lookup alone, and of one right after a matrix product."""
    table = torch.randn(100_000, 64)
    lookups = Lookups(torch.randint(0, 100_000, (2048, 8)), None, 8)
    matrix = torch.randn(512, 512)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for between in (False, True):
        for _ in range(rounds):
            if between:
                torch.mm(matrix, matrix)
            start = perf_counter()
            registry.pool([table] * 8, lookups)
            seconds[between].append(perf_counter() - start)
    return summarise(seconds[False])["p50"], summarise(seconds[True])["p50"]


def compare_pool() -> float:
    """Largest difference of a random lookup, one-hot and in bags, between the kernels and the reference."""
    weights = [torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)]
    return max(
        float((registry.pool(weights, lookups) - reference.pool(weights, lookups)).abs().max())
        for lookups in (_one_hot(), _bags())
    )


def compare_update(rule: Rule) -> float:
    """Largest difference, in weights and state, after two gated steps by the kernels and by the reference."""
    ours, theirs = _table(rule), _table(rule)
    for name in ("weight", "first", "second", "gate"):
        if (tensor := getattr(ours, name)) is not None:
            setattr(theirs, name, tensor.clone())
    for step, lookups in enumerate((_one_hot(), _bags()), start=1):
        gradients = [RowGradients(lookups, torch.randn(SAMPLES, 2, DIM), (0, 0))]
        # An eps this large keeps gradients that nearly cancel from turning rounding into whole steps.
        settings = UpdateSettings(rule, step, lr=0.05, eps=1e-3, beta1=0.9, beta2=0.999)
        registry.row_update([ours], gradients, settings)
        reference.row_update([theirs], gradients, settings)
    return max(_distance(getattr(ours, name), getattr(theirs, name)) for name in ("weight", "first", "second"))


def same_for_any_threads() -> bool:
    """Whether an update by one thread and by two leaves the same bits."""
    before = torch.get_num_threads()
    samples, outcomes = 8192, []
    ids, grad = torch.randint(0, ROWS, (samples, 2)), torch.randn(samples, 2, DIM)
    start = torch.randn(ROWS, DIM)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            table = TableState(start.clone(), first=torch.zeros(ROWS))
            settings = UpdateSettings(Rule.ROWWISE_ADAGRAD, lr=0.05, eps=1e-8)
            registry.row_update([table], [RowGradients(Lookups(ids, None, 2), grad, (0, 0))], settings)
            outcomes.append(table.weight)
    finally:
        torch.set_num_threads(before)
    return torch.equal(*outcomes)


def _distance(ours: Tensor | None, theirs: Tensor | None) -> float:
    if ours is None or theirs is None:
        return 0.0
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def _one_hot() -> Lookups:
    # Squared, so that some rows come many times.
    ids = (torch.rand(SAMPLES, 2).square() * ROWS).to(torch.int32)
    return Lookups(ids, None, 2)


def _bags() -> Lookups:
    lengths = torch.randint(0, 5, (2 * SAMPLES,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    return Lookups(torch.randint(0, ROWS, (total,)), offsets, 2, sample_weights=torch.rand(total), mean=True)


def _table(rule: Rule) -> TableState:
    first = {
        Rule.ADAGRAD: torch.zeros(ROWS, DIM),
        Rule.ADAM: torch.zeros(ROWS, DIM),
        Rule.ROWWISE_ADAGRAD: torch.zeros(ROWS),
    }
    gate = torch.randint(0, 256, (ROWS,), dtype=torch.uint8)
    second = torch.zeros(ROWS, DIM) if rule is Rule.ADAM else None
    return TableState(torch.randn(ROWS, DIM), first.get(rule), second, gate, seed=7)
