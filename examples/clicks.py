"""Data of the comparisons: the bundled MovieTweetings, and clicks over tables of any size for timing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

HISTORY = 5
"""Movies that a user rated before, in ``history``; 0 where there are fewer."""


@dataclass
class Clicks:
    """Samples in time order."""

    columns: dict[str, npt.NDArray]
    """user, movie (from 1), weekday: int64 [N]; history: int64 [N, HISTORY]; history_length: int64 [N], at least 1;
    year: float32 [N]; label: float32 [N]."""
    rows: dict[str, int]
    """Rows of the tables user, movie and weekday."""

    def part(self, start: int, stop: int) -> Clicks:
        """Samples ``start`` to ``stop``."""
        return Clicks({name: column[start:stop] for name, column in self.columns.items()}, self.rows)

    def __len__(self) -> int:
        return len(self.columns["label"])


def movietweetings() -> Clicks:
    """100,000 ratings; label: 8 or higher."""
    folder = Path(__file__).parent / "movietweetings"
    ratings = np.array(
        [line.split("::") for line in (folder / "ratings.dat").read_text(encoding="utf-8").splitlines()], dtype=np.int64
    )
    ratings = ratings[ratings[:, 3].argsort(kind="stable")]
    years: dict[int, float] = {}
    for line in (folder / "movies.dat").read_text(encoding="utf-8").splitlines():
        number, title, _ = line.split("::")
        years[int(number)] = (int(title[-5:-1]) - 2000) / 20
    users, user = np.unique(ratings[:, 0], return_inverse=True)
    movies, movie = np.unique(ratings[:, 1], return_inverse=True)
    year = np.array([years[int(number)] for number in ratings[:, 1]], dtype=np.float32)
    weekday = ratings[:, 3] // 86400 % 7
    label = (ratings[:, 2] >= 8).astype(np.float32)
    return _clicks(user, movie + 1, weekday, year, label, {"user": len(users), "movie": len(movies) + 1, "weekday": 7})


def wide(rows: int, samples: int) -> Clicks:
    """Clicks over ``rows`` rows altogether, popularity as in logs (1 / rank); labels without meaning."""
    random = np.random.default_rng(0)
    half = rows // 2
    user, movie = (np.exp(random.random(samples) * np.log(half)).astype(np.int64) - 1 for _ in range(2))
    year = random.random(samples, dtype=np.float32)
    label = (random.random(samples) < 0.5).astype(np.float32)
    sizes = {"user": half, "movie": half + 1, "weekday": 7}
    return _clicks(user, movie + 1, random.integers(0, 7, samples), year, label, sizes)


def _clicks(
    user: npt.NDArray,
    movie: npt.NDArray,
    weekday: npt.NDArray,
    year: npt.NDArray,
    label: npt.NDArray,
    rows: dict[str, int],
) -> Clicks:
    history = np.zeros((len(user), HISTORY), dtype=np.int64)
    recent: dict[int, list[int]] = {}
    for sample, (who, what) in enumerate(zip(user.tolist(), movie.tolist(), strict=True)):
        before = recent.setdefault(who, [])
        history[sample, : len(before)] = before
        recent[who] = [*before, what][-HISTORY:]
    columns = {
        "user": user,
        "movie": movie,
        "weekday": weekday,
        "history": history,
        "history_length": np.maximum((history > 0).sum(1), 1),
        "year": year,
        "label": label,
    }
    return Clicks(columns, rows)
