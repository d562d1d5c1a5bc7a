"""The tests at the lowest and at the newest versions of what we depend on that install here.

    python .ci/matrix.py [lowest|newest]… [-- arguments of pytest]

Each point gets a virtual environment of its own below $MATRIX_DIR (a new temporary folder without it, kept with it).
``lowest`` takes the lower bound of every dependency in pyproject.toml; ``newest`` whatever pip finds. Versions and
outcome of each point are printed at the end; the status is 1 when one failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100", "packaging")
SUBSET = (
    "tests/kernels",
    "tests/optim",
    "tests/embedding",
    "tests/data",
    "tests/versions",
    "tests/cli",
    "tests/report",
)
SHOWN = ("numpy", "torch", "numba", "polars", "pyarrow", "pydantic", "typer", "safetensors", "scikit-learn")


def requirements(point: str) -> list[str]:
    """What pip is asked for at a point."""
    if point == "newest":
        return [re.sub(r"[<>=~!].*", "", text) for text in PROJECT["dependencies"]]
    return [text.replace(">=", "==") for text in PROJECT["dependencies"]]


def main() -> int:
    """Runs the points."""
    given, _, pytest = " ".join(sys.argv[1:]).partition("--")
    points, arguments = given.split() or ["lowest", "newest"], pytest.split() or list(SUBSET)
    folder = Path(os.environ.get("MATRIX_DIR") or tempfile.mkdtemp(prefix="slipstream-matrix-"))
    lines: list[str] = []
    for point in points:
        python = folder / point / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / point], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        # Neither the user's constraints nor those of the project: they would decide the versions.
        free = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""}
        installed = subprocess.run([*pip, *requirements(point), *TOOLS], env=free, check=False).returncode == 0
        outcome = "does not install"
        if installed:
            # Compiled kernels are cached beside the sources by versions: nothing is shared by accident.
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                "NUMBA_CACHE_DIR": str(folder / point / "numba"),
            }
            done = subprocess.run([python, "-m", "pytest", "-q", *arguments], cwd=ROOT, env=environment, check=False)
            outcome = "passed" if done.returncode == 0 else f"failed with status {done.returncode}"
        listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
        versions = dict(line.split("==") for line in listed.splitlines() if line.count("==") == 1)
        found = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
        lines.append(f"{point}: {outcome} ({found}; {' '.join(arguments)})")
    print("\n".join(lines))
    return int(any("passed" not in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
