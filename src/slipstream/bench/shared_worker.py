"""A process of the benchmark ``shared``: gets ready, then measures once for each line that it reads.

``python -m slipstream.bench.shared_worker WHAT ROWS COUNT THREADS``; after "ready" each answer is one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.bench import workload
from slipstream.bench.reference_dlrm import KAGGLE_BOTTOM, ReferenceDLRM

LEARNING_RATE = 0.1
NUM_DENSE = KAGGLE_BOTTOM[0]
Figures = dict[str, Any]


def _training(make: Callable[[Sequence[int], list[Tensor]], Callable[[int], None]]) -> Any:
    """A measurement of so many steps by what ``make`` builds of the tables' sizes and batches."""

    def prepare(total_rows: int, steps: int) -> Callable[[], Figures]:
        rows = workload.cardinalities(total_rows)
        step = make(rows, workload.zipf_batches(rows, batches=8))
        for number in range(4):
            step(number)

        def measure() -> Figures:
            start = perf_counter()
            for number in range(steps):
                step(number % 8)
            return {"seconds": perf_counter() - start}

        return measure

    return prepare


def _slipstream(rows: Sequence[int], batches: list[Tensor]) -> Callable[[int], None]:
    """Our DLRM and SGD."""
    from slipstream import optim
    from slipstream.bench.dlrm_step import features_of
    from slipstream.data.batch import Inputs
    from slipstream.models import DLRM, DLRMConfig

    model = DLRM(features_of(rows), NUM_DENSE, DLRMConfig())
    optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE)
    dense, labels = _dense_and_labels()

    def step(number: int) -> None:
        loss = nn.functional.binary_cross_entropy_with_logits(model(Inputs(dense, batches[number], ())), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _dlrm_reference(rows: Sequence[int], batches: list[Tensor]) -> Callable[[int], None]:
    """DLRM on plain torch; its ids lie ready in the layout that it takes."""
    model = ReferenceDLRM(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    ids = [[column.contiguous().long() for column in batch.T] for batch in batches]
    offsets = [torch.arange(workload.BATCH_SIZE)] * len(rows)
    dense, labels = _dense_and_labels()

    def step(number: int) -> None:
        loss = nn.functional.binary_cross_entropy(model(dense, offsets, ids[number]), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _torchrec(rows: Sequence[int], batches: list[Tensor]) -> Callable[[int], None]:
    """TorchRec's tables with SGD fused into backward (FBGEMM's CPU kernels), the other layers as in plain torch."""
    # A peer is not installed where types are checked.
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor  # pyright: ignore[reportMissingImports]
    from torchrec.modules.fused_embedding_modules import (  # pyright: ignore[reportMissingImports]
        FusedEmbeddingBagCollection,
    )

    dim, names = KAGGLE_BOTTOM[-1], [f"c{number}" for number in range(len(rows))]
    tables: Any = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=count, feature_names=[name])
            for name, count in zip(names, rows, strict=True)
        ],
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": LEARNING_RATE},
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        for weight in tables.parameters():
            weight.zero_()
    model = ReferenceDLRM(rows, tables=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    lengths = torch.ones(workload.BATCH_SIZE * len(rows), dtype=torch.int64)
    ids = [
        KeyedJaggedTensor.from_lengths_sync(names, batch.T.contiguous().long().reshape(-1), lengths)
        for batch in batches
    ]
    dense, labels = _dense_and_labels()

    def step(number: int) -> None:
        pooled = tables(ids[number])
        vectors = pooled.values() if hasattr(pooled, "values") else pooled
        loss = nn.functional.binary_cross_entropy(model.dense_part(dense, vectors.split(dim, dim=1)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _dense_and_labels() -> tuple[Tensor, Tensor]:
    return torch.randn(workload.BATCH_SIZE, NUM_DENSE), (torch.rand(workload.BATCH_SIZE) < 0.25).float()


def _kernels(total_rows: int, turns: int) -> Callable[[], Figures]:
    """Seconds of an embedding step that follows another one, and of one that follows a matrix product, in turn."""
    from slipstream import optim
    from slipstream.bench.systems import Slipstream, fill

    rows = workload.cardinalities(total_rows)
    batches = workload.zipf_batches(rows, batches=32)
    grads = [torch.randn(workload.BATCH_SIZE, len(rows) * 16) / workload.BATCH_SIZE]
    ours = Slipstream(rows, 16, batches, grads, optimizer=lambda p: optim.RowwiseAdagrad(p, lr=0.01))
    fill(ours)
    x, w = torch.randn(workload.BATCH_SIZE, 512), torch.randn(512, 256)

    def timed(number: int) -> float:
        start = perf_counter()
        ours.step(number)
        return perf_counter() - start

    for number in range(len(batches)):
        ours.step(number)
        torch.mm(x, w)

    def measure() -> Figures:
        alone, between = [], []
        for turn in range(turns):
            ours.step(3 * turn)  # so that what is timed next follows kernels
            alone.append(timed(3 * turn + 1))
            torch.mm(x, w)
            between.append(timed(3 * turn + 2))
        return {"alone": alone, "between": between}

    return measure


MEASUREMENTS: dict[str, Callable[[int, int], Callable[[], Figures]]] = {
    "slipstream": _training(_slipstream),
    "dlrm_reference": _training(_dlrm_reference),
    "torchrec": _training(_torchrec),
    "kernels": _kernels,
}
"""By WHAT: gets ready for so many rows and so many steps (or turns)."""


def main(what: str, total_rows: int, count: int, threads: int) -> None:
    """Answers until nothing more is asked."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(threads)
    measure = MEASUREMENTS[what](total_rows, count)
    answers.write("ready\n")
    answers.flush()
    for _line in sys.stdin:
        answers.write(json.dumps(measure()) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
