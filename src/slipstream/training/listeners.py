"""Listeners that come with the library: progress on the terminal, metrics as JSON lines, the result as a file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from torch import Tensor

from slipstream.data.atomic import write_bytes
from slipstream.errors import ConfigError, OutputError
from slipstream.evaluation import Scores
from slipstream.report.machine import commit, describe_machine
from slipstream.restored import checked_tensor
from slipstream.training.config import save_config
from slipstream.training.events import (
    ChunkScored,
    CompilingKernels,
    EpochDone,
    Event,
    GatesNoted,
    HeldOutScored,
    PolicyMoved,
    RunDone,
    RunStarted,
    StepDone,
)

COMPILING = "compiling kernels, once for this version: about a minute"


class Progress:
    """A progress bar on standard error; where that is no terminal, a line if kernels are compiled, and nothing else.

    Args:
        console: Where to draw; None: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._status: Live | None = None
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._auc: float | None = None

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        match event:
            case CompilingKernels() if self._console.is_terminal:
                self._status = Live(Spinner("dots", COMPILING), console=self._console, transient=True)
                self._status.start(refresh=True)
            case CompilingKernels():
                self._console.print(COMPILING)
            case RunStarted() if self._console.is_terminal:
                self.close()
                columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
                words = TextColumn("{task.description}")
                self._bar = Bar(words, *columns, console=self._console, transient=True, refresh_per_second=4)
                self._task = self._bar.add_task("training", total=event.total_samples, completed=event.resumed_at or 0)
                self._bar.start()
            case StepDone() if self._bar is not None:
                rate = event.samples / event.seconds if event.seconds else 0.0
                text = f"loss {event.loss:.4f}  {rate:,.0f} samples/s"
                if self._auc is not None:
                    text += f"  AUC {self._auc:.4f}"
                self._bar.update(self._task, completed=event.samples, description=text)
            case ChunkScored() | EpochDone() | HeldOutScored():
                self._auc = event.scores.auc
            case RunDone():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Takes the bar away; also for a training that failed."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class JsonlMetrics:
    """Writes steps, chunks, epochs and what the policy decided to ``metrics.jsonl``, a line each as they happen.

    Args:
        path: The file; an old one is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None
        self._before = b""  # what a resumed training had written before its checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        """The lines so far, UTF-8 as uint8 ``[bytes]``: a checkpoint's tensors may be of any size, its manifest not."""
        written = np.frombuffer(bytearray(self._before), np.uint8)
        return {"text": torch.from_numpy(written if self._file is None else np.fromfile(self.path, np.uint8))}

    def load_state_dict(self, state: Mapping[str, str | Tensor]) -> None:
        """Goes on after these lines: what came after them is written anew.

        Args:
            state: As of :meth:`state_dict`; checkpoints of before had the lines as a text.

        Raises:
            ConfigError: It holds something else.
        """
        text = state["text"]
        if isinstance(text, str):
            self._before = text.encode()
        else:
            shape = (text.numel(),) if isinstance(text, Tensor) else ()
            self._before = checked_tensor(text, "text", shape, torch.uint8).numpy().tobytes()
            self._before.decode()  # whatever else is there is no text

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        match event:
            case RunStarted():
                if event.resumed_at is None:
                    self._before = b""
                write_bytes(self.path, self._before)
                self._file = self.path.open("a", encoding="utf-8", buffering=1)
                if event.resumed_at is None:
                    self._write(
                        "start",
                        total_samples=event.total_samples,
                        parameters=event.parameters,
                        machine=describe_machine().model_dump(mode="json"),
                        commit=commit(),
                    )
            case StepDone():
                self._write(
                    "step",
                    step=event.step,
                    samples=event.samples,
                    loss=event.loss,
                    dense_lr=event.dense_lr,
                    embedding_lr=event.embedding_lr,
                    seconds=event.seconds,
                    inputs_seen=event.inputs_seen,
                    inputs_kept=event.inputs_kept,
                    lookups=event.lookups,
                    skipped=event.skipped,
                    phase_seconds={name: round(seconds, 6) for name, seconds in event.phase_seconds.items()},
                )
            case HeldOutScored():
                self._write("score", samples=event.samples, seconds=event.seconds, **_figures(event.scores))
            case GatesNoted():
                self._write(
                    "gates", samples=event.samples, seconds=event.seconds, feature=event.feature, open=event.open
                )
            case PolicyMoved():
                self._write("policy", policy=event.policy, seconds=event.seconds, **event.move)
            case ChunkScored():
                self._write("chunk", samples=event.samples, seconds=event.seconds, **_figures(event.scores))
            case EpochDone():
                figures = _figures(event.scores)
                if event.ranking is not None:
                    figures["ranking"] = event.ranking.model_dump(mode="json")
                self._write("epoch", epoch=event.epoch, samples=event.samples, seconds=event.seconds, **figures)
            case RunDone():
                self.close()
            case _:
                pass

    def _write(self, kind: str, **figures: Any) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps({"event": kind, **figures}, allow_nan=False) + "\n")
            except OSError as error:
                raise OutputError(self.path, error) from error

    def close(self) -> None:
        """Closes the file; also for a training that failed."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which the write before it has told of
                self._file.close()
            self._file = None


def _figures(scores: Scores) -> dict[str, Any]:
    return {"samples_scored": scores.samples, **scores.model_dump(exclude={"samples"})}


class ResultWriter:
    """Writes ``config.yaml`` when a training starts and ``result.json`` when it is done.

    An old result is removed at the start, so that a training which fails leaves no folder that looks finished.

    Args:
        folder: The run folder.

    Raises:
        ConfigError: It is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file", remedy="choose another run folder")

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        match event:
            case RunStarted():
                (self.folder / "result.json").unlink(missing_ok=True)
                save_config(event.config, self.folder / "config.yaml")
            case RunDone():
                event.result.save(self.folder / "result.json")
            case _:
                pass
