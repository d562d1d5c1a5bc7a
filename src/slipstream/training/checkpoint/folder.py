"""The checkpoints of a run: written whole or not at all, the last few kept, the newest sound one found."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor

from slipstream.data.atomic import fsync_path, partial_name, remove_partials, replace_folder, write_bytes
from slipstream.errors import CheckpointError, ConfigError, OutputError, SlipstreamError
from slipstream.report.machine import versions
from slipstream.training.checkpoint.manifest import (
    MANIFEST,
    MAX_BYTES,
    NAME,
    Base,
    CheckpointManifest,
    NewerFormat,
    encode_manifest,
    read_manifest,
)
from slipstream.training.checkpoint.tensors import Source, read_tensors, verify_files, write_tensors
from slipstream.training.checkpoint.touched import Touched
from slipstream.training.checkpoint.tree import join_tree, split_tree

FOLDER = "checkpoints"
"""Of a run folder."""
FINAL = "final"
"""The checkpoint of a training that is over."""
INCREMENTAL_FROM = 64 << 20
"""Bytes of a state from which on incremental checkpoints pay."""
INCREMENTAL_TO = 0.3
"""Share of the state that an incremental checkpoint may hold; beyond, a full one is written."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is damaged, and the one before it is used."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a checkpoint says of itself beside the state; see :class:`CheckpointManifest`."""

    position: Mapping[str, int | bool]
    config: Mapping[str, JsonValue]
    data: Mapping[str, JsonValue]


_LONGEST = 200
"""Characters of a reason."""
_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What readers of a state raise where it is built otherwise than they take for given."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read and verified."""

    path: Path
    manifest: CheckpointManifest
    state: Any

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        """While parts of a training take over the state: whatever they raise where it is not of their making.

        Its checksums are right, so nothing was damaged: it was changed on purpose, or written by a version of which
        some part kept something else.

        Raises:
            CheckpointError: Instead of what the parts raise.
        """
        try:
            yield
        except (ConfigError, CheckpointError) as error:
            raise self._not_of_this(error.message, error.remedy) from error
        except SlipstreamError:  # of the data, or asked to end
            raise
        except _MISFITS as error:
            if "allocate memory" in str(error):  # torch's way to say it
                raise MemoryError from error
            raise self._not_of_this(f"{type(error).__name__}: {error}") from error

    def _not_of_this(self, reason: str, remedy: str | None = None) -> CheckpointError:
        writer = self.manifest.versions.get("slipstream-rec", "?")
        reason = " ".join(reason.split())
        return CheckpointError(
            f"{self.path}: does not hold the state of this training "
            f"({reason if len(reason) < _LONGEST else f'{reason[:_LONGEST]} …'})",
            remedy=remedy or f"train anew, or go on with the version of slipstream that wrote it ({writer})",
        )


class CheckpointFolder:
    """``checkpoints/`` of a run folder.

    Each checkpoint is a folder of its own, ``step-…`` or ``final``: safetensors files and a manifest with checksums.
    It is written under another name, fsynced, and renamed, so a name of this form never holds half a checkpoint.

    Args:
        run: The run folder.
        keep: Checkpoints kept; bases of incremental ones come on top.
    """

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.path = run / FOLDER
        self.keep = keep
        self._base: Base | None = None
        self._in_base: set[str] = set()

    def names(self) -> list[str]:
        """The checkpoints, oldest first."""
        if not self.path.is_dir():
            return []
        found = [entry.name for entry in self.path.iterdir() if entry.is_dir() and re.match(NAME, entry.name)]
        return sorted(found, key=lambda name: (name == FINAL, name))

    def save(self, state: Any, info: Info, *, touched: Touched | None = None, finished: bool = False) -> Path:
        """Writes a checkpoint.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers, texts and None.
            info: What the manifest says.
            touched: Rows touched since its last ``clear``, for an incremental checkpoint where that is smaller; it is
                cleared by a full one. None: a full checkpoint.
            finished: The training is over: all checkpoints but this one are removed.

        Raises:
            OutputError: It cannot be written; those before it are untouched.
        """
        tree, tensors = split_tree(state)
        path = self.path / (FINAL if finished else f"step-{info.position['steps']:012d}")
        sources = None if finished or touched is None else self._changed(path.name, tensors, touched)
        kind = "full" if sources is None else "rows"
        partial = partial_name(path)
        try:
            partial.mkdir(parents=True)
            files, stored = write_tensors(partial, sources or {name: Source(value) for name, value in tensors.items()})
            manifest = CheckpointManifest(
                kind=kind,
                base=self._base if kind == "rows" else None,
                finished=finished,
                position=dict(info.position),
                config=dict(info.config),
                data=dict(info.data),
                versions=versions(),
                threads=torch.get_num_threads(),
                files=files,
                tensors=stored,
                state=tree,
            )
            data, checksum = encode_manifest(manifest)
            if len(data) > MAX_BYTES:  # no reader would take it, and those before it would be removed
                raise OverflowError(f"{len(data):,} bytes of {MANIFEST} are more than the {MAX_BYTES:,} that are read")
            write_bytes(partial / MANIFEST, data)
            replace_folder(partial, path)
        except (OSError, SafetensorError, OverflowError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            room = "make room, then go on with --resume"
            remedy = "keep texts of a state as tensors" if isinstance(error, OverflowError) else room
            raise OutputError(path, error, remedy=remedy) from error
        if kind == "full" and touched is not None:
            self._base, self._in_base = Base(name=path.name, checksum=checksum), set(tensors)
            touched.clear()
        self._prune(path.name)
        return path

    def _changed(self, name: str, tensors: Mapping[str, Tensor], touched: Touched) -> dict[str, Source] | None:
        """What an incremental checkpoint of this name writes; None where a full one is to be written."""
        whole = sum(tensor.nbytes for tensor in tensors.values())
        if self._base is None or whole < INCREMENTAL_FROM or not (self.path / self._base.name).is_dir():
            return None
        if name == self._base.name:  # nothing was trained since; it would take its base's place
            return None
        sources: dict[str, Source] = {}
        for name, tensor in tensors.items():
            marks = touched.marks_of(tensor)
            if marks is None or name not in self._in_base:
                sources[name] = Source(tensor)
                continue
            rows_name = f"$rows/{touched.name_of(tensor)}"
            if rows_name not in sources:
                sources[rows_name] = Source(marks.nonzero().squeeze(1).to(torch.int32))
            sources[name] = Source(tensor, sources[rows_name].tensor, rows_name)
        size = sum(source.length * source.row_bytes for source in sources.values())
        return sources if size <= INCREMENTAL_TO * whole else None

    def newest(self) -> Loaded | None:
        """Reads the newest checkpoint that is sound; None if there is none at all.

        A damaged one is said so (:class:`DamagedCheckpointWarning`), and the one before it is tried.

        Raises:
            CheckpointError: There are checkpoints, and all of them are damaged, or one is of a newer format.
        """
        names = self.names()
        for position in reversed(range(len(names))):
            try:
                return self.read(names[position])
            except CheckpointError as error:
                if isinstance(error, NewerFormat):  # an older one must not take its place in silence
                    raise
                if position == 0:
                    raise CheckpointError(
                        f"{error}; there is no checkpoint before it", remedy="train anew in another run folder"
                    ) from error
                message = f"{error}; going on from {names[position - 1]} instead"
                warnings.warn(message, DamagedCheckpointWarning, stacklevel=2)
        return None

    def read(self, name: str) -> Loaded:
        """Reads and verifies one checkpoint.

        Raises:
            CheckpointError: It, or its base, is missing, damaged, or of a newer format.
        """
        manifest, tensors = self._tensors(name)
        loaded = Loaded(self.path / name, manifest, None)
        with loaded.taken_over():
            return replace(loaded, state=join_tree(manifest.state, tensors))

    def _tensors(self, name: str, checksum: str | None = None) -> tuple[CheckpointManifest, dict[str, Tensor]]:
        folder = self.path / name
        manifest, found = read_manifest(folder)
        if checksum is not None and (found != checksum or manifest.base is not None):
            raise CheckpointError(f"{folder}: is not the base that the checkpoint after it was made from")
        verify_files(folder, manifest)
        base = None
        if manifest.base is not None:
            _, base = self._tensors(manifest.base.name, manifest.base.checksum)
        return manifest, read_tensors(folder, manifest, base)

    def _prune(self, written: str) -> None:
        """Removes what is older than the last few, and what is newer than the one just written.

        The training went back before that, as it was damaged: counted, it would have sound ones removed.
        """
        names = self.names()
        past = names[: names.index(written) + 1]
        kept = set(past[-1:] if written == FINAL else past[-self.keep :])
        for name in list(kept):
            try:
                base = read_manifest(self.path / name)[0].base
            except CheckpointError:
                continue  # it stays; reading it will say what is wrong
            kept |= {base.name} if base is not None else set()
        for name in names:
            if name not in kept:
                _remove(self.path / name)

    def clear(self) -> None:
        """Removes all checkpoints, and their folder if it holds nothing else: other files in it are the user's.

        Where it is a link, to another disk say, link and folder are the user's too, and stay.
        """
        for name in self.names():  # the final one last: an older one alone would be gone on with
            _remove(self.path / name)
        remove_partials(self.path, NAME)
        if not self.path.is_symlink():
            with suppress(OSError):  # not there, or not empty
                self.path.rmdir()


def _remove(folder: Path) -> None:
    """Removes a folder, under another name first: half a checkpoint must not look like a whole one."""
    doomed = partial_name(folder)
    folder.rename(doomed)
    fsync_path(doomed.parent)
    shutil.rmtree(doomed)
