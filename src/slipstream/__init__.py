"""Slipstream: faster training of recommender models by skipping work that no longer teaches the model anything.

The names below are loaded on first use, so ``import slipstream`` costs next to nothing and the command line can set
OpenMP's spin count before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slipstream._version import __version__

if TYPE_CHECKING:
    from slipstream import distributed, export, interop, optim, policies
    from slipstream.embedding import Embedding, EmbeddingBag, EmbeddingCollection, check, convert
    from slipstream.policies import Skipper

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingCollection",
    "Skipper",
    "__version__",
    "check",
    "convert",
    "distributed",
    "export",
    "interop",
    "optim",
    "policies",
]

_HOME = {
    "Embedding": "slipstream.embedding",
    "EmbeddingBag": "slipstream.embedding",
    "EmbeddingCollection": "slipstream.embedding",
    "Skipper": "slipstream.policies",
    "check": "slipstream.embedding",
    "convert": "slipstream.embedding",
}
_ROOMS = frozenset({"distributed", "export", "interop", "optim", "policies"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"slipstream.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'slipstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
