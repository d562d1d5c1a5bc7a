"""Readers, encoder, memory-mapped column store and batches.

``prepare`` turns raw files into a :class:`Store` once; training then reads batches from the memory map.
"""

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.batches import Batches
from slipstream.data.columns import Columns
from slipstream.data.schema import FeatureInfo, MultiHot, Schema
from slipstream.data.store import Store, StoreWriter

__all__ = ["Bag", "Batch", "Batches", "Columns", "FeatureInfo", "Inputs", "MultiHot", "Schema", "Store", "StoreWriter"]
