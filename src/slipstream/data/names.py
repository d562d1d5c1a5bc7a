"""Names of formats, transforms and draws of negatives: what a configuration needs to know of the readers."""

from __future__ import annotations

from typing import Literal, get_args

FormatName = Literal[
    "criteo", "criteo_terabyte", "avazu", "movietweetings", "movielens", "globo", "pairs", "parquet", "csv"
]
FORMATS: tuple[str, ...] = get_args(FormatName)
DenseTransform = Literal["log1p", "standardise", "none"]
NegativeMethod = Literal["recent", "uniform", "popularity"]
