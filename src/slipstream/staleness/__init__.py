"""Signals of how much a row or an input still teaches the model, one file each. Policies read them and decide."""

from slipstream.staleness.popularity import DecayedCounts, ExactCounts, PopularityCounts, make_counts
from slipstream.staleness.threshold import Cut, share_cut

__all__ = ["Cut", "DecayedCounts", "ExactCounts", "PopularityCounts", "make_counts", "share_cut"]
