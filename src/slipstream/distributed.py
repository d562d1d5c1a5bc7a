"""Data-parallel training: tables replicated on every rank, their gradients exchanged as (ids, rows).

A first cut for tables that fit on each rank. What ``DistributedDataParallel`` does for the dense part, :func:`exchange`
does for the tables, without a dense gradient or a COO tensor: a rank sends each distinct row that it touched once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slipstream.data.batch import Batch
from slipstream.embedding import RowGradient, Table, tables
from slipstream.errors import ConfigError
from slipstream.kernels.types import Lookups, RowGradients
from slipstream.policies import Policy


class Exchanged(NamedTuple):
    """What one call of :func:`exchange` moved."""

    rows: int
    """Distinct rows that this rank sent, all tables together."""
    bytes: int
    """Bytes of ids and rows that this rank handed to the collectives, padding included."""


def data_parallel(model: nn.Module, **kwargs: object) -> DistributedDataParallel:
    """``DistributedDataParallel`` over the dense part; tables start as rank 0's and are left to :func:`exchange`.

    Args:
        model: A converted model, the same on all ranks; on the CPU or on this rank's device.
        kwargs: Arguments of ``DistributedDataParallel``.

    Raises:
        ConfigError: There is no process group, or nothing in the model is dense.
    """
    _need_group()
    found = tables(model)
    if not [p for name, p in model.named_parameters() if name not in found and p.requires_grad]:
        raise ConfigError("the model has nothing but tables", remedy="call exchange(model), without data_parallel")
    for table in found.values():
        dist.broadcast(table.weight.detach(), src=0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(found))
    return DistributedDataParallel(model, **kwargs)  # type: ignore[arg-type]


def part(batch: Batch) -> Batch:
    """This rank's samples of a batch of all ranks: every W-th, beginning with the rank's own number.

    A Skipper on every rank reads the same samples and decides alike, as decisions hash the sample's number; each batch
    that it hands out is then shared out. Copies.
    """
    _need_group()
    return batch.select(torch.arange(dist.get_rank(), len(batch), dist.get_world_size()))


def mean_loss(losses: Tensor, batch: Batch) -> Tensor:
    """This rank's share of the mean loss of a batch of all ranks, times W, as ``DistributedDataParallel`` divides by W.

    Right for parts of unequal size, the last batch's.

    Args:
        losses: Weighted loss of each of this rank's samples, float32 [B_rank].
        batch: The batch of all ranks.
    """
    return losses.sum() * (dist.get_world_size() / len(batch))


def check_policy(policy: Policy) -> None:
    """Refuses policies whose gates would differ between ranks.

    Raises:
        ConfigError: The policy decides by the lookups or by the model's losses; a rank sees only its own.
    """
    listens = type(policy).observe_lookups is not Policy.observe_lookups
    if listens or policy.wants_losses:
        seen = "lookups" if listens else "losses"
        raise ConfigError(
            f"policy {policy.name!r} decides by the {seen} that a rank sees, and ranks would decide differently",
            remedy="use an input policy (random, importance, slipstream) or random rows",
        )


@torch.no_grad()
def exchange(model: nn.Module | DistributedDataParallel) -> Exchanged:
    """Puts the mean of all ranks' table gradients in the place of each rank's own; between backward and the step.

    Every rank must call it, with the same tables. All ranks then hold the same gradients in the same order, so the same
    update, to the bit. Gradients of uses outside of lookups (a tied output layer) are averaged too, dense as they are.

    ::

        loss.backward()
        exchange(model)
        optimizer.step()

    Args:
        model: The model, or what :func:`data_parallel` made of it.

    Raises:
        ConfigError: There is no process group.
    """
    _need_group()
    found = list(tables(model.module if isinstance(model, DistributedDataParallel) else model).values())
    trained = [table for table in found if table.weight.requires_grad]
    if not trained:
        return Exchanged(0, 0)
    world, device = dist.get_world_size(), trained[0].weight.device
    own = [_distinct(table) for table in trained]
    facts = torch.tensor([[len(ids), dense] for ids, _, dense in own], device=device)
    facts_of = [torch.empty_like(facts) for _ in range(world)]
    dist.all_gather(facts_of, facts)
    counts = [facts[:, 0].tolist() for facts in facts_of]
    has_dense = torch.stack(facts_of)[:, :, 1].any(0).tolist()

    ids_of, sent = _gather(torch.cat([ids for ids, _, _ in own]), [sum(count) for count in counts])
    rows_of: dict[int, list[Tensor]] = {}
    widths = sorted({table.weight.shape[1] for table in trained})
    for width in widths:
        at = [i for i, table in enumerate(trained) if table.weight.shape[1] == width]
        rows = torch.cat([own[i][1] for i in at])
        gathered, more = _gather(rows, [sum(count[i] for i in at) for count in counts])
        sent += more
        pieces = [piece.split([count[i] for i in at]) for piece, count in zip(gathered, counts, strict=True)]
        rows_of |= {i: [of_rank[k] for of_rank in pieces] for k, i in enumerate(at)}
    ids_by_rank = [ids.split(count) for ids, count in zip(ids_of, counts, strict=True)]
    for i, table in enumerate(trained):
        ids = torch.cat([of_rank[i] for of_rank in ids_by_rank])
        dense = _mean_dense(table, world) if has_dense[i] else None
        _place(table, ids, torch.cat(rows_of[i]).div_(world), dense)
    return Exchanged(sum(len(ids) for ids, _, _ in own), sent)


def same_everywhere(values: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same, to the bit, on all ranks: replicas that drifted apart."""
    _need_group()
    different: list[str] = []
    for name, value in values.items():
        first = value.detach().clone()
        dist.broadcast(first, src=0)
        differs = torch.tensor([int(not torch.equal(first, value.detach()))])
        dist.all_reduce(differs)
        if differs.item():
            different.append(name)
    return different


def _distinct(table: Table) -> tuple[Tensor, Tensor, bool]:
    """The distinct rows of this rank's gradient, int64 [U] and float32 [U, D], and whether there is a dense one."""
    weight, grad = table.weight, table.weight.grad
    width = weight.shape[1]
    if grad is None:
        return weight.new_empty(0, dtype=torch.int64), weight.new_empty(0, width), False
    if not isinstance(grad, RowGradient):
        return weight.new_empty(0, dtype=torch.int64), weight.new_empty(0, width), True
    ids, rows = grad.to_rows()
    return ids, rows, grad.dense is not None


def _mean_dense(table: Table, world: int) -> Tensor:
    grad = table.weight.grad
    own = grad.dense if isinstance(grad, RowGradient) else grad
    dense = torch.zeros_like(table.weight) if own is None else own.clone()
    dist.all_reduce(dense)
    return dense.div_(world)


def _place(table: Table, ids: Tensor, rows: Tensor, dense: Tensor | None) -> None:
    """Make the exchanged gradient the table's."""
    table.weight.grad = None
    if not len(ids):
        table.weight.grad = dense
        return
    gradient = RowGradient(table)
    lookups = Lookups(ids.unsqueeze(1), None, 1)
    gradient.start(RowGradients(lookups, rows.unsqueeze(1), (), lookups.version()), (0,), dense)
    table.weight.grad = gradient


def _gather(own: Tensor, sizes: list[int]) -> tuple[list[Tensor], int]:
    """Each rank's tensor [U_r, ...], and the bytes sent; padded to the largest, as collectives want equal shapes."""
    most = max(sizes)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    everyone = [torch.empty_like(padded) for _ in sizes]
    if most:
        dist.all_gather(everyone, padded)
    return [piece[:size] for piece, size in zip(everyone, sizes, strict=True)], padded.numel() * padded.element_size()


def _need_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "there is no process group", remedy="call torch.distributed.init_process_group, under torchrun"
        )
