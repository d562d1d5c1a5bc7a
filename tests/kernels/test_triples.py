"""Margins of triples of rows and the hardest candidate: the CPU kernels against the reference and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends import load, needs_triton
from torch import Tensor

from slipstream.errors import IndexOutOfRange, UnsupportedOption
from slipstream.kernels import cpu_triples, reference_triples, registry

DIMS = st.sampled_from([1, 2, 15, 16, 17, 33, 64, 100])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)  # the first example compiles
@given(count=st.sampled_from([0, 1, 31, 33, 3000]), dim=DIMS, seed=st.integers(0, 9), apart=st.booleans())
def test_margins_and_their_gradient(count: int, dim: int, seed: int, apart: bool) -> None:
    rows = torch.randn(count, 3, dim, generator=seeded(seed))
    rows = rows.transpose(0, 2).contiguous().transpose(0, 2) if apart else rows
    rows.requires_grad_()
    exact = rows.detach().double().requires_grad_()
    weights = torch.randn(count, generator=seeded(seed + 1))
    found, expected = registry.margins(rows), reference_triples.margins(exact)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    (of_rows,) = torch.autograd.grad(found, rows, weights)
    (of_exact,) = torch.autograd.grad(expected, exact, weights.double())
    torch.testing.assert_close(of_rows, of_exact.float())
    torch.testing.assert_close(reference_triples.margin_gradients(exact.detach(), weights.double()), of_exact)


@settings(deadline=None)
@given(
    count=st.sampled_from([0, 1, 31, 33, 1000]),
    candidates=st.integers(1, 9),
    dim=DIMS,
    tables=st.sampled_from([(1, 1), (3, 2), (500, 300)]),
    types=st.sampled_from([(torch.int32, torch.int32), (torch.int64, torch.int32), (torch.int32, torch.int64)]),
    seed=st.integers(0, 9),
    apart=st.booleans(),
)
def test_the_hardest_is_the_highest_score_and_of_equals_the_first(
    count: int,
    candidates: int,
    dim: int,
    tables: tuple[int, int],
    types: tuple[torch.dtype, torch.dtype],
    seed: int,
    apart: bool,
) -> None:
    # Small integers: sums are exact in any order, and many scores are equal.
    user, item = (torch.randint(-2, 3, (rows, dim), generator=seeded(seed + rows)).float() for rows in tables)
    users = torch.randint(0, tables[0], (count,), generator=seeded(seed)).to(types[0])
    items = torch.randint(0, tables[1], (count, candidates), generator=seeded(seed + 1)).to(types[1])
    if count:
        users[-1], items[-1, -1] = tables[0] - 1, tables[1] - 1
    if apart:
        users, items = users.repeat_interleave(2)[::2], items.t().contiguous().t()
    found = registry.hardest(user, item, users, items)
    assert found.dtype == torch.int64
    assert torch.equal(found, reference_triples.hardest(user, item, users, items))
    scores = (user[users.long(), None, :-1] * item[items.long(), :-1]).sum(2) + item[items.long(), -1]
    for row, mine, taken in zip(scores.tolist(), items.tolist(), found.tolist(), strict=True):
        assert taken == mine[row.index(max(row))]


def test_a_score_that_is_no_number_is_the_hardest() -> None:
    nan, inf = float("nan"), float("inf")
    item = torch.tensor([[0.0, 1.0], [0.0, nan], [0.0, -inf], [0.0, inf], [nan, 0.0]])
    user = torch.tensor([[1.0, 0.0], [nan, 0.0]])
    items = torch.tensor([[0, 1, 3], [1, 0, 4], [2, 2, 0], [3, 1, 0], [0, 4, 1], [0, 2, 3]])
    users = torch.tensor([0, 0, 0, 0, 0, 1])
    for hardest in (registry.hardest, reference_triples.hardest):
        assert hardest(user, item, users, items).tolist() == [1, 1, 0, 3, 4, 0]


@needs_triton
@settings(deadline=None, max_examples=12)
@given(
    count=st.sampled_from([0, 1, 70, 300]),
    candidates=st.integers(1, 5),
    dim=st.sampled_from([1, 2, 15, 16, 64, 300]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    types=st.sampled_from([(torch.int32, torch.int32), (torch.int64, torch.int32), (torch.int32, torch.int64)]),
    seed=st.integers(0, 9),
    odd=st.booleans(),
)
def test_on_a_gpu_the_hardest_is_that_of_the_reference(
    count: int,
    candidates: int,
    dim: int,
    dtype: torch.dtype,
    types: tuple[torch.dtype, torch.dtype],
    seed: int,
    odd: bool,
) -> None:
    user, item = (torch.randint(-2, 3, (rows, dim), generator=seeded(seed + rows)).to(dtype) for rows in (40, 60))
    if odd:
        user[3], item[5, 0], item[6, -1], item[7, -1] = float("nan"), float("nan"), float("inf"), -float("inf")
    users = torch.randint(0, 40, (count,), generator=seeded(seed)).to(types[0])
    items = torch.randint(0, 60, (count, candidates), generator=seeded(seed + 1)).to(types[1])
    found = load("cuda").hardest(user, item, users, items.t().contiguous().t())
    assert torch.equal(found, reference_triples.hardest(user, item, users, items))


@needs_triton
def test_on_a_gpu_ids_outside_their_table_are_noted() -> None:
    user, item = torch.zeros(15, 4)[5:10], torch.zeros(15, 4)[5:10]
    kernels = load("cuda")
    for bad in (-1, 5):
        with pytest.raises(IndexOutOfRange, match=f"feature 1: lookup 3 has id {bad}"):
            kernels.hardest(user, item, torch.tensor([0, 4]), torch.tensor([[0, 1], [2, bad]]))
        with pytest.raises(IndexOutOfRange, match=f"feature 0: lookup 1 has id {bad}"):
            kernels.hardest(user, item, torch.tensor([0, bad]), torch.tensor([[0, 1], [2, 3]]))


@settings(deadline=None)
@given(count=st.sampled_from([1, 33, 700]), candidates=st.sampled_from([1, 8, 40]), dim=DIMS, seed=st.integers(0, 9))
def test_the_hardest_of_any_numbers_is_that_of_the_reference_or_as_good(
    count: int, candidates: int, dim: int, seed: int
) -> None:
    user, item = (torch.randn(rows, dim, generator=seeded(seed + rows)) for rows in (300, 200))
    users = torch.randint(0, 300, (count,), generator=seeded(seed))
    items = torch.randint(0, 200, (count, candidates), generator=seeded(seed + 1))
    found, expected = (which.hardest(user, item, users, items) for which in (registry, reference_triples))

    def score(chosen: Tensor) -> Tensor:
        return (user[users, :-1].double() * item[chosen, :-1]).sum(1) + item[chosen, -1]

    assert bool((found[:, None] == items).any(1).all())
    # Both add in float32, in another order: scores that differ by the rounding alone may change places.
    torch.testing.assert_close(score(found), score(expected), rtol=0.0, atol=1e-6 * dim)
    assert int((found != expected).sum()) <= 1


def test_any_number_of_threads_gives_the_same_bits() -> None:
    rows, grad = torch.randn(5000, 3, 64), torch.randn(5000)
    user, item = torch.randn(50, 64), torch.randn(700, 64)
    users, items = torch.randint(0, 50, (5000,)), torch.randint(0, 700, (5000, 8))
    before, results = torch.get_num_threads(), list[tuple[Tensor, Tensor, Tensor]]()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = cpu_triples.margins(rows), cpu_triples.margin_gradients(rows, grad)
            results.append((*found, cpu_triples.hardest(user, item, users, items)))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, -(2**31)])
def test_ids_outside_their_table_are_named(bad: int) -> None:
    user, item = torch.zeros(15, 4)[5:10], torch.zeros(15, 4)[5:10]
    with pytest.raises(IndexOutOfRange, match=f"feature 1: lookup 3 has id {bad}"):
        registry.hardest(user, item, torch.tensor([0, 4]), torch.tensor([[0, 1], [2, bad]]))
    with pytest.raises(IndexOutOfRange, match=f"feature 0: lookup 1 has id {bad}"):
        registry.hardest(user, item, torch.tensor([0, bad]), torch.tensor([[0, 1], [2, 3]]))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    for rows in (torch.zeros(2, 2, 4), torch.zeros(2, 12), torch.zeros(2, 3, 0), torch.zeros(2, 3, 4).double()):
        with pytest.raises(UnsupportedOption, match="triples"):
            cpu_triples.margins(rows)
    with pytest.raises(UnsupportedOption, match="gradient"):
        cpu_triples.margin_gradients(torch.zeros(2, 3, 4), torch.zeros(3))
    table, users, items = torch.zeros(5, 4), torch.tensor([1, 2]), torch.tensor([[1], [2]])
    for arguments in (
        (table, torch.zeros(5, 3), users, items),
        (table, table.double(), users, items),
        (table.to("meta"), table, users, items),
        (table, table, users[:1], items),
        (table, table, users, items[:, :0]),
    ):
        with pytest.raises(UnsupportedOption):
            registry.hardest(*arguments)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    rows = torch.randn(3, 3, 5, requires_grad=True)
    (of_rows,) = torch.autograd.grad(registry.margins(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_rows.sum().backward()


def test_operators() -> None:
    rows = torch.randn(3, 3, 5, requires_grad=True)
    torch.library.opcheck(registry._margins, (rows,))
    torch.library.opcheck(registry._margin_gradients, (rows.detach(), torch.randn(3)))
