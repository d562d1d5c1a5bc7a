"""What a training on prepared data does without: libraries that it does not use cost memory and a start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from slipstream.data.store import Store

HEAVY = ("polars", "pyarrow", "sklearn", "sympy", "torch._dynamo", "triton")

TRAINING = f"""
import sys
from pathlib import Path
from slipstream.training import TrainConfig, train

store, out = map(Path, sys.argv[1:])
model = {{"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]}}
for optimizer in ("adam", "rowwise_adagrad"):
    tree = {{"data": store, "model": model, "optimizer": {{"name": optimizer}}, "batch_size": 256}}
    train(TrainConfig.model_validate(tree | {{"out": out / optimizer, "checkpoint": {{"steps": 4}}}}))
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_a_training_on_prepared_data_loads_no_reader_and_no_compiler(
    make_store: Callable[..., Store], tmp_path: object
) -> None:
    store = make_store(2000)
    command = [sys.executable, "-c", TRAINING, str(store.path), f"{tmp_path}/runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
