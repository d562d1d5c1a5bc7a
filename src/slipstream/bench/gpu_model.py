"""A whole DLRM step on the GPU: dense part in bf16 under torch.compile, our tables, inputs copied on a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipstream.bench.gpu import Bench, timed
from slipstream.bench.gpu_overlap import overlap
from slipstream.bench.gpu_systems import LEARNING_RATE
from slipstream.bench.gpu_tables import held
from slipstream.bench.gpu_workload import cold_gate
from slipstream.bench.systems import EPS
from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.data.transfer import Sender
from slipstream.models import DLRM, DLRMConfig
from slipstream.models.base import Engine, make_embeddings

NUM_DENSE = 13


def dlrm(bench: Bench, *, dim: int, size: int) -> None:
    """Ours, ours with gates and torch's, each with the card to itself; adds rows and ratios to the record."""
    small = bench.plan.device.type != "cuda"
    rows, limit = bench.rows(dim, dim), bench.limit(3)  # torch's Adagrad has the larger state
    ids, _ = bench.batches(rows, 1, size)
    draw = torch.Generator().manual_seed(bench.seed)
    batches = [
        Batch(
            Inputs(torch.randn(size, NUM_DENSE, generator=draw), batch.cpu()),
            (torch.rand(size, generator=draw) < 0.25).float(),
            torch.arange(size),
            torch.ones(size),
        )
        for batch in ids
    ]
    del ids
    config = DLRMConfig(
        bottom=(16,) if small else (512, 256), top=(16,) if small else (1024, 1024, 512, 256), embedding_dim=dim
    )
    found: dict[str, float] = {}
    for name in ("slipstream", "slipstream gated", "torch"):
        engine: Engine = "torch" if name == "torch" else "slipstream"
        gated = name.endswith("gated")
        with held(lambda e=engine, g=gated: _Step(rows, config, batches, e, bench.plan.device, gated=g)) as step:
            found[name] = bench.note(f"DLRM {name}", timed(bench, step.step, limit), dim=dim, batch_size=size)
            if name == "slipstream" and not small:
                share, copied = overlap(step.step)
                bench.record.conditions["dlrm_share_of_input_copies_under_kernels"] = round(share, 3)
                bench.record.conditions["dlrm_input_copies_microseconds_a_step"] = round(copied, 1)
    bench.record.conditions["dlrm"] = f"bottom {config.bottom}, top {config.top}, bf16, compiled, RowwiseAdagrad or SGD"
    bench.record.ratios["dlrm_torch"] = found["torch"] / found["slipstream"]
    bench.record.ratios["dlrm_gates"] = found["slipstream"] / found["slipstream gated"]


class _Step:
    def __init__(
        self,
        rows: tuple[int, ...],
        config: DLRMConfig,
        batches: list[Batch],
        engine: Engine,
        device: torch.device,
        *,
        gated: bool,
    ) -> None:
        from slipstream import optim

        torch.manual_seed(0)
        features = [FeatureInfo(name=f"c{i}", num_rows=count) for i, count in enumerate(rows)]
        with device:
            model: Any = DLRM(features, NUM_DENSE, config, make_embeddings(features, config, engine))
        model = model.to(device)
        self.device, self.batches, self.sender = device, batches, Sender(device)
        if engine == "torch":
            tables = list(model.embeddings.parameters())
            dense = [p for name, p in model.named_parameters() if not name.startswith("embeddings.")]
            self.optimizers = [
                torch.optim.Adagrad(tables, lr=LEARNING_RATE, eps=EPS),
                torch.optim.SGD(dense, lr=LEARNING_RATE),
            ]
            if device.type == "cuda":  # COO gradients and compiled graphs do not go together
                model.bottom, model.top = torch.compile(model.bottom), torch.compile(model.top)
        else:
            model.embeddings.out_dtype = torch.bfloat16
            tables = list(model.embeddings.parameters())
            dense = [p for name, p in model.named_parameters() if not name.startswith("embeddings.")]
            self.optimizers = [
                optim.RowwiseAdagrad(tables, lr=LEARNING_RATE, eps=EPS),
                torch.optim.SGD(dense, lr=LEARNING_RATE),
            ]
            if gated:
                for table, count in zip(model.embeddings.table_of.values(), rows, strict=True):
                    table.set_gate(cold_gate(count, device))
            if device.type == "cuda":
                model = torch.compile(model)
        self.model = model

    def step(self, number: int) -> None:
        batch = self.sender.send(self.batches[number % len(self.batches)])
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(batch.inputs)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
