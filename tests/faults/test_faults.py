"""What can go wrong around a training ends in one line, or does no harm."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slipstream.cli.entry import run
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import ConfigError, DataError, Interrupted, NonFiniteError, OutputError
from slipstream.kernels import cpu, reference
from slipstream.kernels.reference import wrap_step
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateSettings
from slipstream.staleness.popularity import ExactCounts
from slipstream.training import StepDone, TrainConfig, Trainer, train
from slipstream.training.config import save_config
from slipstream.training.memory import estimate_memory
from slipstream.training.run_folder import RunFolder


def config(**settings: object) -> TrainConfig:
    base = {
        "data": "unused",
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "optimizer": {"name": "adagrad", "lr": 0.05},
        "batch_size": 50,
        "log_every": 1,
        "threads": 1,
    }
    return TrainConfig.model_validate({**base, **settings})


@pytest.fixture
def make(tmp_path: Path):
    """A store of 1,000 samples."""

    def make(name: str = "store") -> Store:
        draw = np.random.default_rng(0)
        dense = draw.normal(size=(1000, 1)).astype(np.float32)
        features = [FeatureInfo(name="user", num_rows=60), FeatureInfo(name="item", num_rows=40)]
        with StoreWriter(tmp_path / name, features, dense=("price",)) as writer:
            ids = np.stack([draw.integers(0, 60, 1000), draw.integers(0, 40, 1000)], 1).astype(np.int32)
            writer.append(ids, dense, draw.integers(0, 2, 1000).astype(np.float32))
            return writer.commit({})

    return make


def test_two_trainings_in_one_folder(make, tmp_path):
    out = tmp_path / "run"
    with RunFolder(out, 2), pytest.raises(ConfigError, match="another training is at work"):
        train(config(out=out), store=make())
    assert not out.exists(), "an empty run folder goes away"


def test_sigterm_saves_and_the_rest_is_equal(make, tmp_path):
    store = make()
    began: list[float] = []

    def terminate(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            began.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="--resume"):
        train(config(out=tmp_path / "a"), store=store, listeners=[terminate])
    assert time.monotonic() - began[0] < 5
    resumed, whole = train(config(out=tmp_path / "a"), store=store, resume=True), train(config(), store=store)
    assert (resumed.auc, resumed.log_loss, resumed.steps) == (whole.auc, whole.log_loss, whole.steps)
    with pytest.raises(Interrupted, match="nothing of it"):
        train(config(), store=store, listeners=[terminate])


def test_sigterm_and_resume_through_the_command_line(make, tmp_path, capsys):
    store, out, settings = make(), tmp_path / "run", tmp_path / "config.yaml"
    save_config(config(epochs=100_000, log_every=10), settings)
    arguments = ["train", str(store.path), "--config", str(settings), "--quiet", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "slipstream", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics, until = out / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in said and len(said.splitlines()) == 1
    # The checkpoint is found, and what differs from its configuration is named.
    assert run(["train", "--resume", str(out), "--set", "epochs=2", "--quiet"]) == 2
    assert "epochs" in capsys.readouterr().err
    short = [*arguments[:-1], str(tmp_path / "short"), "--set", "epochs=2"]
    assert run(short) == 0 and run(["train", "--resume", str(tmp_path / "short"), "--quiet"]) == 0


@pytest.mark.parametrize(("size", "said"), [(10, "was truncated"), (None, "was changed")])
def test_data_that_changes_under_a_training(make, size, said):
    store = make()

    def harm(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            with (store.path / "ids.i32").open("r+b") as file:
                file.truncate(size) if size is not None else file.write(b"\1")

    with pytest.raises(DataError, match=said):
        train(config(), store=store, listeners=[harm])


def test_data_that_changed_while_a_training_was_down(make, tmp_path):
    store = make()

    def die(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config(out=tmp_path / "a"), store=store, listeners=[die])
    with (store.path / "ids.i32").open("r+b") as file:
        file.write(b"\1\1")
    with pytest.raises(DataError, match="checksum"):
        train(config(out=tmp_path / "a"), store=Store.open(store.path), resume=True)


def test_a_folder_that_cannot_be_written(make):
    with pytest.raises(OutputError, match="cannot be written"):
        train(config(out=Path("/proc/slipstream-cannot-write-here")), store=make())


def test_a_clock_that_jumps_changes_nothing(make, tmp_path, monkeypatch):
    store = make()
    calm = train(config(out=tmp_path / "a"), store=store)
    monkeypatch.setattr(time, "time", lambda: random.uniform(-1e9, 1e10))
    assert train(config(out=tmp_path / "b"), store=store).log_loss == calm.log_loss


def test_memory_is_estimated_and_refused(make):
    settings, store = config(max_memory="10kB", optimizer={"name": "adam"}).resolved(), make()
    trainer = Trainer(settings, store)
    trainer.run()
    states = [value for o in trainer.optimizers for entry in o.state.values() for value in entry.values()]
    tensors = [*trainer.model.state_dict().values(), *(value for value in states if torch.is_tensor(value))]
    assert sum(tensor.nbytes for tensor in tensors) <= estimate_memory(settings, store) < 1_000_000
    with pytest.raises(ConfigError, match="max_memory"):
        train(settings, store=store)


def test_a_loss_that_is_not_finite_is_named_or_left_out(make):
    path = make().path
    with (path / "dense.f32").open("r+b") as file:  # behind the checks of preparation
        file.seek(333 * 4)
        file.write(np.float32("nan").tobytes())
    store = Store.open(path)
    with pytest.raises(NonFiniteError, match=r"from samples 333 \(1 of .* rows of the first: user="):
        train(config(), store=store)
    result = train(config(on_nonfinite="skip"), store=store)
    assert result.nonfinite_batches == 1 and np.isfinite(result.log_loss)
    assert result.steps == 17


def test_a_loss_of_pairs_that_is_not_finite_is_named(make):
    trainer = Trainer(config(model={"name": "mf", "embedding_dim": 4, "objective": "bpr"}).resolved(), make())
    batch = trainer.store.slice(0, 50)
    tables: Any = trainer.model.embeddings
    user, item = (tables.tables[name].weight for name in tables.one_hot_names)
    row = int(batch.inputs.ids[(batch.labels > 0).nonzero()[0, 0], 0])
    before = user.detach().clone()
    user.data[row] = np.nan
    first = int((batch.inputs.ids[:, 0] == row).nonzero()[0, 0])
    with pytest.raises(NonFiniteError, match=rf"loss is nan.* from samples {first}.* rows of the first: \w+={row}, "):
        trainer._step(batch)
    user.data.copy_(before)
    drawn = torch.ones(len(item), dtype=torch.bool)
    drawn[batch.inputs.ids[:, 1].long()] = False
    assert drawn[1:].any()
    item.data[drawn] = np.nan  # rows that no sample has
    with pytest.raises(NonFiniteError, match=r"in no sample's logit .* the weight of embeddings\.tables\.\w+\.weight"):
        trainer._step(batch)


def test_a_gradient_that_is_not_finite_reaches_no_weight(make):
    trainer = Trainer(config(on_nonfinite="skip").resolved(), make())
    original = trainer.model.loss
    trainer.model.loss = lambda batch: original(batch) + (trainer.model(batch.inputs) * 0).abs().sqrt().sum()  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._step(trainer.store.slice(0, 50))
    assert trainer.step.left_out == 1 and trainer.steps == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
def test_steps_beyond_31_bits_wait_as_before(backend):
    """Rows that waited 3 steps decay by 3 steps, wherever the counter stands."""

    def after(step: int) -> torch.Tensor:
        weight, first, second = torch.ones(4, 8), torch.ones(4, 8), torch.ones(4, 8)
        last = torch.full((4,), wrap_step(step - 4), dtype=torch.int32)
        tables = TableSet([TableState(weight, first, second, last_step=last)])
        lookups = Lookups(torch.arange(4).unsqueeze(1), None, 1)
        gradient = RowGradients(lookups, torch.ones(4, 1, 8), (0,))
        backend.row_update(tables, [gradient], UpdateSettings(Rule.ADAM, step, 0.1, 1e-8, 0.9, 0.999))
        assert last.tolist() == [wrap_step(step)] * 4
        return first

    wanted = torch.full((4, 8), 0.9**3 + (1 - 0.9**3) * 0.1)
    for step in (5, 2**31 - 1, 2**31, 2**31 + 2, 2**32, 2**32 + 3):
        torch.testing.assert_close(after(step), wanted, rtol=1e-5, atol=1e-6)


def test_counts_of_accesses_stop_at_their_end():
    counts = ExactCounts(2)
    counts.scores.fill_(2**31 - 2)
    counts.add(torch.tensor([0, 0, 0]))
    assert counts.scores.tolist() == [2**31 - 1, 2**31 - 2]
