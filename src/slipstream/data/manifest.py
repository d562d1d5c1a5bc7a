"""``store.json``: what a prepared data set consists of, and where its files are."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from slipstream import documents
from slipstream.data.schema import FeatureInfo
from slipstream.errors import DataError, NotPrepared, first_problem

FORMAT_VERSION = 1
MANIFEST = "store.json"
IDS, DENSE, TIME = "ids.i32", "dense.f32", "time.i64"
LABELS = {"uint8": "labels.u8", "float32": "labels.f32"}


def safe_name(name: str) -> str:
    """A file name for the column ``name``: itself where it is harmless, else its letters with a short hash."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:60]}-{digest}"


def bag_files(name: str) -> tuple[str, str]:
    """The files of values and of offsets of the multi-hot feature ``name``."""
    return f"bags/{safe_name(name)}.values.i32", f"bags/{safe_name(name)}.offsets.i64"


class FileInfo(BaseModel):
    """One file of the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The contents of ``store.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    num_samples: int = Field(ge=0)
    num_positives: float = Field(allow_inf_nan=False)
    """Sum of the labels."""
    dense: tuple[str, ...]
    """Names of the dense columns."""
    features: tuple[FeatureInfo, ...]
    """One-hot features in the order of the ids, then multi-hot ones in the order of the bags."""
    label_dtype: Literal["uint8", "float32"]
    has_time: bool
    files: dict[str, FileInfo]
    """By path below the store's folder."""
    provenance: dict[str, JsonValue] = {}
    """Where the data came from: source, options, versions, counts. Not part of the fingerprint."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"file {name[:80]!r} is outside the store")
        for names in ([feature.name for feature in self.features], self.dense):
            if len(set(names)) != len(names):
                raise ValueError("two features have the same name")
        kinds = [feature.multi_hot for feature in self.features]
        if kinds != sorted(kinds):
            raise ValueError("a one-hot feature follows a multi-hot one")
        return self

    @property
    def fingerprint(self) -> str:
        """Sha256 over features and checksums of the samples: equal samples, equal fingerprint."""
        digest = hashlib.sha256()
        for feature in self.features:
            digest.update(f"{feature.name}\0{feature.num_rows}\0{feature.multi_hot}\n".encode())
        # Without encoder and vocabularies, whose bytes depend on the version of Arrow.
        bags = {name for feature in self.features if feature.multi_hot for name in bag_files(feature.name)}
        for name in sorted(self.files.keys() & (self.expected_sizes().keys() | bags)):
            digest.update(f"{name}\0{self.files[name].sha256}\n".encode())
        return digest.hexdigest()

    def expected_sizes(self) -> dict[str, int]:
        """Bytes of every file whose size follows from the counts."""
        one_hot = sum(not feature.multi_hot for feature in self.features)
        n = self.num_samples
        sizes = {IDS: 4 * n * one_hot, DENSE: 4 * n * len(self.dense)}
        sizes[LABELS[self.label_dtype]] = n if self.label_dtype == "uint8" else 4 * n
        if self.has_time:
            sizes[TIME] = 8 * n
        for feature in self.features:
            if feature.multi_hot:
                sizes[bag_files(feature.name)[1]] = 8 * (n + 1)
        return sizes


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``store.json``.

    Raises:
        NotPrepared: ``folder`` holds no prepared data set, or one of a newer format.
        DataError: ``store.json`` is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotPrepared("is not a prepared data set", file=folder, remedy="make one with `slipstream prepare IN OUT`")
    text = documents.read_text(inside(folder, MANIFEST), documents.MAX_JSON_BYTES)
    try:
        version = _Version.model_validate_json(text).format_version
        if version > FORMAT_VERSION:
            raise NotPrepared(
                f"has format {version}, this slipstream reads up to {FORMAT_VERSION}",
                file=folder,
                remedy="update slipstream-rec",
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        remedy = "prepare the data again"
        raise DataError(f"is damaged ({first_problem(error)})", file=path, remedy=remedy) from error


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` below ``folder``, which must really be there: no link leads out of it.

    Raises:
        DataError: It leads elsewhere.
    """
    path, remedy = folder / name, "put the file itself into the folder"
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: before Python 3.13
        raise DataError("is a link in a circle", file=path, remedy=remedy) from error
    if not is_inside:
        raise DataError("is a link out of its folder", file=path, remedy=remedy)
    return path


class _Version(BaseModel):
    format_version: int
