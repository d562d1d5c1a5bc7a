"""Tables and the modules that look them up."""

from slipstream.embedding.cached import CachedEmbeddingCollection
from slipstream.embedding.collection import EmbeddingCollection, PlainEmbeddingCollection, TableConfig
from slipstream.embedding.convert import Finding, check, convert, tables
from slipstream.embedding.memory import mapped_table
from slipstream.embedding.modules import Embedding, EmbeddingBag
from slipstream.embedding.pulled import PulledEmbeddingCollection
from slipstream.embedding.row_gradient import RowGradient
from slipstream.embedding.table import FROZEN, OPEN, Table

__all__ = [
    "FROZEN",
    "OPEN",
    "CachedEmbeddingCollection",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingCollection",
    "Finding",
    "PlainEmbeddingCollection",
    "PulledEmbeddingCollection",
    "RowGradient",
    "Table",
    "TableConfig",
    "check",
    "convert",
    "mapped_table",
    "tables",
]
