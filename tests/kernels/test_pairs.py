"""Triangles of small matrices: the CPU kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.kernels import cpu_pairs, reference, registry


@settings(deadline=None)  # the first example compiles
@given(
    batch=st.sampled_from([0, 1, 2, 33, 300]),
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
    dtype=st.sampled_from(cpu_pairs.DTYPES),
)
def test_triangles_there_and_back(batch: int, count: int, seed: int, dtype: torch.dtype) -> None:
    square = torch.randn(batch, count, count, generator=torch.Generator().manual_seed(seed)).to(dtype)
    pairs = cpu_pairs.pack_pairs(square)
    assert torch.equal(pairs, reference.pack_pairs(square))
    assert torch.equal(cpu_pairs.unpack_pairs(pairs, count), reference.unpack_pairs(pairs, count))


@pytest.mark.parametrize("layout", ["columns of a wider tensor", "transposed"])
@pytest.mark.parametrize("dtype", cpu_pairs.DTYPES)
def test_tensors_that_are_not_contiguous(layout: str, dtype: torch.dtype) -> None:
    pairs = torch.randn(5, 20)[:, 3:13] if layout.startswith("columns") else torch.randn(10, 5).t()
    pairs = pairs.to(dtype)
    assert torch.equal(cpu_pairs.unpack_pairs(pairs, 5), reference.unpack_pairs(pairs, 5))
    square = torch.randn(5, 7, 7).to(dtype).transpose(1, 2)
    assert torch.equal(cpu_pairs.pack_pairs(square), reference.pack_pairs(square))


@pytest.mark.parametrize("dtype", cpu_pairs.DTYPES)
def test_operators(dtype: torch.dtype) -> None:
    square = torch.randn(3, 5, 5).to(dtype)
    torch.library.opcheck(registry._pack_pairs, (square,))
    torch.library.opcheck(registry._unpack_pairs, (reference.pack_pairs(square), 5))
