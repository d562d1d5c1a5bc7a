"""A contestant for the tests: knows the answers, trains nothing, and fails on request."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.protocol import PHASES, Fit, Fitted, Job, Point, Spent


def versions() -> dict[str, str]:
    return {"fake": "1.0"}


def make(job: Job) -> Fake:
    print("libraries print to standard output")
    return Fake(job)


class Fake:
    def __init__(self, job: Job) -> None:
        self.job, self.data = job, Arrays.load(job.data)
        self.rows = sum(self.data.rows)

    def table_bytes(self) -> int:
        return 0

    def steps(self, count: int) -> Spent:
        if self.job.settings.get("fail"):
            raise RuntimeError("out of paper")
        if self.job.settings.get("slow"):
            time.sleep(60.0)
        return Spent(count * 8, dict.fromkeys(PHASES, 0.25))

    def fit(self, request: Fit) -> Fitted:
        if self.job.settings.get("fail_fit"):
            raise RuntimeError("out of ink")
        start, stop = self.job.test
        points = []
        for number, mark in enumerate(request.marks):
            # Half right in the first half of the training, then all.
            right = np.asarray(self.data.labels[start:stop]) * 2 - 1
            scores = right if number * 2 >= len(request.marks) else np.random.default_rng(0).normal(size=len(right))
            if self.job.settings.get("lr", 0) > 2:
                scores = np.full(len(right), np.nan)
            file = Path(request.out) / f"{number}.npy"
            np.save(file, scores.astype(np.float32))
            points.append(Point(mark, float(number + 1), [str(file)]))
        return Fitted(points)
