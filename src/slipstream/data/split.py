"""Splits in the order of the samples, which is the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import TypeAdapter, ValidationError

from slipstream.data.store import Store
from slipstream.errors import ConfigError

_RANGES = TypeAdapter(dict[str, tuple[int, int]])


def split_by_time(
    store: Store, fractions: Sequence[float] | None = None, *, positions: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Cuts a store into consecutive ranges.

    Args:
        store: The data, in time order.
        fractions: Shares of the samples, e.g. ``(0.8, 0.1, 0.1)``; they must add up to 1.
        positions: Instead: the samples at which to cut, rising.

    Returns:
        ``(start, stop)`` of each range.

    Raises:
        ConfigError: The shares do not add up to 1, or the positions do not rise within the store.
    """
    if (fractions is None) == (positions is None):
        raise ConfigError("give either fractions or positions")
    n = store.num_samples
    if fractions is not None:
        if abs(sum(fractions) - 1) > 1e-6 or any(share < 0 for share in fractions):
            raise ConfigError(f"the shares {tuple(fractions)} must not be negative and must add up to 1")
        cuts = [0]
        for i in range(len(fractions) - 1):
            cuts.append(round(n * min(sum(fractions[: i + 1]), 1.0)))
        cuts.append(n)
    else:
        cuts = [0, *(positions or ()), n]
    if cuts != sorted(cuts):
        raise ConfigError(f"the positions {tuple(cuts[1:-1])} must rise from 0 to {n}")
    return list(pairwise(cuts))


def named_splits(store: Store) -> dict[str, tuple[int, int]]:
    """The ranges that came with the raw data, by name (Gowalla: train and test); empty when there are none.

    Raises:
        ConfigError: What the store says of its splits is damaged.
    """
    try:
        ranges = _RANGES.validate_python(store.manifest.provenance.get("splits", {}))
    except ValidationError as error:
        raise ConfigError(f"the splits of {store.path} are damaged") from error
    if any(not 0 <= start <= stop <= store.num_samples for start, stop in ranges.values()):
        raise ConfigError(f"the splits of {store.path} are outside of it")
    return ranges
