"""The training loop of contestants that train step by step, every phase timed by the same clock. Needs NumPy alone."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from benchmarks.peers.protocol import PHASES, Fit, Fitted, Job, Point, Spent


class Stepper(Protocol):
    """A system that trains batch by batch."""

    batch_size: int
    """Samples of a step."""

    def rewind(self) -> None:
        """Begins the training samples anew."""
        ...

    def next(self) -> tuple[Any, int]:
        """The next batch in order and its samples; ``(None, 0)`` at the end."""
        ...

    def forward(self, batch: Any) -> Any:
        """The loss."""
        ...

    def backward(self, loss: Any) -> None:
        """Gradients; the update too where a system does both at once."""
        ...

    def update(self) -> None:
        """The optimizers' step, gradients cleared for the next."""
        ...

    def scores(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of samples ``start`` to ``stop``; nothing is trained."""
        ...


class Loop:
    """Trains a :class:`Stepper` as a request says.

    Args:
        stepper: The system.
        job: What is trained.
    """

    def __init__(self, stepper: Stepper, job: Job) -> None:
        self.stepper, self.job = stepper, job
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def steps(self, count: int) -> Spent:
        """Trains so many steps, beginning anew where the samples end."""
        before = dict(self.seconds)
        samples = 0
        for _ in range(count):
            samples += self._step() or self._again()
        return Spent(samples, {phase: self.seconds[phase] - before[phase] for phase in PHASES})

    def fit(self, request: Fit) -> Fitted:
        """One pass over the samples."""
        self.stepper.rewind()
        out = Path(request.out)
        return self._prequential(request, out) if request.mode == "prequential" else self._holdout(request, out)

    def _again(self) -> int:
        self.stepper.rewind()
        return self._step()

    def _step(self) -> int:
        """One step; the number of its samples, 0 at the end of the data."""
        stepper, seconds = self.stepper, self.seconds
        began = perf_counter()
        batch, size = stepper.next()
        if not size:
            return 0
        given = perf_counter()
        loss = stepper.forward(batch)
        forward = perf_counter()
        stepper.backward(loss)
        backward = perf_counter()
        stepper.update()
        seconds["update"] += perf_counter() - backward
        seconds["backward"] += backward - forward
        seconds["forward"] += forward - given
        seconds["input"] += given - began
        return size

    def _holdout(self, request: Fit, out: Path) -> Fitted:
        points: list[Point] = []
        done = 0
        for mark in request.marks:
            while done < mark and (size := self._step()):
                done += size
            file = out / f"scores-{len(points)}.npy"
            np.save(file, self.stepper.scores(*self.job.test))
            points.append(Point(done, self._total(), [str(file)]))
        return Fitted(points)

    def _prequential(self, request: Fit, out: Path) -> Fitted:
        if request.chunk % self.stepper.batch_size:
            raise ValueError(f"a chunk of {request.chunk} is not made of batches of {self.stepper.batch_size}")
        stop = self.job.train[1]
        scores = np.empty(stop, dtype=np.float32)
        points: list[Point] = []
        done = 0
        while done < stop:
            last = min(done + request.chunk, stop)
            scores[done:last] = self.stepper.scores(done, last)
            while done < last and (size := self._step()):
                done += size
            points.append(Point(done, self._total()))
        file = out / "scores.npy"
        np.save(file, scores)
        return Fitted(points, str(file))

    def _total(self) -> float:
        return sum(self.seconds.values())
