"""TorchRec's sharded tables with an input policy in front, on two processes.

    torchrun --nproc-per-node 2 -m examples.torchrec.sharded

Tables are sharded by TorchRec and updated by FBGEMM inside backward, so rows cannot be gated; skipping inputs makes all
of it less: lookups, all-to-all, update.
"""

from __future__ import annotations

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
from slipstream.data import Columns
from slipstream.policies import Random


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


def train(data: Clicks, budget: float) -> dict[str, Any]:
    """One epoch on this rank's part of each batch of kept inputs."""
    model = build(data.rows)
    dense = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    optimizer = torch.optim.Adagrad(dense, lr=0.02)
    skipper = sl.Skipper(torch.nn.Identity(), Random(budget), batch_size=1024, to_batch=Columns(NAMES, "label"))
    order = []
    for batch in skipper(_batches(data)):  # the same on every rank: decisions hash the sample's number
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
    for share in (1.0, 0.5):
        outcome = train(movietweetings().part(0, 20_000), share)
        same = distributed.same_everywhere({"order": outcome["order"]}) == []
        if not same:
            raise SystemExit("the ranks decided differently")
        if dist.get_rank() == 0:
            print(f"tables: {sorted(set(outcome['sharding']))}")
            print(f"budget {share}: {outcome['steps']} steps, last loss {outcome['loss']:.3f}, the ranks decided alike")
    dist.destroy_process_group()
