"""Lookups drawn by their gradients: the CPU kernel against plain PyTorch, and both against what they promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends import load, needs_triton
from tests.kernels.test_threads import skewed
from torch import Tensor

from slipstream.kernels import cpu_sampling, reference, reference_sampling, registry
from slipstream.kernels.reference_sampling import Sampled, Sampling
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

ROWS = 40


def sampling(features: int, **changes: object) -> Sampling:
    generator = torch.Generator().manual_seed(5)
    popularity = [torch.rand(ROWS, generator=generator) * 100 for _ in range(features)]
    made = Sampling(popularity, 1.0, 0.8, 0.25, 1 / 64, 3, 7)
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def one_hot(batch: int, features: int, *, dtype: torch.dtype = torch.int32) -> Lookups:
    ids = torch.stack([skewed(ROWS, batch, f) for f in range(features)], dim=1) if batch else torch.empty(0, features)
    return Lookups(ids.to(dtype), None, features)


def bags(batch: int, features: int, *, mean: bool, weighted: bool, padding: int = -1) -> Lookups:
    lengths = torch.arange(batch * features) * 7 % 5
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = skewed(ROWS, int(lengths.sum()), batch)
    weights = torch.rand(len(ids), generator=torch.Generator().manual_seed(1)) - 0.5 if weighted else None
    return Lookups(ids, offsets, features, weights, mean, (padding,) * features)


def kept(sampled: Sampled, feature: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, samples, factors = reference.feature_lookups(sampled.lookups, feature)
    used = rows != sampled.lookups.padding_of(feature)
    return rows[used], samples[used], factors[used]


def compare(lookups: Lookups, grad: Tensor, how: Sampling) -> tuple[Sampled, Sampled]:
    """Draws both ways from equal counts; both must keep the same lookups with the same factors."""
    copies = {id(counts): None if counts is None else counts.clone() for counts in how.popularity}
    other = replace(how, popularity=[copies[id(counts)] for counts in how.popularity])
    ours, truth = (
        cpu_sampling.sample_lookups(lookups, grad, how),
        reference_sampling.sample_lookups(lookups, grad, other),
    )
    for mine, true in zip(how.popularity, other.popularity, strict=True):
        assert (mine is None) == (true is None)
        if mine is not None and true is not None:
            torch.testing.assert_close(mine, true)
    for feature in range(lookups.num_features):
        for mine, true in zip(kept(ours, feature), kept(truth, feature), strict=True):
            torch.testing.assert_close(mine, true, check_dtype=False)
    assert torch.equal(ours.dropped, truth.dropped)
    torch.testing.assert_close(ours.sums, truth.sums, equal_nan=True)
    return ours, truth


@given(
    batch=st.integers(0, 70),
    features=st.integers(1, 4),
    dim=st.sampled_from([1, 3, 16, 17, 64]),
    kind=st.sampled_from(["one hot", "int64", "not contiguous", "sum", "mean", "weighted", "padding"]),
    factor=st.sampled_from([0.0, 0.3, 2.0, float("inf")]),
    exponent=st.sampled_from([0.0, 0.25, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_the_cpu_draws_as_the_reference_does(
    batch: int, features: int, dim: int, kind: str, factor: float, exponent: float
) -> None:
    grad = torch.randn(batch, features, dim, generator=torch.Generator().manual_seed(2))
    if kind in ("one hot", "int64"):
        lookups = one_hot(batch, features, dtype=torch.int64 if kind == "int64" else torch.int32)
    elif kind == "not contiguous":
        ids = one_hot(batch, features).ids
        lookups = Lookups(ids.t().contiguous().t(), None, features)
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    else:
        lookups = bags(
            batch, features, mean=kind == "mean", weighted=kind == "weighted", padding=2 if kind == "padding" else -1
        )
    how = sampling(features, factor=factor, exponent=exponent)
    ours, _ = compare(lookups, grad, how)
    if factor == float("inf"):
        assert int(ours.dropped.sum()) == 0


def test_tables_that_features_share_and_tables_of_no_policy() -> None:
    how = sampling(4)
    shared = how.popularity[0]
    how = replace(how, popularity=[shared, None, shared, how.popularity[3]], factor=0.1)
    ours, _ = compare(one_hot(500, 4), torch.randn(500, 4, 8), how)
    assert int(ours.dropped[1]) == 0 and int(ours.dropped[0]) > 200 and int(ours.dropped[2]) > 200
    assert float(ours.sums[2]) == 1500


def test_threads_change_nothing(set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_sampling, "SMALL", 0)
    lookups, grad = one_hot(300, 4), torch.randn(300, 4, 16)
    found: list[list[Tensor]] = []
    for threads in (1, 3):
        set_threads(threads)
        ours = cpu_sampling.sample_lookups(lookups, grad, sampling(4))
        found.append([part for feature in range(4) for part in kept(ours, feature)])
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("lookups", [one_hot(200, 2), bags(200, 2, mean=True, weighted=True)], ids=["one hot", "bags"])
def test_what_is_kept_is_on_average_everything(lookups: Lookups) -> None:
    grad = torch.randn(200, 2, 4, generator=torch.Generator().manual_seed(3))
    grad[::2] *= 0.05
    gradient, draws = torch.zeros(ROWS, 4), 3_000
    for step in range(draws):
        drawn = registry.sample_lookups(lookups, grad, sampling(2, step=step, factor=1.0))
        gradient += reference.row_gradient_dense(
            [RowGradients(drawn.lookups, grad, (0, 0))], 0, torch.zeros(ROWS, 4), 1.0 / draws
        )
    whole = reference.row_gradient_dense([RowGradients(lookups, grad, (0, 0))], 0, torch.zeros(ROWS, 4), 1.0)
    torch.testing.assert_close(gradient, whole, rtol=0.05, atol=0.3)


def test_a_gradient_that_is_no_number_is_never_left_out() -> None:
    grad = torch.full((100, 1, 4), 1e-12)
    grad[10, 0, 1], grad[20, 0, 0] = torch.nan, torch.inf
    ours, _ = compare(one_hot(100, 1), grad, sampling(1))
    assert {10, 20} <= set(kept(ours, 0)[1].tolist()) and int(ours.dropped[0]) > 50


@pytest.mark.parametrize("gate", [None, "half"])
def test_an_update_of_drawn_lookups_equals_the_reference_s(gate: str | None) -> None:
    generator = torch.Generator().manual_seed(8)
    weight, first, second = torch.rand(3, ROWS, 16, generator=generator).unbind()
    gates = None if gate is None else (torch.arange(ROWS) * 37 % 256).to(torch.uint8)
    rule = UpdateSettings(Rule.ADAM, 3, 0.1, 0.05, 0.9, 0.99)
    lookups, grad = one_hot(400, 3), torch.randn(400, 3, 16, generator=generator)
    drawn = cpu_sampling.sample_lookups(lookups, grad, sampling(3, factor=0.2)).lookups
    results: list[TableState] = []
    for module in (registry, reference):
        table = TableState(weight.clone(), first.clone(), second.clone(), gates, seed=4)
        counts = module.row_update([table], [RowGradients(drawn, grad, (0, -1, 0))], rule)
        assert counts.lookups[0] == len(reference.feature_lookups(drawn, 0)[0]) + len(
            reference.feature_lookups(drawn, 2)[0]
        )
        results.append(table)
    torch.testing.assert_close(results[0].weight, results[1].weight, rtol=2e-5, atol=2e-6)


@needs_triton
@pytest.mark.parametrize("lookups", [one_hot(60, 2), bags(60, 2, mean=True, weighted=True)], ids=["one hot", "bags"])
def test_a_gpu_updates_from_what_was_drawn(lookups: Lookups) -> None:
    generator = torch.Generator().manual_seed(8)
    weight, first, second = torch.rand(3, ROWS, 16, generator=generator).unbind()
    grad = torch.randn(60, 2, 16, generator=generator)
    drawn = reference_sampling.sample_lookups(lookups, grad, sampling(2, factor=0.2))
    assert int(drawn.dropped.sum()) > 20
    rule = UpdateSettings(Rule.ADAM, 3, 0.1, 0.05, 0.9, 0.99)
    tables = [TableState(weight.clone(), first.clone(), second.clone()) for _ in range(2)]
    for kernels, table in zip((load("cuda"), reference), tables, strict=True):
        kernels.row_update([table], [RowGradients(drawn.lookups, grad, (0, 0))], rule)
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("kernels", [registry, reference], ids=["cpu", "reference"])
def test_nothing_is_drawn_from_bags_that_are_all_empty(kernels: ModuleType, batch: int) -> None:
    lookups = Lookups(torch.zeros(0, dtype=torch.long), torch.zeros(2 * batch + 1, dtype=torch.long), 2)
    grad = torch.ones(batch, 2, 4)
    nothing = RowGradients(registry.sample_lookups(lookups, grad, sampling(2)).lookups, grad, (0, 0))
    something = RowGradients(one_hot(3, 1), torch.ones(3, 1, 4), (1,))
    one, other = (TableState(torch.ones(ROWS, 4), torch.zeros(ROWS, 4)) for _ in range(2))
    for blocks in ([nothing], [nothing, something]):
        counts = kernels.row_update([one, other], blocks, UpdateSettings(Rule.ADAGRAD, 1, 0.1))
        assert counts.lookups[0] == counts.rows[0] == 0 and torch.equal(one.weight, torch.ones(ROWS, 4))
    assert not torch.equal(other.weight, torch.ones(ROWS, 4))
