"""One rank of ``slipstream bench ranks``: trains TorchRec's sharded tables, and says what it sent and how long it took.

Started by :mod:`slipstream.bench.ranks` as ``python -m slipstream.bench.ranks_worker SETTINGS.json OUT.json``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType  # pyright: ignore[reportMissingImports]
from torchrec.distributed import DistributedModelParallel  # pyright: ignore[reportMissingImports]
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # pyright: ignore[reportMissingImports]
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology  # pyright: ignore[reportMissingImports]
from torchrec.distributed.types import ShardingEnv  # pyright: ignore[reportMissingImports]
from torchrec.models.dlrm import DLRM  # pyright: ignore[reportMissingImports]
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward  # pyright: ignore[reportMissingImports]

from slipstream import distributed
from slipstream.bench.ranks_link import sent_bytes
from slipstream.bench.workload import cardinalities, zipf_batches
from slipstream.data.batch import Batch, Inputs
from slipstream.policies import Importance, NoSkipping, Policy, Random, Skipper

POLICIES: dict[str, Any] = {
    "none": NoSkipping,
    "random 0.5": lambda: Random(0.5),
    "importance 0.5": lambda: Importance(0.5, warmup_samples=4096),
}
DENSE = 13
"""Dense columns, as Criteo's."""


def build(rows: tuple[int, ...], dim: int) -> Any:
    """A DLRM whose tables TorchRec places on the ranks, each whole: on CPUs its planner cuts none by rows."""
    names = [f"c{number}" for number in range(len(rows))]
    collection = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                name=name, embedding_dim=dim, num_embeddings=size, feature_names=[name], pooling=PoolingType.SUM
            )
            for name, size in zip(names, rows, strict=True)
        ]
    )
    torch.manual_seed(0)
    model = DLRM(collection, DENSE, [64, dim], [64, 32, 1])
    apply_optimizer_in_backward(torch.optim.Adagrad, collection.parameters(), {"lr": 0.02})
    constraints = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in names}
    sharders: Any = [EmbeddingBagCollectionSharder()]
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    world: Any = dist.GroupMember.WORLD
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(model, sharders, world)
    env = ShardingEnv.from_process_group(world)
    return DistributedModelParallel(model, env=env, plan=plan, sharders=sharders, device=torch.device("cpu"))


def samples(rows: tuple[int, ...], batches: int, size: int, seed: int) -> list[Batch]:
    """Batches with labels that a model can learn: effects of the ids of four columns."""
    draw = torch.Generator().manual_seed(seed)
    effects = [torch.randn(count, generator=draw) for count in rows[:4]]
    made: list[Batch] = []
    for number, ids in enumerate(zipf_batches(rows, batches=batches, batch_size=size, seed=seed)):
        score = torch.stack([effect[ids[:, column].long()] for column, effect in enumerate(effects)]).sum(0) - 1.5
        labels = (torch.rand(size, generator=draw) < torch.sigmoid(score)).float()
        dense = torch.rand(size, DENSE, generator=draw)
        index = torch.arange(number * size, (number + 1) * size)
        made.append(Batch(Inputs(dense, ids), labels, index, torch.ones(size)))
    return made


def features(ids: Tensor) -> KeyedJaggedTensor:
    """One id of each column, int32 [B, F]."""
    names = [f"c{number}" for number in range(ids.shape[1])]
    values = ids.T.contiguous().flatten().long()
    return KeyedJaggedTensor.from_lengths_sync(names, values, torch.ones(values.numel(), dtype=torch.int64))


def train(data: list[Batch], rows: tuple[int, ...], dim: int, policy: Policy, warm: int) -> dict[str, Any]:
    """Trains on the batches; counts and times come after the first ``warm`` of them."""
    model = build(rows, dim)
    dense = [parameter for name, parameter in model.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.Adagrad(dense, lr=0.02)
    size = len(data[0])
    skipper = Skipper(torch.nn.Identity(), policy, batch_size=size)
    order: list[Tensor] = []
    losses: list[float] = []

    def step(batch: Batch) -> None:
        own = distributed.part(batch)
        order.append(batch.index)
        logits = model(own.inputs.dense, features(own.inputs.ids)).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits, own.labels, reduction="none") * own.weights
        optimizer.zero_grad()
        distributed.mean_loss(loss, batch).backward()
        optimizer.step()
        losses.append(float(loss.detach().mean()))

    before, steps, began = 0, 0, 0.0
    for number, batch in enumerate(data):
        if number == warm:
            dist.barrier()
            before, steps, began = sent_bytes(), len(order), time.perf_counter()
        for kept in skipper.push(batch):
            step(kept)
    for kept in skipper.flush():
        step(kept)
    dist.barrier()
    seconds, sent = time.perf_counter() - began, sent_bytes() - before
    same = distributed.same_everywhere({"order": torch.cat(order)}) == []
    return {
        "seconds": seconds,
        "bytes": sent,
        "steps": len(order) - steps,
        "kept": skipper.share_of_inputs_trained,
        "loss": sum(losses[-8:]) / 8,
        "same decisions": same,
    }


def round_trip() -> float:
    """Seconds that a byte and its answer take over the link, the median of 9."""
    byte, turns = torch.zeros(1, dtype=torch.uint8), list[float]()
    for _ in range(9):
        began = time.perf_counter()
        if dist.get_rank() == 0:
            dist.send(byte, 1)
            dist.recv(byte, 1)
        else:
            dist.recv(byte, 0)
            dist.send(byte, 0)
        turns.append(time.perf_counter() - began)
    return median(turns)


def main() -> None:
    """Plays the settings' rounds."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.WARNING)  # TorchRec's planner says much
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{settings['address']}:{settings['port']}",
        rank=settings["rank"],
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    rows = cardinalities(settings["rows"])
    data = samples(rows, settings["warm"] + settings["batches"], settings["batch_size"], settings["seed"])
    trip = round_trip()
    outcome: dict[str, Any] = {name: [] for name in POLICIES}
    for _ in range(settings["rounds"]):
        for name, make in POLICIES.items():
            outcome[name].append(train(data, rows, settings["dim"], make(), settings["warm"]))
    Path(sys.argv[2]).write_text(json.dumps({**outcome, "round trip": trip}))
    dist.barrier()


if __name__ == "__main__":
    main()
    # Not through the interpreter's end, where torch now and then aborts while it takes down gloo's threads.
    import os

    os._exit(0)
