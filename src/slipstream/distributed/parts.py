"""Which part of a batch is a rank's, and how the parts come together again."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.errors import ConfigError


def need_group() -> None:
    """Raise ConfigError unless there is a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "there is no process group", remedy="call torch.distributed.init_process_group, under torchrun"
        )


def bounds(samples: int, rank: int | None = None) -> tuple[int, int]:
    """First and last + 1 of a rank's share of so many samples; shares differ by one sample at most.

    Args:
        samples: B.
        rank: Whose; None: this one's.
    """
    world, rank = dist.get_world_size(), dist.get_rank() if rank is None else rank
    return samples * rank // world, samples * (rank + 1) // world


def part(batch: Batch) -> Batch:
    """This rank's samples of a batch of all ranks: one stretch of it, as views.

    A Skipper on every rank reads the same samples and decides alike, as decisions hash the sample's number; each batch
    that it hands out is then shared out. A rank's rows of a memory-mapped batch are the only ones that it touches.
    """
    need_group()
    return batch.narrow(*bounds(len(batch)))


def mean_loss(losses: Tensor, batch: Batch) -> Tensor:
    """This rank's share of the mean loss of a batch of all ranks, times W, as ``DistributedDataParallel`` divides by W.

    Right for parts of unequal size, the last batch's.

    Args:
        losses: Weighted loss of each of this rank's samples, float32 [B_rank].
        batch: The batch of all ranks.
    """
    return losses.sum() * (dist.get_world_size() / len(batch))


def gather(own: Tensor, samples: int) -> Tensor:
    """What all ranks have of their parts (see :func:`bounds`), in order: [B_rank, …] each gives [B, …].

    Every rank must call it.

    Args:
        own: This rank's.
        samples: B.
    """
    need_group()
    shares = [bounds(samples, rank) for rank in range(dist.get_world_size())]
    pieces, _ = gather_uneven(own, [last - first for first, last in shares])
    return torch.cat(pieces)


def gather_uneven(own: Tensor, sizes: list[int]) -> tuple[list[Tensor], int]:
    """Each rank's tensor [U_r, …], and the bytes sent; padded to the largest, as collectives want equal shapes."""
    most = max(sizes)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    everyone = [torch.empty_like(padded) for _ in sizes]
    if most:
        dist.all_gather(everyone, padded)
    return [piece[:size] for piece, size in zip(everyone, sizes, strict=True)], padded.numel() * padded.element_size()
