"""The GPU kernels compile for a GPU, on a machine that has none."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tests.backends import needs_triton

SCRIPT = Path(__file__).parents[1] / "compile_for_gpu.py"


@needs_triton
@pytest.mark.skipif(platform.system() != "Linux", reason="Triton's compiler for NVIDIA is for Linux")
def test_every_kernel_compiles_without_local_memory(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {
        "count_marked_bags", "count_marked_one_hot", "count_rows", "find_starts", "hardest", "hash_bag",
        "hash_columns", "keys_bags", "keys_one_hot", "learn", "mark_heads", "norms_of_tables", "pool_bags",
        "pool_one_hot", "predict", "sum_long_segments", "update_rows",
    }  # fmt: skip
    assert {name for name, kernel in found.items() if kernel["local"]} == set()
    # Rows that begin at multiples of 16 bytes are read 16 bytes at a time.
    for name in ("pool_one_hot", "pool_bags", "sum_long_segments", "update_rows"):
        assert found[name]["wide_loads"] > 0, name
