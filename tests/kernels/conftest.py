"""Threads that really run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from slipstream.kernels import cpu


@pytest.fixture
def set_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads; kernels use them for batches of any size; restored afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "SMALL", 0)
    yield torch.set_num_threads
    torch.set_num_threads(before)
