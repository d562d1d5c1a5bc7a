"""What the columns are: :class:`Schema` of a raw file, :class:`FeatureInfo` of a prepared feature."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slipstream import documents
from slipstream.data.atomic import write_text
from slipstream.errors import ConfigError

MAX_ROWS = 2**31 - 1
"""Rows one table may have: ids are int32."""


class FeatureInfo(BaseModel):
    """A sparse feature of a prepared data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """The column it came from."""
    num_rows: int = Field(ge=1, le=MAX_ROWS)
    """Rows of its table, including row 0, which stands for every value out of the vocabulary."""
    multi_hot: bool = False
    """Whether a sample holds any number of ids (a bag) rather than exactly one."""


class MultiHot(BaseModel):
    """A column that holds several values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """The column's name."""
    separator: str = Field(default="|", pattern=r"^[\x20-\x7e\t]$")
    """The ASCII character between two values in a text; list columns of Parquet need none."""


class Schema(BaseModel):
    """Which column of a raw table is what.

    In YAML::

    label: click
    time: timestamp          # unix seconds, optional: without it rows are taken to be in time order
    categorical: [user, item, country]
    dense: [price]
    multi_hot: [{name: tags, separator: "|"}]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = None
    """The label's column. None: every row is a positive (clicks), and non-clicks are to be drawn."""
    label_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """When set, the label is 1 where the column is at least this, else 0."""
    time: str | None = None
    """Column of unix seconds (integers; beyond the year 5138 they are taken for milliseconds or finer) or of dates."""
    categorical: tuple[str, ...] = ()
    """Columns with one category a row."""
    dense: tuple[str, ...] = ()
    """Columns of numbers."""
    multi_hot: tuple[MultiHot, ...] = ()
    """Columns with several categories a row."""
    calendar: tuple[Literal["hour", "weekday"], ...] = ()
    """Categories that are made from the time (UTC)."""
    user: str | None = None
    """The column that says who clicked, for drawing negatives."""
    item: str | None = None
    """The column that says what was clicked, for drawing negatives."""

    @model_validator(mode="after")
    def _check(self) -> Schema:
        names = [*self.categorical, *self.dense, *(column.name for column in self.multi_hot), *self.calendar]
        names += [name for name in (self.label, self.time) if name is not None]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"column {twice[0]!r} has two roles")
        if self.label_threshold is not None and self.label is None:
            raise ValueError("label_threshold needs a label column")
        if self.calendar and self.time is None:
            raise ValueError(f"{' and '.join(self.calendar)} need a time column")
        for role in ("user", "item"):
            name = getattr(self, role)
            if name is not None and name not in self.categorical:
                raise ValueError(f"the {role} column {name!r} is not among the categorical columns")
        if not (self.categorical or self.calendar or self.multi_hot or self.dense):
            raise ValueError("no feature: name at least one categorical, dense or multi_hot column")
        return self

    @property
    def one_hot(self) -> tuple[str, ...]:
        """Names of the one-hot features in the order of the ids: categorical, then calendar."""
        return (*self.categorical, *self.calendar)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, label and time included."""
        first = tuple(name for name in (self.label, self.time) if name is not None)
        return (*first, *self.dense, *self.categorical, *(column.name for column in self.multi_hot))

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Reads a schema from a YAML file.

        Raises:
            ConfigError: The file cannot be read, is no YAML, or says something that is no schema.
        """
        tree = documents.read_settings(path)
        remedy = "a schema has label, time, categorical, dense, multi_hot, calendar, user, item and label_threshold"
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            said = "there is no such role" if first["type"] == "extra_forbidden" else said
            raise ConfigError(f"{path}: {where + ': ' if where else ''}{said}", remedy=remedy) from error

    def save(self, path: str | Path) -> None:
        """Writes the schema as YAML, atomically."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
