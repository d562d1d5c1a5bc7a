"""implicit's BPR and ALS on the CPU, with its own ``fit`` and the callback it calls after each epoch.

BLAS on one thread, as its documentation asks; its own threads as many as everybody has.
"""

from __future__ import annotations

from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
import threadpoolctl
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.pairs import Vectors
from benchmarks.peers.protocol import Fit, Fitted, Job
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    return {name: version(name) for name in ("implicit", "scipy", "numpy")}


def make(job: Job) -> Implicit:
    """The contestant."""
    return Implicit(job)


class Implicit:
    """See the module.

    Args:
        job: ``settings``: model (bpr or als), factors, and what the model takes.
    """

    def __init__(self, job: Job) -> None:
        threadpoolctl.threadpool_limits(1, "blas")
        data, settings = Arrays.load(job.data), dict(job.settings)
        pairs = data.ids[: job.train[1]]
        ones = np.ones(len(pairs), dtype=np.float32)
        self.pairs: Any = csr_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=tuple(data.rows))
        self.count, self.rows, self.epochs = len(pairs), sum(data.rows), job.epochs
        kind = {"bpr": BayesianPersonalizedRanking, "als": AlternatingLeastSquares}[settings.pop("model")]
        self.model: Any = kind(num_threads=job.threads, random_state=job.seed, **settings)

    def table_bytes(self) -> int:
        """Factors, float32; there is no optimizer state."""
        return 4 * self.rows * (self.model.factors + isinstance(self.model, BayesianPersonalizedRanking))

    def fit(self, request: Fit) -> Fitted:
        """Trains so many epochs."""
        self.model.iterations = self.epochs
        vectors = Vectors(request.out, self.count, self.epochs)
        began = perf_counter()

        def after_epoch(*_: object) -> None:
            nonlocal began
            vectors.keep(perf_counter() - began, self.model.user_factors, self.model.item_factors)
            began = perf_counter()

        self.model.fit(self.pairs, show_progress=False, callback=after_epoch)
        return Fitted(vectors.points)
