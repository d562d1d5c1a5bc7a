"""Data-parallel training: tables replicated on every rank, their gradients exchanged as (ids, rows).

For tables that fit on each rank. What ``DistributedDataParallel`` does for the dense part, :func:`exchange` does for
the tables, without a dense gradient or a COO tensor: a rank sends each distinct row that it touched once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slipstream.distributed.parts import gather_uneven, need_group
from slipstream.embedding import RowGradient, Table, tables
from slipstream.errors import ConfigError
from slipstream.kernels.types import Lookups, RowGradients


class Exchanged(NamedTuple):
    """What one call of :func:`exchange` moved."""

    rows: int
    """Distinct rows that this rank sent, all tables together."""
    bytes: int
    """Bytes that this rank handed to the collectives: ids, rows, padding, and three numbers a table."""


def data_parallel(model: nn.Module, **kwargs: object) -> DistributedDataParallel:
    """``DistributedDataParallel`` over the dense part; tables start as rank 0's and are left to :func:`exchange`.

    Args:
        model: A converted model, the same on all ranks; on the CPU or on this rank's device.
        kwargs: Arguments of ``DistributedDataParallel``, but for a process group of its own.

    Raises:
        ConfigError: There is no process group, one was given, or nothing in the model is dense.
    """
    need_group()
    for name in ("process_group", "device_mesh"):
        if kwargs.get(name) not in (None, dist.group.WORLD):
            raise ConfigError(
                f"{name} is not supported: tables are exchanged among all ranks",
                remedy="start a torchrun of its own for each training",
            )
    found = tables(model)
    if not [p for name, p in model.named_parameters() if name not in found and p.requires_grad]:
        raise ConfigError("the model has nothing but tables", remedy="call exchange(model), without data_parallel")
    for table in found.values():
        dist.broadcast(table.weight.detach(), src=0)
    # By every name: DDP looks a tied weight up by each of its own.
    weights = {id(table.weight) for table in found.values()}
    named = model.named_parameters(remove_duplicate=False)
    ignored = [name for name, parameter in named if id(parameter) in weights]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    return DistributedDataParallel(model, **kwargs)  # type: ignore[arg-type]


@torch.no_grad()
def exchange(
    model: nn.Module | DistributedDataParallel,
    *,
    send_frozen: bool = False,
    tell: Callable[[Table, Tensor], None] | None = None,
) -> Exchanged:
    """Puts the mean of all ranks' table gradients in the place of each rank's own; between backward and the step.

    Every rank must call it, with the same tables. All ranks then hold the same gradients in the same order, so the same
    update, to the bit. Gradients of uses outside of lookups (a tied output layer) are averaged too, dense as they are.

    ::

        loss.backward()
        exchange(model)
        optimizer.step()

    Args:
        model: The model, or what :func:`data_parallel` made of it.
        send_frozen: Send rows whose gate is 0 too. No step updates them, but they are part of the gradient's norm: for
            those who clip it.
        tell: Called for each table with the rows, int64 [U], that the step is going to update.

    Raises:
        ConfigError: There is no process group, or lookups are drawn (policies subsampling and row_importance).
    """
    need_group()
    found = list(tables(model.module if isinstance(model, DistributedDataParallel) else model).values())
    trained = [table for table in found if table.weight.requires_grad]
    refuse_drawn(trained)
    if not trained:
        return Exchanged(0, 0)
    world, device = dist.get_world_size(), trained[0].weight.device
    own = [_distinct(table, send_frozen) for table in trained]
    facts = torch.tensor([[len(part.ids), part.dense, part.left_out] for part in own], device=device)
    facts_of = [torch.empty_like(facts) for _ in range(world)]
    dist.all_gather(facts_of, facts)
    sent = facts.numel() * facts.element_size()
    counts = [facts[:, 0].tolist() for facts in facts_of]
    has_dense = torch.stack(facts_of)[:, :, 1].any(0).tolist()

    ids_of, more = gather_uneven(torch.cat([part.ids for part in own]), [sum(count) for count in counts])
    sent += more
    rows_of: dict[int, list[Tensor]] = {}
    widths = sorted({table.weight.shape[1] for table in trained})
    for width in widths:
        at = [i for i, table in enumerate(trained) if table.weight.shape[1] == width]
        rows = torch.cat([own[i].rows for i in at])
        gathered, more = gather_uneven(rows, [sum(count[i] for i in at) for count in counts])
        sent += more
        pieces = [piece.split([count[i] for i in at]) for piece, count in zip(gathered, counts, strict=True)]
        rows_of |= {i: [of_rank[k] for of_rank in pieces] for k, i in enumerate(at)}
    ids_by_rank = [ids.split(count) for ids, count in zip(ids_of, counts, strict=True)]
    left_out = torch.stack(facts_of)[:, :, 2].sum(0).tolist()
    for i, table in enumerate(trained):
        ids = torch.cat([of_rank[i] for of_rank in ids_by_rank])
        dense = _mean_dense(table, world) if has_dense[i] else None
        sent += 0 if dense is None else dense.numel() * dense.element_size()
        _place(table, ids, torch.cat(rows_of[i]).div_(world), dense)
        table.count(left_out[i], left_out[i])
        if tell is not None:
            tell(table, ids)
    return Exchanged(sum(len(part.ids) for part in own), sent)


@torch.no_grad()
def mean_dense(model: nn.Module, extra: Tensor | None = None) -> tuple[Tensor, int]:
    """Puts the mean of all ranks' gradients of the dense parameters in the place of each rank's own.

    One all-reduce in the order of the parameters: unlike the buckets of ``DistributedDataParallel``, which are laid
    out anew after its first step, it gives a resumed training the same bits. Every rank must call it.

    Args:
        model: The model; its tables are left to :func:`exchange`.
        extra: Numbers [E] to add up over the ranks on the way, such as the loss.

    Returns:
        The sums of ``extra``, and the bytes handed to the collective.

    Raises:
        ConfigError: There is no process group.
    """
    need_group()
    found = tables(model)
    dense = [p for name, p in model.named_parameters() if name not in found and p.requires_grad]
    extra = torch.empty(0) if extra is None else extra
    # Whether anyone has a gradient: where nobody has, the optimizer is to leave the parameter alone.
    have = torch.tensor([float(parameter.grad is not None) for parameter in dense])
    zeros = (torch.zeros_like(p) if p.grad is None else p.grad for p in dense)
    flat = torch.cat([*(gradient.reshape(-1) for gradient in zeros), have, extra])
    dist.all_reduce(flat)
    sums = flat.split([*(parameter.numel() for parameter in dense), len(dense), len(extra)])
    world = dist.get_world_size()
    for parameter, total, there in zip(dense, sums, sums[-2].tolist(), strict=False):
        if there:
            parameter.grad = (total / world).view_as(parameter).to(parameter.dtype)
    return sums[-1], flat.numel() * flat.element_size()


def same_everywhere(values: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same, to the bit, on all ranks: replicas that drifted apart."""
    need_group()
    different: list[str] = []
    for name, value in values.items():
        first = value.detach().clone()
        dist.broadcast(first, src=0)
        differs = torch.tensor([int(not torch.equal(first, value.detach()))])
        dist.all_reduce(differs)
        if differs.item():
            different.append(name)
    return different


class _Part(NamedTuple):
    """A rank's gradient of a table."""

    ids: Tensor
    """int64 [U], distinct."""
    rows: Tensor
    """[U, D]."""
    dense: bool
    """Whether there is a dense gradient beside."""
    left_out: int
    """Rows left out because they are frozen."""


def refuse_drawn(tables: Iterable[object]) -> None:
    """Raise ConfigError if lookups are drawn one by one.

    What ranks exchange no longer tells samples apart, and draws by what a rank knows of its own part would not be those
    of one process.
    """
    for table in (table for table in tables if isinstance(table, Table)):
        name = "subsampling" if table.by_sample else "row_importance"
        if table.by_sample or table.drawn_by() is not None:
            what = f"policy {name} draws for each sample's lookups, and ranks exchange sums of rows"
            raise ConfigError(what, remedy="use psse, saturation or a policy of inputs, or train in one process")


def _distinct(table: Table, send_frozen: bool) -> _Part:
    """The distinct rows of this rank's gradient that have to be sent."""
    weight, grad = table.weight, table.weight.grad
    if not isinstance(grad, RowGradient):
        nothing = weight.new_empty(0, dtype=torch.int64), weight.new_empty(0, weight.shape[1])
        return _Part(*nothing, grad is not None, 0)
    ids, rows = grad.to_rows()
    left_out = 0
    if not send_frozen and table.gate is not None and len(ids):
        open_ = table.gate[ids] != 0
        if not bool(open_.any()):  # one at least: a step of nothing but frozen rows is a step of the table
            open_[0] = True
        left_out = int((~open_).sum())
        ids, rows = (ids[open_], rows[open_]) if left_out else (ids, rows)
    return _Part(ids, rows, grad.dense is not None, left_out)


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
    gradient.start(RowGradients(lookups, rows.unsqueeze(1), ()), (0,), dense)
    table.weight.grad = gradient
