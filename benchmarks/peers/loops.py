"""The training loop of contestants that train step by step, every phase timed by the same clock. Needs NumPy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.peers.protocol import PHASES, Fit, Fitted, Job, Point, Spent


class Stepper(ABC):
    """A system that trains batch by batch.

    Args:
        job: What is trained.

    Attributes:
        batch_size: Samples of a step.
    """

    batch_size: int

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @abstractmethod
    def rewind(self) -> None:
        """Begins the training samples anew."""

    @abstractmethod
    def next(self) -> tuple[Any, int]:
        """The next batch in order and its samples; ``(None, 0)`` at the end."""

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """The loss."""

    def backward(self, loss: Any) -> None:
        """Gradients; the update too where a system does both at once."""
        loss.backward()

    @abstractmethod
    def update(self) -> None:
        """The optimizers' step, gradients cleared for the next."""

    @abstractmethod
    def scores(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of samples ``start`` to ``stop``; nothing is trained."""

    def steps(self, count: int) -> Spent:
        """Trains so many steps, beginning anew where the samples end."""
        before = dict(self.seconds)
        samples = 0
        for _ in range(count):
            samples += self._step() or self._again()
        return Spent(samples, {phase: self.seconds[phase] - before[phase] for phase in PHASES})

    def fit(self, request: Fit) -> Fitted:
        """One pass over the samples."""
        self.rewind()
        out = Path(request.out)
        return self._fit_prequential(request, out) if request.mode == "prequential" else self._fit_holdout(request, out)

    def _again(self) -> int:
        self.rewind()
        return self._step()

    def _step(self) -> int:
        """One step; the number of its samples, 0 at the end of the data."""
        seconds = self.seconds
        began = perf_counter()
        batch, size = self.next()
        if not size:
            return 0
        given = perf_counter()
        loss = self.forward(batch)
        forward = perf_counter()
        self.backward(loss)
        backward = perf_counter()
        self.update()
        seconds["update"] += perf_counter() - backward
        seconds["backward"] += backward - forward
        seconds["forward"] += forward - given
        seconds["input"] += given - began
        return size

    def _fit_holdout(self, request: Fit, out: Path) -> Fitted:
        points: list[Point] = []
        done = 0
        for mark in request.marks:
            while done < mark and (size := self._step()):
                done += size
            file = out / f"scores-{len(points)}.npy"
            np.save(file, self.scores(*self.job.test))
            points.append(Point(done, self._total(), [str(file)]))
        return Fitted(points)

    def _fit_prequential(self, request: Fit, out: Path) -> Fitted:
        if request.chunk % self.batch_size:
            raise ValueError(f"a chunk of {request.chunk} is not made of batches of {self.batch_size}")
        stop = self.job.train[1]
        scores = np.empty(stop, dtype=np.float32)
        points: list[Point] = []
        done = 0
        while done < stop:
            last = min(done + request.chunk, stop)
            scores[done:last] = self.scores(done, last)
            while done < last and (size := self._step()):
                done += size
            points.append(Point(done, self._total()))
        file = out / "scores.npy"
        np.save(file, scores)
        return Fitted(points, str(file))

    def _total(self) -> float:
        return sum(self.seconds.values())
