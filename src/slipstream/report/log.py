"""What a run has written into ``metrics.jsonl`` so far, read as it grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from slipstream.documents import check_texts
from slipstream.errors import DataError

LONGEST_LINE = 1 << 20
"""Bytes of a line; longer ones cannot be of ours."""
_PIECE = 4 << 20
MOST_LINES = 1 << 15
"""Lines of a kind that are kept: far more than a chart shows, and some 35 MB."""
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Line(BaseModel):
    """Other versions may have written more."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Start(_Line):
    """The training begins."""

    total_samples: Count
    parameters: Count = 0
    machine: dict[str, Any] | None = None
    commit: str | None = None


class Step(_Line):
    """So many steps later; counts and times are those since the start."""

    step: Count
    samples: Count
    loss: Number
    dense_lr: Number
    embedding_lr: Number
    seconds: Seconds
    inputs_seen: Count = 0
    inputs_kept: Count = 0
    lookups: Count = 0
    skipped: Count = 0
    phase_seconds: dict[str, Seconds] = {}


class Score(_Line):
    """Some samples were scored: a chunk before it is trained on, or samples held out."""

    samples: Count
    seconds: Seconds
    samples_scored: Count = 0
    auc: Share | None = None
    log_loss: Number | None = None


class Gates(_Line):
    """How open the gates of a feature's rows are, by their popularity."""

    samples: Count
    seconds: Seconds
    feature: str
    open: dict[str, Share]


class Move(_Line):
    """What the policy changed by itself."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    policy: str
    seconds: Seconds


_Kind = TypeVar("_Kind", bound=_Line)


class Thinned(list[_Kind]):
    """Lines of a kind: all, or of very many every second, fourth, … from the first on, and always the last."""

    def __init__(self) -> None:
        super().__init__()
        self._taken, self._stride = 0, 1

    def append(self, line: _Kind) -> None:
        """Takes a line in; what stands there as the last only makes room."""
        if (self._taken - 1) % self._stride:
            self.pop()
        super().append(line)
        if len(self) > MOST_LINES and self._taken % self._stride == 0:
            del self[1::2]
            self._stride *= 2
        self._taken += 1


class RunLog:
    """The lines of a ``metrics.jsonl``; what cannot be read is passed over and counted.

    Of more than ``MOST_LINES`` lines of a kind some are kept, evenly: a log of millions would take gigabytes.
    """

    def __init__(self) -> None:
        self.start: Start | None = None
        self.steps: list[Step] = Thinned()
        self.chunks: list[Score] = Thinned()
        """Prequential: chunks, each before it was trained on."""
        self.scores: list[Score] = Thinned()
        """Holdout: some of the samples held out, several times in an epoch."""
        self.epochs: list[Score] = Thinned()
        """Holdout: all samples held out, after each epoch."""
        self.gates: list[Gates] = Thinned()
        self.moves: list[Move] = []
        self.unreadable = 0
        """Lines passed over."""

    @property
    def seconds(self) -> float | None:
        """Training time at the last line."""
        lines = (self.steps, self.chunks, self.scores, self.epochs)
        return max((group[-1].seconds for group in lines if group), default=None)

    @property
    def samples(self) -> int:
        """Samples that had passed at the last line."""
        lines = (self.steps, self.chunks, self.scores, self.epochs)
        return max((group[-1].samples for group in lines if group), default=0)

    @property
    def latest_score(self) -> Score | None:
        """The last figures of quality."""
        lines = (self.chunks, self.scores, self.epochs)
        return max((group[-1] for group in lines if group), key=lambda score: score.samples, default=None)

    def add(self, line: bytes) -> None:
        """Take a line in; one of a kind that this version does not know says nothing."""
        groups: dict[str, tuple[type[_Line], list[Any] | None]] = {
            "start": (Start, None),
            "step": (Step, self.steps),
            "chunk": (Score, self.chunks),
            "score": (Score, self.scores),
            "epoch": (Score, self.epochs),
            "gates": (Gates, self.gates),
            "policy": (Move, self.moves),
        }
        try:
            tree = json.loads(line)
            if not isinstance(tree, dict) or not isinstance(tree.get("event"), str):
                raise ValueError("no event")
            if tree["event"] not in groups:
                return
            check_texts(tree, None)
            kind, group = groups[tree.pop("event")]
            read = kind.model_validate(tree)
        except (ValueError, RecursionError, DataError):  # of JSON, UTF-8 and pydantic; a text that cannot be written
            self.unreadable += 1
            return
        if isinstance(read, Start):
            self.start = read
        elif group is not None:
            group.append(read)


class Follower:
    """Reads a ``metrics.jsonl`` from where it last stopped; begins anew when the file was replaced.

    Args:
        path: The file; it may come later.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log = RunLog()
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""

    def read(self) -> bool:
        """Take in what was written since.

        Returns:
            Whether there was anything.

        Raises:
            DataError: The file cannot be read.
        """
        news = False
        if self.path.exists() and not self.path.is_file():
            raise DataError("is not a regular file", file=self.path, remedy="name a run folder")
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._identity or status.st_size < self._offset:
                    self.log, self._identity, self._offset, self._rest = RunLog(), identity, 0, b""
                file.seek(self._offset)
                while piece := file.read(_PIECE):
                    self._offset += len(piece)
                    self._take(piece)
                    news = True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", file=self.path, remedy="check the path") from error
        return news

    def _take(self, piece: bytes) -> None:
        # A last line without its end is being written.
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                self.log.add(line)
        if len(self._rest) > LONGEST_LINE:
            self.log.unreadable += 1
            self._rest = b""


def read_log(path: str | Path) -> RunLog:
    """What a ``metrics.jsonl`` holds; nothing where there is none.

    Raises:
        DataError: The file cannot be read.
    """
    follower = Follower(path)
    follower.read()
    return follower.log
