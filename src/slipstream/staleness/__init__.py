"""Signals of how much a row or an input still teaches the model, one file each. Policies read them and decide."""

from slipstream.staleness.popular_rows import CountedRows, CutName, Kept, PopularRows, Rule, SketchedRows
from slipstream.staleness.popularity import DecayedCounts, ExactCounts, PopularityCounts, make_counts
from slipstream.staleness.sketch import PopularitySketch
from slipstream.staleness.tail import TailCounts, TailInputs
from slipstream.staleness.threshold import Cut, Reduce, share_cut

__all__ = [
    "CountedRows",
    "Cut",
    "CutName",
    "DecayedCounts",
    "ExactCounts",
    "Kept",
    "PopularRows",
    "PopularityCounts",
    "PopularitySketch",
    "Reduce",
    "Rule",
    "SketchedRows",
    "TailCounts",
    "TailInputs",
    "make_counts",
    "share_cut",
]
