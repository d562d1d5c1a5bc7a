"""The prepared data as every contestant reads it: NumPy files, mapped. Needs NumPy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Arrays:
    """Samples in time order, N of them with F ids and n dense columns each.

    Attributes:
        ids: int32 ``[N, F]``.
        dense: float32 ``[N, n]``.
        labels: float32 ``[N]``.
        rows: Rows of each of the F tables.
        names: Names of the F features.
    """

    ids: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    rows: list[int]
    names: list[str]

    @classmethod
    def load(cls, folder: str | Path) -> Arrays:
        """Maps the files of a folder that :mod:`benchmarks.peers.datasets` wrote."""
        folder = Path(folder)
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        ids, dense, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "dense", "labels"))
        return cls(ids, dense, labels, about["rows"], about["names"])
