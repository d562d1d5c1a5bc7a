"""A seeded shuffle that needs little memory and reads the disk in long runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 256
"""Neighbouring samples that are read together."""
WINDOW_BLOCKS = 1024
"""Blocks that are mixed with each other: 262,144 samples."""


class BlockShuffle:
    """The order of ``n`` samples, drawn from (seed, epoch).

    Blocks of 256 neighbours are put in random order; 1,024 consecutive blocks of that order make a window, and the
    samples of a window are permuted uniformly. Up to 262,144 samples this is a uniform shuffle; above, two neighbours
    land within one window. Memory: 8 bytes a block and 8 bytes a sample of one window, and any position can be reached
    without drawing those before it.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        self._n = n
        self._key = (seed, epoch)
        blocks = -(-n // BLOCK)
        self._blocks = np.random.default_rng((*self._key, 0)).permutation(blocks)
        lengths = np.full(blocks, BLOCK, dtype=np.int64)
        if blocks:
            lengths[self._blocks == blocks - 1] = n - BLOCK * (blocks - 1)
        ends = np.cumsum(np.add.reduceat(lengths, np.arange(0, blocks, WINDOW_BLOCKS)) if blocks else lengths)
        self._starts = np.concatenate([[0], ends])
        self._cached: tuple[int, npt.NDArray[np.int64]] | None = None

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Samples at the positions ``start`` to ``stop`` of the order, int64 ``[stop - start]``."""
        parts: list[npt.NDArray[np.int64]] = []
        while start < stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, last = int(self._starts[window]), int(self._starts[window + 1])
            parts.append(self._window(window)[start - first : min(stop, last) - first])
            start = min(stop, last)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _window(self, window: int) -> npt.NDArray[np.int64]:
        if self._cached is None or self._cached[0] != window:
            blocks = self._blocks[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS].astype(np.int64)
            rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
            rows = rows[rows < self._n]
            np.random.default_rng((*self._key, 1 + window)).shuffle(rows)
            self._cached = (window, rows)
        return self._cached[1]
