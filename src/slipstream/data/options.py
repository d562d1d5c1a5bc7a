"""What can be chosen when raw files are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream.data.names import DenseTransform, NegativeMethod
from slipstream.data.negatives import NegativeOptions
from slipstream.data.schema import MAX_ROWS
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.data.encoder import EncoderSpec
    from slipstream.data.formats import RawData


class PrepareOptions(BaseModel):
    """How raw files are prepared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_frequency: int = Field(default=1, ge=1, le=MAX_ROWS)
    """Categories seen less often in the fitted rows share row 0, out of vocabulary."""
    hash_rows: int | None = Field(default=None, ge=2, le=MAX_ROWS)
    """When set, categories are hashed to tables of so many rows and there are no vocabularies."""
    dense: DenseTransform | None = None
    """Transform of dense columns: log1p, standardise or none. None: as the format has it."""
    fit_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows, first in time, on which vocabularies and statistics are fitted."""
    label_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Labels at least this are 1, others 0. None: as the format or schema has it."""
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    """stop: raise an error that says where. quarantine: write the row to ``quarantine.tsv`` in the store and go on."""
    nan: Literal["error", "missing"] = "error"
    """Whether a dense value that is NaN, infinite, NA, N/A, null or None makes a bad row, or counts as missing."""
    negatives: int | None = Field(default=None, ge=0, le=1000)
    """Negatives drawn after each row of data without label. None: as the format has it (globo 2, pairs 1)."""
    negative_method: NegativeMethod | None = None
    """recent, uniform or popularity. None: as the format has it."""
    negative_window: int = Field(default=3000, ge=1, le=MAX_ROWS)
    """Preceding rows from which ``recent`` draws."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the negatives, and of the order of pairs."""
    threads: int = Field(default=2, ge=1, le=64)
    """Threads that parse and encode, beside the one that reads and writes."""


def as_before(options: PrepareOptions, encoder: EncoderSpec, provenance: Mapping[str, Any]) -> PrepareOptions:
    """The options for a slice of data that extends a prepared one: what was not said is as it was there.

    Args:
        options: Those that were given.
        encoder: Of the data set that is extended.
        provenance: Of its manifest.
    """
    before: dict[str, Any] = {
        "min_frequency": encoder.min_frequency,
        "nan": "missing" if encoder.nan_is_missing else "error",
        "label_threshold": encoder.columns.label_threshold,
    }
    with suppress(ValidationError):  # whoever writes stores may say there what they like
        drawn = NegativeOptions.model_validate(provenance.get("negatives"))
        before |= {"negatives": drawn.per_positive, "negative_method": drawn.method}
        before |= {"negative_window": drawn.window, "seed": drawn.seed}
    return options.model_copy(update={k: v for k, v in before.items() if k not in options.model_fields_set})


def negative_options(data: RawData, options: PrepareOptions) -> NegativeOptions | None:
    """How negatives are drawn for ``data``; None when it has a label.

    Raises:
        ConfigError: Negatives are asked for where there is a label, or where users and items are unknown.
    """
    if data.schema.label is not None:
        if options.negatives:
            raise ConfigError("negatives can only be drawn for data without a label", remedy="leave the label out")
        return None
    count = data.negatives if options.negatives is None else options.negatives
    if count and (data.schema.item is None or data.schema.user is None):
        raise ConfigError("negatives need to know the user and item columns", remedy="name them in the schema")
    return NegativeOptions(
        per_positive=count,
        method=options.negative_method or data.negative_method,
        window=options.negative_window,
        seed=options.seed,
    )
