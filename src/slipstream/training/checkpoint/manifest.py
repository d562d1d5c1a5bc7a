"""``manifest.json`` of a checkpoint: what it holds, with a checksum of every file and of itself.

The first line holds the checksum of all bytes after it, so that not one byte of the manifest can change unseen; the
whole is JSON nevertheless.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from slipstream import documents
from slipstream.data.manifest import inside
from slipstream.errors import CheckpointError, DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 30
"""Of a manifest: a larger one is damaged, and not read."""
NAME = r"^(step-\d{12}|final)$"
FileName = Annotated[str, Field(pattern=r"^tensors-\d{5}\.safetensors$")]
Size = Annotated[int, Field(ge=0, lt=2**63)]


class NewerFormat(CheckpointError):
    """A checkpoint of a format that this version does not know."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Part):
    """One file of the checkpoint."""

    size: Size
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Piece(_Part):
    """Some rows of a tensor."""

    file: FileName
    key: str
    start: Size
    stop: Size


class StoredTensor(_Part):
    """A tensor, in one piece or in several."""

    dtype: str
    """torch's name of it."""
    shape: tuple[Size, ...]
    """Of what is stored here."""
    pieces: tuple[Piece, ...]
    """Ranges of the first dimension, rising, without gaps."""
    rows: str | None = None
    """Incremental: the tensor (int32 [K]) that names the rows stored here; the others are those of the base."""


class Base(_Part):
    """The full checkpoint that an incremental one begins from."""

    name: str = Field(pattern=NAME)
    checksum: str = Field(pattern=r"^[0-9a-f]{64}$")
    """That of its manifest."""


class CheckpointManifest(_Part):
    """The contents of ``manifest.json``."""

    format_version: int = FORMAT_VERSION
    kind: Literal["full", "rows"]
    """``rows``: of some tensors only the rows touched since ``base``."""
    base: Base | None = None
    finished: bool
    """The training was over."""
    position: dict[str, int | bool]
    """Where the training stood; for people, the state says it again."""
    config: dict[str, JsonValue]
    """The training's resolved configuration."""
    data: dict[str, JsonValue]
    """Fingerprint of the data and what is needed to see that it changed."""
    versions: dict[str, str]
    """Of what wrote it."""
    threads: int = Field(ge=1, le=4096)
    """Threads it was computed with."""
    files: dict[FileName, FileInfo]
    tensors: dict[str, StoredTensor]
    state: JsonValue
    """The tree; see :mod:`slipstream.training.checkpoint.tree`."""


def _head(digest: str) -> bytes:
    return f'{{"sha256": "{digest}",\n'.encode()


def encode_manifest(manifest: CheckpointManifest) -> tuple[bytes, str]:
    """The file's bytes, and the checksum in its first line."""
    body = b'"checkpoint": ' + manifest.model_dump_json().encode() + b"}\n"
    digest = sha256(body).hexdigest()
    return _head(digest) + body, digest


def read_manifest(folder: Path) -> tuple[CheckpointManifest, str]:
    """Reads and checks a manifest.

    Returns:
        It and its checksum.

    Raises:
        CheckpointError: It is missing, damaged, or of a newer format.
    """
    path = folder / MANIFEST
    try:
        data = documents.read_bytes(inside(folder, MANIFEST), MAX_BYTES)
    except DataError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    cut = data.find(b"\n") + 1
    digest = sha256(data[cut:]).hexdigest()
    if data[:cut] != _head(digest):
        raise CheckpointError(f"{path}: is damaged (its checksum is wrong)")
    try:
        found: Any = json.loads(data)["checkpoint"]
        if isinstance(found, dict) and isinstance(found.get("format_version"), int):
            version = found["format_version"]
            if version > FORMAT_VERSION:
                raise NewerFormat(
                    f"{path}: has format {version}, this slipstream reads up to {FORMAT_VERSION}",
                    remedy="update slipstream-rec",
                )
        manifest = CheckpointManifest.model_validate(found)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is damaged ({str(error).splitlines()[0]})") from error
    if (manifest.kind == "rows") != (manifest.base is not None):
        raise CheckpointError(f"{path}: is damaged (kind and base disagree)")
    return manifest, digest
