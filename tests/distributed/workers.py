"""What each rank runs; found by name in the processes that the tests start."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import slipstream as sl
from slipstream import distributed
from slipstream.data import Batch, Inputs
from slipstream.embedding import tables
from slipstream.errors import SlipstreamError
from slipstream.policies import PSSE, Guard, Importance, NoSkipping, Policy, Random

ROWS, SAMPLES, BATCH = 60, 330, 64
POLICIES: dict[str, Callable[[], Policy]] = {
    "none": NoSkipping,
    "random": lambda: Random(0.5),
    "importance": lambda: Importance(0.5, warmup_samples=100, bits=10),
    "rows": lambda: Random(0.5, level="rows"),
    "psse": lambda: PSSE(0.7, warmup_steps=1, every=2),
    "guard": lambda: Guard(first_copy=64, measure_every=1),
}

FAULTS = [([0, 1], 4), ([0, 0], 4), ([1, 2], 4), ([], 5)]
"""What each of two ranks trains on of samples 0 to 3 (none: its part), and how many the policy kept."""


class Model(nn.Module):
    """Two tables of one row size, one of another, one that is scored as a whole (tied), and a dense part."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.rows = nn.ModuleList([nn.Embedding(ROWS, 4), nn.Embedding(ROWS, 4, padding_idx=0)])
        self.bag = nn.EmbeddingBag(ROWS, 6, mode="mean")
        self.top = nn.Linear(14, 1)
        self.tied = tied

    def forward(self, ids: Tensor) -> Tensor:
        parts = [self.rows[0](ids[:, 0]), self.rows[1](ids[:, 1]), self.bag(ids)]
        score = self.top(torch.cat(parts, dim=1)).squeeze(1)
        return score + (self.rows[0].weight.mean(0) * parts[0]).sum(1) if self.tied else score


def cross_entropies(model: nn.Module, batch: Batch) -> Tensor:
    return functional.binary_cross_entropy_with_logits(model(batch.inputs.ids), batch.labels, reduction="none")


def batches() -> Iterator[Batch]:
    random = torch.Generator().manual_seed(5)
    ids = (torch.rand(SAMPLES, 2, generator=random) ** 3 * ROWS).int()
    labels = torch.rand(SAMPLES, generator=random).round()
    whole = Batch(Inputs(torch.empty(SAMPLES, 0), ids), labels, torch.arange(SAMPLES), torch.ones(SAMPLES))
    for first in range(0, SAMPLES, 50):
        yield whole.narrow(first, min(first + 50, SAMPLES))


def trained(optimizer: str, policy: str, tied: bool, world: int) -> dict[str, Tensor]:
    """Weights after an epoch; ``world`` 1: one process on the joint batches."""
    torch.manual_seed(dist.get_rank() if world > 1 and dist.get_rank() else 0)  # rank 0's start is everyone's
    model: Any = sl.convert(Model(tied))
    chosen = POLICIES[policy]()
    if world > 1:
        chosen = distributed.over_ranks(chosen)
    skipper = sl.Skipper(model, chosen, batch_size=BATCH, losses=cross_entropies)
    net = distributed.data_parallel(model) if world > 1 else model
    step = getattr(sl.optim, optimizer)(model.parameters(), lr=0.1)
    order = []
    for batch in skipper(batches()):
        own = distributed.part(batch) if world > 1 else batch
        order.append(batch.index)
        losses = cross_entropies(net, own)
        skipper.observe(batch, losses)
        losses = losses * own.weights
        step.zero_grad()
        (distributed.mean_loss(losses, batch) if world > 1 else losses.mean()).backward()
        if world > 1:
            distributed.exchange(net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.step()
    gates = {f"gate {name}": table.gate for name, table in skipper.tables.items() if table.gate is not None}
    return model.state_dict() | {"order": torch.cat(order)} | gates


class Tied(nn.Module):
    """Two lookups of one weight (shared), or one that is scored as a whole, with a dense part between."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.emb, self.mid = nn.Embedding(ROWS, 4), nn.Linear(4, 4)
        self.out = nn.Embedding(ROWS, 4) if shared else nn.Linear(4, ROWS, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        mid = self.mid(self.emb(ids))
        return (mid * self.out(ids)).sum(1) if isinstance(self.out, nn.Embedding) else self.out(mid).mean(1)


def drifted_when_tied(rank: int, shared: bool) -> list[str]:
    """What is not the same on both ranks after three steps."""
    torch.manual_seed(rank)
    model: Any = sl.convert(Tied(shared))
    net = distributed.data_parallel(model, process_group=dist.group.WORLD)
    step = sl.optim.SGD(model.parameters(), lr=0.1)
    for first in range(3):
        step.zero_grad()
        net(torch.arange(first + rank, first + rank + 5)).square().sum().backward()
        distributed.exchange(net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.step()
    return distributed.same_everywhere(model.state_dict())


def said_of(own: list[int], kept: int) -> str:
    """What is wrong, if the ranks train on these."""
    ledger = distributed.Ledger()
    whole = torch.arange(4)
    ledger.add(whole, torch.tensor(own) if own else whole[slice(*distributed.bounds(4))])
    try:
        ledger.finish(kept, None, 1)
    except SlipstreamError as error:
        return str(error)
    return ""


def train_and_save(rank: int, world: int, folder: str, cases: list[tuple[str, str, bool]]) -> None:
    """All cases in one start of the processes; each rank saves what it has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for case in cases:
        state = trained(*case, world)
        assert distributed.same_everywhere(state) == [], "replicas have drifted apart"
        torch.save(state, Path(folder) / f"{'-'.join(map(str, case))}-{rank}.pt")
    # What a step sends: a rank's distinct rows, not its tables.
    big: Any = sl.convert(nn.ModuleDict({"rows": nn.Embedding(100_000, 8)}))
    big["rows"](torch.arange(10 + rank).repeat(3)).sum().backward()
    torch.save(distributed.exchange(big)._asdict(), Path(folder) / f"exchanged-{rank}.pt")
    # Frozen rows stay at home, but for one; unless they count in the gradient's norm.
    table = tables(big)["rows.weight"]
    table.open_gate()[:9] = 0
    for name, options in (("open", {}), ("all", {"send_frozen": True})):
        big.zero_grad()
        big["rows"](torch.arange(10)).sum().backward()
        torch.save(distributed.exchange(big, **options)._asdict(), Path(folder) / f"{name}-{rank}.pt")
    # A rank without a single lookup takes part all the same.
    lone: Any = sl.convert(nn.ModuleDict({"rows": nn.Embedding(9, 2)}))
    if rank == 0:
        lone["rows"](torch.tensor([3, 3])).sum().backward()
    distributed.exchange(lone)
    torch.save(lone["rows"].weight.grad.to_dense(), Path(folder) / f"lone-{rank}.pt")
    ledger = distributed.Ledger()
    ledger.add(torch.arange(10), torch.arange(10)[slice(*distributed.bounds(10))])
    ledger.finish(10, range(10), 1)
    torch.save([said_of(own, kept) for own, kept in FAULTS], Path(folder) / f"ledger-{rank}.pt")
    torch.save([drifted_when_tied(rank, shared) for shared in (True, False)], Path(folder) / f"tied-{rank}.pt")
    own = dist.new_group([0])
    try:
        distributed.data_parallel(sl.convert(Tied(True)), process_group=own)
    except SlipstreamError as error:
        torch.save(str(error), Path(folder) / f"group-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Everything is saved. torch 2.13 now and then aborts ("terminate called without an active exception") while the
    # interpreter takes its threads down, which says nothing about what was computed: so it is not taken down.
    sys.stdout.flush()
    os._exit(0)
