"""What all tests share."""

from __future__ import annotations

import os

# Before torch is imported: idle threads of two OpenMP pools that spin starve each other where cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from tests.interpreter import ON_GPU  # before anything imports triton

# isort: split
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import browser as chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ON_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


@pytest.fixture
def open_in_browser(tmp_path: Path) -> Callable[[Path], tuple[str, list[str]]]:
    """Opens a page in headless Chromium: the DOM it makes of it, and the lines of its console."""
    program = chromium.program()
    if program is None:
        pytest.skip("no Chromium on PATH")

    def visit(page: Path) -> tuple[str, list[str]]:
        profile = tmp_path / "profile"
        done = subprocess.run(
            [program, *chromium.FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return visit


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a finished run folder with given figures."""
    import json

    import yaml

    def make(name: str, policy: str = "none", **figures: object) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        result = {
            "policy": policy,
            "auc": 0.77,
            "log_loss": 0.45,
            "calibration": 1.01,
            "seconds": 10.0,
            "samples_per_second": 100_000.0,
            "share_of_inputs_trained": 1.0,
            "share_of_row_updates_skipped": 0.0,
            "seed": 0,
            "machine": {"processor": "a processor", "cores": 2},
            "versions": {"torch": "2.13.0"},
            "commit": "0123456789ab",
            **figures,
        }
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        config = {"seed": 0, "policy": {"name": policy}, "out": str(folder)}
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return folder

    return make
