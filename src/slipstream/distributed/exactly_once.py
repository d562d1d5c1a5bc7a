"""Whether the ranks together trained on each sample that was handed out exactly once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from slipstream.errors import SlipstreamError

_PIECE = 1 << 20


class Ledger:
    """Adds up what was handed out to all ranks, and what this one trained on: samples, their numbers, and the squares.

    Numbers are int64 and wrap around alike on both sides. A sample that two ranks trained on and another that none did
    would have to agree in number and in square.
    """

    def __init__(self) -> None:
        self._handed_out = torch.zeros(3, dtype=torch.int64)
        self._own = torch.zeros(3, dtype=torch.int64)
        self._whole = True

    def add(self, batch: Tensor, own: Tensor) -> None:
        """A batch was handed out to all ranks, and this one trains on its part.

        Args:
            batch: int64 [B], the samples' numbers.
            own: int64 [B_rank], those of this rank's part.
        """
        self._handed_out += _sums(batch)
        self._own += _sums(own)

    def check(self) -> None:
        """Adds up the ranks' parts; every rank must call it.

        Raises:
            SlipstreamError: They are not what was handed out.
        """
        total = self._own.clone()
        dist.all_reduce(total)
        if not torch.equal(total, self._handed_out):
            trained, handed_out = int(total[0]), int(self._handed_out[0])
            what = f"{handed_out:,} samples were handed out and the ranks trained on {trained:,}"
            if trained == handed_out:
                what = f"of {handed_out:,} samples some were trained on twice and others never"
            raise SlipstreamError(
                f"not every sample was trained on exactly once: {what}",
                remedy="use the same version, data and configuration on all ranks",
            )
        if dist.get_rank():
            self._own.zero_()
        else:
            self._own.copy_(total)

    def finish(self, kept: int, samples: range | None, epochs: int) -> None:
        """The check at the end of a training; every rank must call it.

        Args:
            kept: Samples that the policy kept: those handed out.
            samples: The samples of an epoch, where the policy kept all of them.
            epochs: How often they were handed out then.

        Raises:
            SlipstreamError: A sample was lost on the way, or handed out twice.
        """
        self.check()
        if not self._whole:
            return
        expected = self._handed_out.clone()
        expected[0] = kept
        if samples is not None:
            expected = torch.zeros(3, dtype=torch.int64)
            for first in range(samples.start, samples.stop, _PIECE):
                expected += epochs * _sums(torch.arange(first, min(first + _PIECE, samples.stop)))
        if not torch.equal(expected, self._handed_out):
            raise SlipstreamError(
                f"not every sample was trained on exactly once: {int(expected[0]):,} were to be handed out, "
                f"{int(self._handed_out[0]):,} were"
            )

    def state(self) -> list[int] | None:
        """Plain numbers, after :meth:`check`; None where a part of the training is not known."""
        return self._handed_out.tolist() if self._whole else None

    def load(self, state: Sequence[int] | None) -> None:
        """Goes on after these: what all ranks trained on so far counts as rank 0's.

        Args:
            state: None: nothing is known of the training so far, which was one process's.
        """
        if state is None:
            self._whole = False
            return
        self._handed_out = torch.tensor(state, dtype=torch.int64)
        self._own = self._handed_out.clone() if dist.get_rank() == 0 else torch.zeros(3, dtype=torch.int64)


def _sums(index: Tensor) -> Tensor:
    return torch.stack([torch.tensor(index.numel()), index.sum(), (index * index).sum()])
