"""DLRM in plain torch, as the peers that bring tables alone need it: everything but the tables.

Written from the article (Naumov et al., arXiv 1906.00091); the same layers and loss as :mod:`slipstream.models.dlrm`,
which a peer's interpreter does not have. ``slipstream.bench.reference_dlrm`` is the same for the Criteo Kaggle widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.protocol import Job
from torch import Tensor, nn


class DensePart(nn.Module):
    """Bottom MLP over dense columns, dot products of all pairs of vectors, top MLP to a logit.

    Args:
        features: F, one-hot features.
        num_dense: n; without dense columns there is no bottom MLP, and the top sees the dot products alone.
        dim: D, elements of a row.
        bottom: Hidden widths of the bottom MLP.
        top: Hidden widths of the top MLP.
    """

    def __init__(self, features: int, num_dense: int, dim: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        super().__init__()
        vectors = features + (num_dense > 0)
        self.bottom = _mlp([num_dense, *bottom, dim], last=nn.ReLU()) if num_dense else None
        self.top = _mlp([vectors * (vectors - 1) // 2 + (dim if num_dense else 0), *top, 1], last=None)
        pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("left", pairs[0], persistent=False)
        self.register_buffer("right", pairs[1], persistent=False)

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Logits ``[B]``.

        Args:
            dense: float32 ``[B, n]``.
            rows: ``[B, F, D]``.
        """
        if self.bottom is None:
            return self.top(self._dots(rows)).squeeze(1).float()
        x = self.bottom(dense)
        dots = self._dots(torch.cat([x.unsqueeze(1), rows.to(x.dtype)], dim=1))
        return self.top(torch.cat([x, dots], dim=1)).squeeze(1).float()

    def _dots(self, vectors: Tensor) -> Tensor:
        return torch.bmm(vectors, vectors.transpose(1, 2))[:, self.left, self.right]


def _mlp(widths: Sequence[int], *, last: nn.Module | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (width, following) in enumerate(pairwise(widths)):
        linear = nn.Linear(width, following)
        # As facebookresearch/dlrm begins them.
        nn.init.normal_(linear.weight, std=(2.0 / (width + following)) ** 0.5)
        nn.init.normal_(linear.bias, std=(1.0 / following) ** 0.5)
        layers.append(linear)
        following_layer = last if number == len(widths) - 2 else nn.ReLU()
        layers += [] if following_layer is None else [following_layer]
    return nn.Sequential(*layers)


class Batches:
    """Batches of the training samples in order, as tensors.

    Args:
        data: The samples.
        job: Which of them are trained on, and the size of a batch.
    """

    def __init__(self, data: Arrays, job: Job) -> None:
        self.data, self.stop, self.size = data, job.train[1], int(job.settings["batch_size"])
        self.position = 0

    def next(self) -> tuple[tuple[Tensor, Tensor, Tensor] | None, int]:
        """Dense columns ``[B, n]``, ids int64 ``[F, B]`` and labels ``[B]``; ``(None, 0)`` at the end."""
        start, stop = self.position, min(self.position + self.size, self.stop)
        self.position = stop
        return (self.between(start, stop), stop - start) if start < stop else (None, 0)

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """The samples ``start`` to ``stop``."""
        data = self.data
        ids = torch.from_numpy(np.ascontiguousarray(data.ids[start:stop].T, dtype=np.int64))
        dense = torch.from_numpy(np.array(data.dense[start:stop]))
        return dense, ids, torch.from_numpy(np.array(data.labels[start:stop]))

    def pieces(self, start: int, stop: int, size: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Dense columns and ids of samples to predict."""
        for first in range(start, stop, size):
            dense, ids, _ = self.between(first, min(first + size, stop))
            yield dense, ids


def bf16(on: bool) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


def dense_part(data: Arrays, job: Job) -> tuple[DensePart, Any]:
    """The module, and what to call: the same, or compiled, before any clock runs."""
    settings = job.settings
    part = DensePart(len(data.rows), data.dense.shape[1], settings["dim"], settings["bottom"], settings["top"])
    if not settings.get("compile"):
        return part, part
    compiled: Any = torch.compile(part)
    size = int(settings["batch_size"])
    rows = torch.zeros(size, len(data.rows), settings["dim"], requires_grad=True)
    with bf16(bool(settings.get("bf16"))):
        logits = compiled(torch.zeros(size, data.dense.shape[1]), rows)
    logits.sum().backward()
    part.zero_grad(set_to_none=True)
    return part, compiled


def predict(pieces: Iterator[tuple[Tensor, Tensor]], score: Any) -> npt.NDArray[np.float32]:
    """Scores of samples, piece by piece."""
    with torch.no_grad():  # FBGEMM's operators do not run in inference mode
        return np.concatenate([score(dense, ids).float().numpy() for dense, ids in pieces])
