"""The CPU's and the GPU's kernels against the reference, over awkward indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends import BACK_ENDS, for_each_back_end, load
from tests.interpreter import ON_GPU
from tests.properties.cases import Case, cases, copies, eighths, lookups, written

from slipstream.kernels import hashing, reference
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

# Rows of 3 and 20 elements share one kernel of variable length, 4, 16 and 64 have their own.
POOL_DIMS = (1, 3, 4, 16, 20, 64)
UPDATE_DIMS = (3, 16)
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@for_each_back_end(examples=150, interpreted=30)
def test_pool_equals_the_reference(kernels: Any, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from((1, 2, 7, 40)), min_size=1, max_size=3))
    found = data.draw(lookups(sizes))
    dim = data.draw(st.sampled_from(POOL_DIMS))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16)))
    generator = torch.Generator().manual_seed(0)
    weights = [eighths((size, dim), generator) for size in sizes]
    ours, truth = kernels.pool(weights, found, dtype), reference.pool(weights, found, dtype)
    assert ours.dtype == dtype and ours.shape == (found.batch_size, len(sizes), dim)
    # Triton's interpreter does not round half to even, as a GPU does.
    to_even = dtype == torch.float32 or ON_GPU or kernels is load("cpu")
    if found.mean or not to_even:  # division rounds differently, too, by one unit in the last place at most
        torch.testing.assert_close(ours, truth, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)
    else:
        assert torch.equal(ours, truth)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3.4e38, 1.00390625]
)
@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_bf16_output_rounds_as_torch(value: float, kernels: str) -> None:
    if kernels == "cuda" and not ON_GPU and value in (1e-40, 3.4e38):
        pytest.skip("Triton's interpreter rounds these otherwise than a GPU")
    weight = torch.full((2, 3), value)
    found = Lookups(torch.tensor([[1]]), None, 1)
    torch.testing.assert_close(
        load(kernels).pool([weight], found, torch.bfloat16)[0, 0], weight[1].bfloat16(), rtol=0, atol=0, equal_nan=True
    )


def agree(kernels: Any, case: Case) -> None:
    ours, truth = copies(case.tables), copies(case.tables)
    our_counts = kernels.row_update(ours, case.gradients, case.settings)
    true_counts = reference.row_update(truth, case.gradients, case.settings)
    assert our_counts.lookups == true_counts.lookups
    assert our_counts.skipped == true_counts.skipped
    assert our_counts.rows == true_counts.rows
    assert our_counts.squared_norm == pytest.approx(true_counts.squared_norm, rel=1e-5, abs=1e-9)
    for before, mine, true in zip(case.tables, ours, truth, strict=True):
        for name, value in written(mine).items():
            torch.testing.assert_close(value, written(true)[name], **CLOSE)
        if case.settings.rule == Rule.NORM:
            assert torch.equal(mine.weight, before.weight)


@pytest.mark.parametrize("dim", UPDATE_DIMS)
@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.name)
@for_each_back_end(examples=60, interpreted=8)
def test_row_update_equals_the_reference(kernels: Any, data: st.DataObject, rule: Rule, dim: int) -> None:
    agree(kernels, data.draw(cases(rule, dim)))


@for_each_back_end(examples=60, interpreted=15)
def test_adam_equals_the_reference_for_other_row_sizes(kernels: Any, data: st.DataObject) -> None:
    agree(kernels, data.draw(cases(Rule.ADAM, data.draw(st.sampled_from((1, 4, 20, 64))))))


@for_each_back_end(examples=60, interpreted=15)
def test_rows_that_no_open_lookup_touches_stay_bit_equal(kernels: Any, data: st.DataObject) -> None:
    case = data.draw(cases(Rule.ADAM, 3))
    after = copies(case.tables)
    kernels.row_update(after, case.gradients, case.settings)
    for position, (old, new) in enumerate(zip(case.tables, after, strict=True)):
        touched = torch.zeros(len(old.weight), dtype=torch.bool)
        for block in case.gradients:
            for feature, table in enumerate(block.tables):
                if table == position:
                    rows, samples, _ = reference.feature_lookups(block.lookups, feature)
                    used = rows != block.lookups.padding_of(feature)
                    if old.gate is not None:
                        by = samples if old.by_sample else None
                        draws = hashing.gate_draw(rows, case.settings.step, old.seed, by)
                        used &= (old.gate[rows] == 255) | (draws < old.gate[rows])
                    touched[rows[used]] = True
        for name, value in written(new).items():
            assert torch.equal(value[~touched], written(old)[name][~touched]), name
        if new.last_step is not None:
            assert (new.last_step[touched] == case.settings.step).all()


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_dense_gradient_of_row_gradients_equals_autograd(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from((1, 2, 7, 40)))
    found = data.draw(lookups([size]))
    generator = torch.Generator().manual_seed(0)
    grad = eighths((found.batch_size, 1, 3), generator)
    weight = torch.zeros(size, 3, requires_grad=True)
    padding = found.padding_of(0)
    if found.offsets is None:
        chosen = padding if padding >= 0 else None
        out = torch.nn.functional.embedding(found.ids[:, 0], weight, padding_idx=chosen)
    else:
        out = torch.nn.functional.embedding_bag(
            found.ids,
            weight,
            found.offsets.to(found.ids.dtype),
            mode="mean" if found.mean else "sum",
            per_sample_weights=found.sample_weights,
            include_last_offset=True,
            padding_idx=padding if padding >= 0 else None,
        )
    (out * grad[:, 0]).sum().backward()
    dense = reference.row_gradient_dense([RowGradients(found, grad, (0,))], 0, weight.detach(), 1.0)
    assert weight.grad is not None
    torch.testing.assert_close(dense, weight.grad, rtol=1e-6, atol=1e-6)
    pooled = reference.pool([weight], found)[:, 0]
    torch.testing.assert_close(pooled, out.detach(), rtol=1e-6, atol=1e-6)


def _steps(rule: Rule, data: st.DataObject, **options: float) -> tuple[TableState, torch.Tensor, list[torch.Tensor]]:
    """A float64 table after four reference steps, its start, and each step's gradient, sparse over touched rows."""
    size, dim = data.draw(st.sampled_from((1, 2, 7))), 3
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    start = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    table = TableState(start.clone())
    table.first = torch.zeros(size, *(() if rule == Rule.ROWWISE_ADAGRAD else (dim,)), dtype=torch.float64)
    table.second = torch.zeros_like(start) if rule == Rule.ADAM else None
    if rule == Rule.SGD:
        table.first = None
    grads = []
    for step in range(1, 5):
        found = data.draw(lookups([size]))
        block = RowGradients(found, eighths((found.batch_size, 1, dim), generator), (0,))
        rows, _, _ = reference.feature_lookups(found, 0)
        touched = rows[rows != found.padding_of(0)].unique()
        dense = reference.row_gradient_dense([block], 0, start, 1.0)
        # Not to_sparse(): a row whose gradients cancel is touched all the same.
        grads.append(torch.sparse_coo_tensor(touched.unsqueeze(0), dense[touched], dense.shape, check_invariants=True))
        reference.row_update([table], [block], UpdateSettings(rule, step, 0.1, 1e-3, 0.9, 0.99, **options))
    return table, start, grads


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAGRAD, Rule.ADAM], ids=lambda rule: rule.name)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_reference_rules_equal_torch_optim(rule: Rule, data: st.DataObject) -> None:
    table, start, grads = _steps(rule, data)
    parameter = torch.nn.Parameter(start.clone())
    if rule == Rule.SGD:
        optimizer: torch.optim.Optimizer = torch.optim.SGD([parameter], 0.1)
    elif rule == Rule.ADAGRAD:
        optimizer = torch.optim.Adagrad([parameter], 0.1, eps=1e-3)
    else:
        optimizer = torch.optim.SparseAdam([parameter], 0.1, (0.9, 0.99), 1e-3)
    for grad in grads:
        parameter.grad = grad if rule == Rule.ADAM else grad.to_dense()
        optimizer.step()
    torch.testing.assert_close(table.weight, parameter.detach(), rtol=1e-9, atol=1e-9)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_reference_rowwise_adagrad_equals_its_definition(data: st.DataObject) -> None:
    table, weight, grads = _steps(Rule.ROWWISE_ADAGRAD, data)
    total = torch.zeros(len(weight), dtype=torch.float64)
    for grad in grads:
        grad = grad.to_dense()
        total += grad.square().mean(dim=1)
        weight = weight - 0.1 * grad / (total.sqrt() + 1e-3).unsqueeze(1)
    torch.testing.assert_close(table.weight, weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(table.first, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decoupled", [False, True])
def test_reference_decay_of_touched_rows_equals_torch(decoupled: bool) -> None:
    start = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = RowGradients(Lookups(torch.tensor([[1], [4], [1]]), None, 1), torch.ones(3, 1, 3), (0,))
    parameter = torch.nn.Parameter(start.clone())
    parameter.grad = reference.row_gradient_dense([block], 0, start, 1.0)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind([parameter], 0.1, eps=1e-3, weight_decay=0.1)
    table = TableState(start.clone(), torch.zeros_like(start), torch.zeros_like(start))
    # torch adds eps after the correction of the second moment, SparseAdam and we before it.
    eps = 1e-3 * (1 - 0.999) ** 0.5
    reference.row_update([table], [block], UpdateSettings(Rule.ADAM, 1, 0.1, eps, 0.9, 0.999, 0.1, decoupled))
    optimizer.step()
    touched = [1, 4]
    torch.testing.assert_close(table.weight[touched], parameter.detach()[touched], rtol=1e-9, atol=1e-9)
    assert torch.equal(table.weight[[0, 2, 3]], start[[0, 2, 3]])
