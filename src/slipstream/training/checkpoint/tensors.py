"""Tensors in safetensors files of bounded size, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from slipstream.data.atomic import by_umask, file_sha256, fsync_path
from slipstream.data.manifest import inside
from slipstream.embedding.memory import advise_huge_pages
from slipstream.errors import CheckpointError, DataError
from slipstream.training.checkpoint.manifest import CheckpointManifest, FileInfo, Piece, StoredTensor

SHARD_BYTES = 2_000_000_000
"""Most bytes of tensors in a file; larger tensors are cut by rows. Writing needs as much memory beside the tensors."""
_BY_NAME = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
        torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )
}  # fmt: skip
_STAND_IN = {
    torch.bfloat16: torch.int16,
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
"""Types that numpy or torch's indexing lacks, and those of the same size that stand in for them."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor to write, or some rows of it.

    Attributes:
        tensor: The tensor.
        rows: Integers [K]: write only these rows; None: all.
        rows_name: Name of the tensor that holds ``rows``.
    """

    tensor: Tensor
    rows: Tensor | None = None
    rows_name: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is written."""
        return tuple(self.tensor.shape) if self.rows is None else (self.rows.numel(), *self.tensor.shape[1:])

    @property
    def length(self) -> int:
        """Of the first dimension; 1 for a number."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return max(1, self.tensor.element_size() * self.tensor.numel() // max(len(self.tensor) if self.shape else 1, 1))

    def part(self, start: int, stop: int) -> npt.NDArray[np.generic]:
        """Rows ``start`` to ``stop`` of what is written, as numpy."""
        whole = _stand_in(self.tensor)
        if not self.shape:
            part = whole.reshape(1)
        elif self.rows is None:
            part = whole[start:stop]
        else:
            part = whole.index_select(0, self.rows[start:stop])
        return part.cpu().contiguous().numpy()


def _stand_in(tensor: Tensor) -> Tensor:
    return tensor.view(_STAND_IN.get(tensor.dtype, tensor.dtype))


def write_tensors(folder: Path, sources: Mapping[str, Source]) -> tuple[dict[str, FileInfo], dict[str, StoredTensor]]:
    """Writes tensors below a folder, fsynced; returns the files and where each tensor is."""
    files: dict[str, FileInfo] = {}
    pieces: dict[str, list[Piece]] = {name: [] for name in sources}
    shard: dict[str, npt.NDArray[np.generic]] = {}
    used = 0

    def flush() -> None:
        nonlocal used
        path = folder / _file_name(len(files))
        with by_umask(path):
            save_file(shard, path)
        fsync_path(path)
        files[path.name] = FileInfo(size=path.stat().st_size, sha256=file_sha256(path))
        shard.clear()
        used = 0

    for number, (name, source) in enumerate(sources.items()):
        for start, stop in _cuts(source):
            size = (stop - start) * source.row_bytes
            if used and used + size > SHARD_BYTES:
                flush()
            key = f"{number}.{start}"
            shard[key] = source.part(start, stop)
            pieces[name].append(Piece(file=_file_name(len(files)), key=key, start=start, stop=stop))
            used += size
    if shard:
        flush()
    stored = {
        name: StoredTensor(
            dtype=str(source.tensor.dtype).removeprefix("torch."),
            shape=source.shape,
            pieces=tuple(pieces[name]),
            rows=source.rows_name,
        )
        for name, source in sources.items()
    }
    return files, stored


def _file_name(number: int) -> str:
    return f"tensors-{number:05d}.safetensors"


def _cuts(source: Source) -> Iterator[tuple[int, int]]:
    most = max(1, SHARD_BYTES // source.row_bytes)
    for start in range(0, source.length, most):
        yield start, min(start + most, source.length)


def verify_files(folder: Path, manifest: CheckpointManifest) -> None:
    """Compares every file with its checksum.

    Raises:
        CheckpointError: One is missing or differs.
    """
    for name, info in manifest.files.items():
        try:
            path = inside(folder, name)
        except DataError as error:
            raise CheckpointError(str(error)) from error
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != info.size or file_sha256(path) != info.sha256:
            raise CheckpointError(f"{path}: is damaged (its checksum is wrong)")


def read_tensors(
    folder: Path, manifest: CheckpointManifest, base: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint.

    Args:
        folder: Its folder.
        manifest: Its manifest; the files were verified.
        base: The tensors of its base, changed in place.

    Raises:
        CheckpointError: Files and manifest do not fit together.
    """
    tensors: dict[str, Tensor] = {}
    places = [(piece.file, piece.key) for stored in manifest.tensors.values() for piece in stored.pieces]
    if len(set(places)) < len(places) or not {file for file, _ in places} <= manifest.files.keys():
        raise CheckpointError(f"{folder}: is damaged (a piece stands twice, or in a file that is not named)")
    try:
        for name, stored in manifest.tensors.items():
            tensors[name] = _read(folder, stored)
        for name, stored in manifest.tensors.items():
            if stored.rows is not None:
                whole = (base or {})[name]
                _stand_in(whole).index_copy_(0, tensors[stored.rows].long(), _stand_in(tensors[name]))
                tensors[name] = whole
    except (SafetensorError, KeyError, ValueError, RuntimeError, IndexError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: is damaged ({str(error).splitlines()[0]})") from error
    return tensors


def _read(folder: Path, stored: StoredTensor) -> Tensor:
    dtype = _BY_NAME[stored.dtype]
    length = stored.shape[0] if stored.shape else 1
    if [piece.start for piece in stored.pieces] != [0, *(piece.stop for piece in stored.pieces)][: len(stored.pieces)]:
        raise CheckpointError(f"{folder}: is damaged (the pieces of a tensor leave gaps)")
    if (stored.pieces[-1].stop if stored.pieces else 0) != length:
        raise CheckpointError(f"{folder}: is damaged (a tensor is not whole)")
    shape = stored.shape or (1,)
    for piece in stored.pieces:  # before any memory is taken for them: what is said may be far more than there is
        with safe_open(folder / piece.file, "numpy") as file:
            if tuple(file.get_slice(piece.key).get_shape()) != (piece.stop - piece.start, *shape[1:]):
                raise CheckpointError(f"{folder}: is damaged (a piece of a tensor has another shape than the tensor)")
    whole = advise_huge_pages(torch.empty(shape, dtype=dtype))
    for piece in stored.pieces:
        with safe_open(folder / piece.file, "numpy") as file:
            part = torch.from_numpy(file.get_tensor(piece.key))
        own = _stand_in(whole)
        if part.dtype != own.dtype:
            raise CheckpointError(f"{folder}: is damaged (a piece of a tensor has another type than the tensor)")
        own[piece.start : piece.stop] = part
    return whole if stored.shape else whole.reshape(())
