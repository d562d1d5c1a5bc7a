"""TorchRec's sharded tables on forked ranks: ``python sharded.py FOLDER`` saves what the test looks at."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

import slipstream as sl
from slipstream import distributed
from slipstream.data import Columns
from slipstream.errors import CheckpointError, ConfigError, OutputError, UnsupportedOption
from slipstream.interop.torchrec import load_checkpoint, save_checkpoint
from slipstream.interop.torchrec_gates import RowGates
from slipstream.policies import PSSE, Importance, Random

ROWS = {"user": 50, "item": 90}
SAMPLES, BATCH = 640, 40


class Net(torch.nn.Module):
    """Two tables, row-wise and table-wise, and a dense layer."""

    def __init__(self, pooling: PoolingType = PoolingType.SUM) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=name, embedding_dim=8, num_embeddings=rows, feature_names=[name], pooling=pooling
                )
                for name, rows in ROWS.items()
            ]
        )
        self.top = torch.nn.Linear(16, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.top(self.tables(features).values()).squeeze(1)


class Sharder(EmbeddingBagCollectionSharder):
    """Cuts tables by rows on CPUs too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise"]


def build(pooling: PoolingType = PoolingType.SUM) -> Any:
    torch.manual_seed(0)
    net = Net(pooling)
    apply_optimizer_in_backward(torch.optim.Adagrad, net.tables.parameters(), {"lr": 0.05})
    kinds = {"user": "row_wise", "item": "table_wise"}
    constraints = {name: ParameterConstraints(sharding_types=[kind]) for name, kind in kinds.items()}
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    sharders: Any = [Sharder()]
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(
        net, sharders, dist.GroupMember.WORLD
    )
    env = ShardingEnv.from_process_group(dist.GroupMember.WORLD)
    return DistributedModelParallel(net, env=env, plan=plan, sharders=sharders, device=torch.device("cpu"))


def data() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(3)
    columns = {name: (torch.rand(SAMPLES, 2, generator=random) ** 3 * rows).long() for name, rows in ROWS.items()}
    columns["label"] = torch.rand(SAMPLES, generator=random).round()
    columns["number"] = torch.arange(SAMPLES)
    return [{k: v[first : first + BATCH] for k, v in columns.items()} for first in range(0, SAMPLES, BATCH)]


def features(carried: dict[str, Tensor]) -> KeyedJaggedTensor:
    size = len(carried["label"])
    values = torch.cat([carried[name].flatten() for name in ROWS])
    return KeyedJaggedTensor.from_lengths_sync(list(ROWS), values, torch.full((2 * size,), 2))


class Training:
    """A training that can be saved after any batch of the data."""

    def __init__(self, policy: Any, pooling: PoolingType = PoolingType.SUM, gates: bool = False) -> None:
        self.model = build(pooling)
        self.gates = RowGates(self.model) if gates else None
        self.optimizer = torch.optim.Adam(self.model.module.top.parameters(), 0.01)
        to_batch = Columns(list(ROWS), "label", index="number")
        tables = None if self.gates is None else self.gates.tables
        self.skipper = sl.Skipper(self.model, policy, batch_size=BATCH, to_batch=to_batch, tables=tables)
        self.order: list[Tensor] = []

    def train(self, start: int, stop: int) -> None:
        for loaded in data()[start:stop]:
            for batch in self.skipper.push(loaded):
                self.order.append(batch.index)
                own = distributed.part(batch)
                logits = self.model(features(own.carried or {}))
                losses = functional.binary_cross_entropy_with_logits(logits, own.labels, reduction="none")
                self.optimizer.zero_grad()
                distributed.mean_loss(losses * own.weights, batch).backward()
                self.optimizer.step()

    def save(self, path: Path, batches: int) -> None:
        extra = {"optimizer": self.optimizer.state_dict(), "skipper": self.skipper.state_dict(), "batches": batches}
        save_checkpoint(path, self.model, extra)

    def load(self, path: Path) -> int:
        extra = load_checkpoint(path, self.model)
        self.optimizer.load_state_dict(extra["optimizer"])
        self.skipper.load_state_dict(extra["skipper"])
        return extra["batches"]

    def whole(self) -> dict[str, Tensor]:
        """All tables and the dense part, on every rank."""
        found: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            if isinstance(value, Tensor) and not hasattr(value, "local_shards"):
                found[name] = value.detach().clone()
                continue
            table = torch.zeros(value.size())
            for shard in value.local_shards():
                (first, _), (rows, _) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                table[first : first + rows] = shard.tensor.detach()
            dist.all_reduce(table)
            found[name] = table
        return found | {"order": torch.cat(self.order) if self.order else torch.empty(0)}


def policy() -> Any:
    return Importance(0.5, warmup_samples=100, bits=10)


def begun(folder: Path) -> dict[str, Any]:
    """Eight batches, a checkpoint, and eight more."""
    training = Training(policy())
    training.train(0, 8)
    training.save(folder / "two", 8)
    saved = training.whole()
    training.train(8, 16)
    return {"saved": saved, "end": training.whole()}


def gone_on(folder: Path, name: str, resaved: str | None = None) -> dict[str, Any]:
    """From a checkpoint to the end."""
    training = Training(policy())
    batches = training.load(folder / name)
    loaded = training.whole()
    if resaved is not None:
        training.save(folder / resaved, batches)
    training.train(batches, 16)
    return {"saved": loaded, "end": training.whole()}


def refusal(path: Path, model: Any) -> str:
    """Why a checkpoint is not loaded."""
    try:
        load_checkpoint(path, model)
    except CheckpointError as error:
        return str(error)
    return "it is loaded"


def gated(folder: Path) -> dict[str, Any]:
    """Row gates: frozen rows stay, others move as without gates; what cannot be gated is refused."""
    free, shut = Training(Random(1.0)), Training(Random(1.0), gates=True)
    assert shut.gates is not None
    before = shut.whole()
    for shard in shut.gates.shards.values():
        shard.open_gate()[(torch.arange(shard.num_rows) + shard.first_row) % 3 == 0] = 0
    logits = [training.model(features(data()[0])).detach() for training in (free, shut)]
    shut.train(0, 1)
    free.train(0, 1)
    together = RowGates.together(PSSE(0.8, warmup_steps=2, every=2))
    listening = Training(together, gates=True)
    listening.train(0, 8)
    try:
        listening.save(folder / "shards", 8)
    except ConfigError as error:
        own = str(error)
    half = Training(Random(0.5, level="rows"), gates=True)
    half.train(0, 8)
    try:
        RowGates(build(PoolingType.MEAN))
    except UnsupportedOption as error:
        refused = str(error)
    missing = refusal(folder / "nothing", free.model)
    # A folder that rank 0 alone sees; indices that are no whole pickle, or one of something else.
    missing_on_one = refusal(folder / ("two" if dist.get_rank() == 0 else "nothing"), free.model)
    index = (folder / "two" / ".metadata").read_bytes()
    contents = {"empty": b"", "cut": index[: len(index) // 2], "number": b"I1\n.", "text": b"no index"}
    for name, content in contents.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / ".metadata").write_bytes(content)
    dist.barrier()
    damaged = [refusal(folder / name, free.model) for name in contents]
    for name in (".kept.partial-1a2b", ".kept.partial-mine", ".other.partial-1a2b"):
        (folder / "saves" / name).mkdir(parents=True, exist_ok=True)
    dist.barrier()
    save_checkpoint(folder / "saves" / "kept", free.model, {})
    saves = sorted(entry.name for entry in (folder / "saves").iterdir())
    (folder / "taken").write_text("")
    unwritten: list[str] = []
    for path in (folder / "taken", folder / "taken" / "below"):  # refused to rank 0 alone, and to DCP
        try:
            save_checkpoint(path, free.model, {})
        except OutputError as error:
            unwritten.append(str(error))
    assert listening.gates is not None and half.gates is not None
    shards = list(half.gates.shards.values())
    return {
        "before": before,
        "free": free.whole(),
        "shut": shut.whole(),
        "logits": logits,
        "psse": listening.skipper.policy.report(),
        "gates": {name: shard.gate for name, shard in listening.gates.shards.items()},
        "half": (sum(s.skipped for s in shards), sum(s.lookups for s in shards)),
        "refused": refused,
        "missing": missing,
        "missing on one": missing_on_one,
        "damaged": damaged,
        "saves": saves,
        "unwritten": unwritten,
        "own": own,
    }


def play(world: int, work: Callable[[], Any], out: Path) -> None:
    """Runs a function on forked ranks; each saves what it returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: list[int] = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                address = f"tcp://127.0.0.1:{port}"
                dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
                torch.save(work(), f"{out}-{rank}.pt")
                dist.barrier()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(statuses):
        raise SystemExit(f"{out.name}: exit statuses {statuses}")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    play(2, lambda: begun(folder), folder / "begun")
    play(2, lambda: gone_on(folder, "two"), folder / "again")
    play(4, lambda: gone_on(folder, "two", "four"), folder / "more")
    play(2, lambda: gone_on(folder, "four"), folder / "fewer")
    play(2, lambda: gated(folder), folder / "gated")


if __name__ == "__main__":
    main()
