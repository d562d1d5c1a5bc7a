"""A whole DLRM training step in the Criteo Kaggle configuration, batch 2,048, against plain torch.

Ours runs in float32, under ``torch.compile`` in float32 and, where the processor has such products, in bf16; torch runs
in float32.

All start from the same weights and train on the same synthetic stream; their AUC on its last samples is in the
record.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from slipstream.bench import BenchOptions, workload
from slipstream.bench.reference_dlrm import ReferenceDLRM
from slipstream.bench.rounds import compete, ratio, row
from slipstream.data.batch import Inputs
from slipstream.report.machine import WITHOUT_BF16, instructions
from slipstream.report.record import Record

LEARNING_RATE = 0.3
NUM_DENSE = 13
BF16 = "slipstream bf16 compile"


class _Stream(NamedTuple):
    """A synthetic stream in batches, the last of which are for testing."""

    rows: tuple[int, ...]
    inputs: list[Inputs]
    labels: list[Tensor]
    train: int
    """Batches to train on."""
    teacher_auc: float
    """AUC of the probabilities that the test labels were drawn from."""


class _Ours:
    """Our DLRM, tables and SGD."""

    def __init__(self, model: nn.Module, stream: _Stream, *, compiled: bool = False, bf16: bool = False) -> None:
        from slipstream import optim

        self.model: Any = model
        self.forward: Callable[[Inputs], Tensor] = torch.compile(model) if compiled else model
        self.optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE)
        self.stream, self.bf16 = stream, bf16

    def step(self, number: int) -> Tensor:
        number %= self.stream.train
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.forward(self.stream.inputs[number])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, self.stream.labels[number])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, number: int) -> Tensor:
        return self.model(self.stream.inputs[number])


class _Reference:
    """Plain torch; its inputs lie ready in the layout that it takes."""

    def __init__(self, model: ReferenceDLRM, stream: _Stream) -> None:
        self.model, self.stream = model, stream
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        self.ids = [[column.contiguous().long() for column in inputs.ids.T] for inputs in stream.inputs]
        self.offsets = [torch.arange(workload.BATCH_SIZE)] * len(stream.rows)

    def step(self, number: int) -> Tensor:
        number %= self.stream.train
        probability = self.model(self.stream.inputs[number].dense, self.offsets, self.ids[number])
        loss = nn.functional.binary_cross_entropy(probability, self.stream.labels[number])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, number: int) -> Tensor:
        return self.model(self.stream.inputs[number].dense, self.offsets, self.ids[number])


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` shrinks the tables to 400,000 rows and trains on 30 batches.

    Returns:
        ``ratios``: ``torch_float32`` (ours in float32), ``torch_float32_compile`` (compiled) and ``torch_bf16_compile``
        (in bf16 and compiled), each against torch in float32. ``quality``: AUC of each, of the teacher, and the
        difference that training in bf16 makes; all models are scored in float32, which shows the weights apart from
        the rounding of their logits. Without bf16 products in the processor, that system is left out, and said so.
    """
    stream = _stream(options)
    systems = _systems(stream, options.seed)
    record = Record(
        name="step",
        dataset=f"synthetic stream, {workload.describe(stream.rows)}, "
        f"seed {options.seed}: {stream.train} batches to train on, {len(stream.inputs) - stream.train} to test on",
        conditions={
            "quick": options.quick,
            "model": "DLRM, bottom 13-512-256-64-16, top 512-256-1, 26 tables",
            "batch_size": workload.BATCH_SIZE,
            "optimizer": f"SGD, learning rate {LEARNING_RATE}",
            "unit": "seconds a step of forward, backward and update",
            "scored_in": "float32",
            "threads": torch.get_num_threads(),
        },
    )
    if BF16 not in systems:
        record.conditions["left out"] = f"{BF16}: this processor ({instructions()}) lacks bfloat16 products"
    losses = {name: torch.stack([system.step(i) for i in range(stream.train)]) for name, system in systems.items()}
    for name, system in systems.items():
        record.quality[f"auc {name}"] = round(_auc(system.predict, stream), 6)
    record.quality["auc of the teacher"] = round(stream.teacher_auc, 6)
    if BF16 in systems:
        record.quality["auc difference of bf16"] = round(
            record.quality[f"auc {BF16}"] - record.quality["auc slipstream float32"], 6
        )
    apart = (losses["slipstream float32"] - losses["torch float32"]).abs() / losses["torch float32"]
    record.quality["largest relative difference of loss to torch, first 20 steps"] = float(apart[:20].max())
    seconds = compete(
        {name: system.step for name, system in systems.items()},
        rounds=6 if options.quick else 40,
        steps_per_round=2 if options.quick else 4,
        warm_up=1,
    )
    for name in systems:
        if name != "torch float32":
            key = name.removeprefix("slipstream ").replace(" ", "_")
            record.ratios[f"torch_{key}"] = ratio(seconds[name], seconds["torch float32"])
    record.rows = [row(name, values, batch_size=workload.BATCH_SIZE) for name, values in seconds.items()]
    gc.collect()
    return record


def _stream(options: BenchOptions) -> _Stream:
    from slipstream.data.synthetic import Generator, SyntheticConfig

    train, test = (30, 10) if options.quick else (500, 100)
    cardinalities = workload.cardinalities(400_000 if options.quick else workload.TOTAL_ROWS)
    size = workload.BATCH_SIZE
    config = SyntheticConfig(
        num_samples=(train + test) * size,
        cardinalities=cardinalities,
        scale=1.0,
        zipf_exponent=workload.ZIPF_EXPONENT,
        num_dense=NUM_DENSE,
        seed=options.seed,
    )
    chunks = list(Generator(config).chunks(32 * size))
    ids = torch.from_numpy(np.concatenate([chunk.ids for chunk in chunks])).split(size)
    dense = torch.from_numpy(np.concatenate([chunk.dense for chunk in chunks])).split(size)
    labels = np.concatenate([chunk.labels for chunk in chunks])
    probability = np.concatenate([chunk.probability for chunk in chunks])
    return _Stream(
        tuple(count + 1 for count in config.rows),
        [Inputs(d, i, ()) for d, i in zip(dense, ids, strict=True)],
        list(torch.from_numpy(labels).float().split(size)),
        train,
        float(roc_auc_score(labels[train * size :], probability[train * size :])),
    )


def _systems(stream: _Stream, seed: int) -> dict[str, _Ours | _Reference]:
    """The contestants by name, from the same weights."""
    from slipstream.data.schema import FeatureInfo
    from slipstream.models import DLRM, DLRMConfig

    torch.manual_seed(seed)
    features = [FeatureInfo(name=f"c{i}", num_rows=count) for i, count in enumerate(stream.rows)]
    model = DLRM(features, NUM_DENSE, DLRMConfig())
    reference = ReferenceDLRM(stream.rows)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [value for key, value in model.state_dict().items() if ".tables." in f".{key}"]
    reference.copy_from(linear, weights)

    def twin() -> DLRM:
        twin = DLRM(features, NUM_DENSE, DLRMConfig())
        twin.load_state_dict(copy.copy(model.state_dict()))
        return twin

    systems: dict[str, _Ours | _Reference] = {
        "slipstream float32": _Ours(model, stream),
        "slipstream float32 compile": _Ours(twin(), stream, compiled=True),
    }
    if instructions() not in WITHOUT_BF16:
        systems[BF16] = _Ours(twin(), stream, compiled=True, bf16=True)
    return systems | {"torch float32": _Reference(reference, stream)}


def _auc(predict: Callable[[int], Tensor], stream: _Stream) -> float:
    test: Sequence[int] = range(stream.train, len(stream.inputs))
    scores = torch.cat([predict(number).float() for number in test])
    return float(roc_auc_score(torch.cat(stream.labels[stream.train :]).numpy(), scores.numpy()))
