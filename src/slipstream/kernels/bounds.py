"""What compiled code is not asked: whether bags lie within their ids. One vectorised look before it is called."""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.errors import IndexOutOfRange


def checked_offsets(offsets: Tensor, ids: int, bags: int | None = None) -> Tensor:
    """Offsets as contiguous int64, which rise from 0 or more to the number of ids at most.

    Args:
        offsets: [bags + 1].
        ids: How many ids there are.
        bags: How many bags there must be; None: any number.

    Raises:
        IndexOutOfRange: They fall, leave the ids, or are not so many.
    """
    offsets = offsets.to(torch.int64).contiguous()
    if bags is not None and offsets.numel() != bags + 1:
        raise IndexOutOfRange(f"{offsets.numel()} offsets for {bags} bags", remedy="pass one more than bags")
    if offsets.numel() and (int(offsets[0]) < 0 or int(offsets[-1]) > ids or bool((offsets.diff() < 0).any())):
        raise IndexOutOfRange(
            f"offsets must not fall and must lie between 0 and the number of ids, {ids}",
            remedy="pass offsets as torch.nn.EmbeddingBag takes them",
        )
    return offsets
