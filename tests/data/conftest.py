"""Raw files for the tests of this folder."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A file of the shared data folder beside the project; the test is skipped where there is none."""

    def find(name: str) -> Path:
        path = REPO.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs ../shared/data/{name}, which may not be bundled")
        return path

    return find


@pytest.fixture
def movietweetings() -> Path:
    return REPO / "examples" / "movietweetings"


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A block in which no file grows beyond so many bytes."""

    @contextmanager
    def full_disk(most: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk


@pytest.fixture(scope="session")
def criteo_lines() -> list[str]:
    """Lines like Criteo's, made up."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        dense = ["" if rng.random() < 0.2 else str(rng.integers(-3, 5000)) for _ in range(13)]
        categories = ["" if rng.random() < 0.1 else f"{rng.zipf(1.3) % 1000:08x}" for _ in range(26)]
        lines.append("\t".join([str(rng.integers(0, 2)), *dense, *categories]))
    return lines


@pytest.fixture
def criteo(tmp_path: Path, criteo_lines: list[str]) -> Path:
    path = tmp_path / "criteo.tsv"
    path.write_text("".join(line + "\n" for line in criteo_lines))
    return path
