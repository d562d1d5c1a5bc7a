"""Dot products of all pairs of vectors: the CPU kernel against the reference, and that against autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slipstream.kernels import cpu_dots, reference, registry

AHEAD = pytest.mark.parametrize("ahead", [False, True])
DTYPES = pytest.mark.parametrize("dtype", cpu_dots.DTYPES)


def whole(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Small whole numbers: their sums are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None)  # the first example compiles
@given(
    batch=st.sampled_from([0, 1, 2, 33, 300]),
    count=st.integers(1, 40),
    dim=st.sampled_from([1, 3, 15, 16, 17, 33, 64]),
    ahead=st.booleans(),
    seed=st.integers(0, 9),
    dtype=st.sampled_from(cpu_dots.DTYPES),
)
def test_the_kernel_is_the_reference(
    batch: int, count: int, dim: int, ahead: bool, seed: int, dtype: torch.dtype
) -> None:
    vectors = whole((batch, count, dim), seed, dtype)
    dots = cpu_dots.dots(vectors, ahead)
    assert torch.equal(dots, reference.dots(vectors, ahead))
    gradients = whole(tuple(dots.shape), seed + 1, dtype)
    made = cpu_dots.dots_gradients(vectors, gradients, ahead)
    assert torch.equal(made, reference.dots_gradients(vectors, gradients, ahead))


@AHEAD
def test_gradients_are_those_of_autograd(ahead: bool) -> None:
    vectors = torch.randn(5, 6, 7, requires_grad=True)
    dots = reference.dots(vectors, ahead)
    gradients = torch.randn_like(dots)
    (expected,) = torch.autograd.grad(dots, vectors, gradients)
    torch.testing.assert_close(reference.dots_gradients(vectors.detach(), gradients, ahead), expected)


@DTYPES
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    vectors = torch.randn(1000, 27, 16).to(dtype)
    gradients = torch.randn(1000, 27 * 13 + 16).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((cpu_dots.dots(vectors, True), cpu_dots.dots_gradients(vectors, gradients, True)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("layout", ["columns of a wider tensor", "transposed"])
@DTYPES
def test_tensors_that_are_not_contiguous(layout: str, dtype: torch.dtype) -> None:
    gradients = whole((5, 20), 1, dtype)[:, 3:13] if layout.startswith("columns") else whole((10, 5), 1, dtype).t()
    vectors = whole((5, 7, 5), 2, dtype).transpose(1, 2)
    assert torch.equal(cpu_dots.dots(vectors), reference.dots(vectors))
    made = cpu_dots.dots_gradients(vectors, gradients)
    assert torch.equal(made, reference.dots_gradients(vectors, gradients))


@AHEAD
@DTYPES
def test_operators(ahead: bool, dtype: torch.dtype) -> None:
    vectors = torch.randn(3, 5, 6).to(dtype)
    torch.library.opcheck(registry._dots, (vectors, ahead))
    torch.library.opcheck(registry._dots_gradients, (vectors, reference.dots(vectors, ahead), ahead))
