"""TorchRec's sharded tables with an input policy in front, on two processes.

    torchrun --nproc-per-node 2 -m examples.torchrec.sharded [CHECKPOINTS]

Tables are sharded by TorchRec and updated by FBGEMM inside backward; skipping inputs makes all of it less: lookups,
all-to-all, update. With a folder the training is saved there every few batches, and goes on from there, on this or
another number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from examples.clicks import Clicks, movietweetings
from examples.torchrec.cases import NAMES, _batches
from examples.torchrec.recipe import features
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.models.dlrm import DLRM
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

import slipstream as sl
from slipstream import distributed
from slipstream.data import Batch, Columns
from slipstream.interop.torchrec import load_checkpoint, save_checkpoint
from slipstream.policies import Random

EVERY = 5
"""Batches of the data between two checkpoints."""


def build(rows: dict[str, int]) -> Any:
    """A DLRM whose tables TorchRec places on the ranks."""
    of = {"movie": ["movie", "history"]}
    collection = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=name, embedding_dim=16, num_embeddings=size, feature_names=of.get(name, [name]))
            for name, size in rows.items()
        ]
    )
    torch.manual_seed(0)
    model = DLRM(collection, 1, [64, 16], [64, 32, 1])
    apply_optimizer_in_backward(torch.optim.Adagrad, collection.parameters(), {"lr": 0.02})
    sharders: Any = [EmbeddingBagCollectionSharder()]
    # Sharded, not replicated, however small the tables are.
    constraints = {name: ParameterConstraints(sharding_types=["table_wise", "row_wise"]) for name in rows}
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    env = ShardingEnv.from_process_group(dist.GroupMember.WORLD)
    return DistributedModelParallel(model, env=env, plan=plan, sharders=sharders, device=torch.device("cpu"))


def kept(skipper: sl.Skipper, data: Clicks, done: int) -> Iterator[tuple[int, Batch | None]]:
    """What to train on after ``done`` batches of the data, with how many have passed; None: nothing is left of one."""
    for number, loaded in enumerate(_batches(data), start=1):
        if number > done:
            yield from ((number, batch) for batch in skipper.push(loaded))
            yield number, None
    yield from ((-1, batch) for batch in skipper.flush())


def train(data: Clicks, budget: float, checkpoint: Path | None = None) -> dict[str, Any]:
    """One epoch on this rank's part of each batch of kept inputs."""
    model = build(data.rows)
    dense = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.Adagrad(dense, lr=0.02)
    to_batch = Columns(NAMES, "label", index="number")
    skipper = sl.Skipper(torch.nn.Identity(), Random(budget), batch_size=1024, to_batch=to_batch)
    order, losses, done = [torch.empty(0, dtype=torch.int64)], torch.zeros(1), 0
    if checkpoint is not None and checkpoint.exists():
        extra = load_checkpoint(checkpoint, model)
        optimizer.load_state_dict(extra["optimizer"])
        skipper.load_state_dict(extra["skipper"])
        done = extra["batches"]
    for passed, batch in kept(skipper, data, done):  # the same on every rank: decisions hash the sample's number
        if batch is None:
            if checkpoint is not None and passed % EVERY == 0:
                extra = {"optimizer": optimizer.state_dict(), "skipper": skipper.state_dict(), "batches": passed}
                save_checkpoint(checkpoint, model, extra)
            continue
        own = distributed.part(batch)
        order.append(batch.index)
        logits = model(own.carried["dense"], features(NAMES, own.carried)).squeeze(1)
        losses = functional.binary_cross_entropy_with_logits(logits, own.labels, reduction="none")
        optimizer.zero_grad()
        distributed.mean_loss(losses * own.weights, batch).backward()
        optimizer.step()
    plan = next(iter(model.plan.plan.values()))
    return {
        "sharding": [sharding.sharding_type for sharding in plan.values()],
        "loss": float(losses.mean()),
        "steps": skipper.steps,
        "order": torch.cat(order),
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for share in (1.0, 0.5):
        where = None if folder is None else folder / f"budget-{share}"
        outcome = train(movietweetings().part(0, 20_000), share, where)
        same = distributed.same_everywhere({"order": outcome["order"]}) == []
        if not same:
            raise SystemExit("the ranks decided differently")
        if dist.get_rank() == 0:
            print(f"tables: {sorted(set(outcome['sharding']))}")
            print(f"budget {share}: {outcome['steps']} steps, last loss {outcome['loss']:.3f}, the ranks decided alike")
    dist.barrier()
    dist.destroy_process_group()
