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
from tests.backends import BACK_ENDS, load
from tests.outcome import outcome
from tests.training.conftest import write_store

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import ConfigError, DataError, Interrupted, NonFiniteError, OutputError
from slipstream.kernels import reference
from slipstream.kernels.reference import wrap_step
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateSettings
from slipstream.staleness.popularity import ExactCounts
from slipstream.training import CheckpointSaved, StepDone, TrainConfig, Trainer, train
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


@pytest.mark.parametrize("step", [2, 7, 18])
def test_sigterm_saves_between_two_batches_of_a_run(tmp_path, step):
    """Of an epoch whose order the policy decides run by run: what is left of the run at hand is gone on with."""
    store, settings = write_store(tmp_path / "store", 1000), {**TAKEN["runs"], "epochs": 2}

    def terminate(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    train(config(**settings, out=tmp_path / "whole"), store=store)
    with pytest.raises(Interrupted, match="--resume"):
        train(config(**settings, out=tmp_path / "a"), store=store, listeners=[terminate])
    assert [entry.name for entry in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step-{step:012d}"]
    train(config(**settings, out=tmp_path / "a"), store=store, resume=True)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "whole")


FILES = ("ids.i32", "dense.f32", "labels.u8", "time.i64", "bags/tags.values.i32", "bags/tags.offsets.i64")
TAKEN = {  # in other ways than in order, a batch a step
    "prequential": {"mode": "prequential", "chunk_size": 100},
    "shuffled": {"shuffle": True, "epochs": 2},
    "several batches at a time": {"policy": {"name": "random", "budget": 0.9}, "batch_size": 5},
    "runs": {"policy": {"name": "order", "order": "adaptive", "hot_bytes": 2000, "test_samples": 100}},
}


@pytest.mark.parametrize(("size", "said"), [(0, "was truncated"), (10, "was truncated"), (None, "was changed")])
@pytest.mark.parametrize("name", FILES)
def test_data_that_changes_under_a_training(tmp_path, name, size, said):
    """Where it fails, the process may be gone: reading a map of a file that has become shorter is a bus error."""
    store = write_store(tmp_path / "store", 1000)
    assert set(store.stamps) == set(FILES)
    with pytest.raises(DataError, match=rf"{name}: {said}"):
        train(config(), store=store, listeners=[Harm(store.path / name, size)])


@pytest.mark.parametrize("name", ["labels.u8", "bags/tags.offsets.i64"])
@pytest.mark.parametrize("settings", TAKEN.values(), ids=TAKEN)
def test_data_that_is_truncated_however_batches_are_taken(tmp_path, settings, name):
    store = write_store(tmp_path / "store", 1000)
    with pytest.raises(DataError, match=rf"{name}: was truncated"):
        train(config(**settings), store=store, listeners=[Harm(store.path / name, 0)])


@pytest.mark.parametrize("settings", [{}, TAKEN["prequential"]])
def test_data_that_is_truncated_in_the_last_step(tmp_path, settings):
    """What is left to do is the end: batches that wait, predictions, and what the result says of the data."""
    store, steps = write_store(tmp_path / "store", 1000), len(range(0, 1000 if settings else 900, 50))
    with pytest.raises(DataError, match=r"labels\.u8: was truncated"):
        train(config(**settings), store=store, listeners=[Harm(store.path / "labels.u8", 0, step=steps)])


class Harm:
    """Truncates a file after a step, or (size None) writes to it."""

    def __init__(self, file: Path, size: int | None, step: int = 3) -> None:
        self.file, self.size, self.step = file, size, step

    def __call__(self, event: object) -> None:
        if isinstance(event, StepDone) and event.step == self.step:
            with self.file.open("r+b") as file:
                file.truncate(self.size) if self.size is not None else file.write(b"\1")


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
    store, written = make(), {"calm": [], "jumping": []}
    for name, saved in written.items():
        if name == "jumping":
            monkeypatch.setattr(time, "time", lambda: random.uniform(-1e9, 1e10))
        note = lambda event, to=saved: to.append(event.path.name) if isinstance(event, CheckpointSaved) else None  # noqa: E731
        train(config(out=tmp_path / name, checkpoint={"steps": 7, "minutes": 5}), store=store, listeners=[note])
    assert written["jumping"] == written["calm"] == ["step-000000000007", "step-000000000014", "final"]
    assert outcome(tmp_path / "jumping") == outcome(tmp_path / "calm")


def test_memory_is_estimated_and_refused(make):
    settings, store = config(max_memory="10kB", optimizer={"name": "adam"}).resolved(), make()
    trainer = Trainer(settings, store)
    trainer.run()
    states = [value for o in trainer.optimizers for entry in o.state.values() for value in entry.values()]
    tensors = [*trainer.model.state_dict().values(), *(value for value in states if torch.is_tensor(value))]
    assert sum(tensor.nbytes for tensor in tensors) <= estimate_memory(settings, store) < 1_000_000
    with pytest.raises(ConfigError, match="max_memory"):
        train(settings, store=store)


def test_a_lack_of_memory_is_one_line(tmp_path):
    """A table that the machine has no room for: 19 GB where the process may have 12."""
    features = [FeatureInfo(name="user", num_rows=300_000_000), FeatureInfo(name="item", num_rows=40)]
    with StoreWriter(tmp_path / "store", features, dense=()) as writer:
        labels = np.arange(1000, dtype=np.float32) % 2
        writer.append(np.zeros((1000, 2), dtype=np.int32), np.empty((1000, 0), dtype=np.float32), labels)
        writer.commit({})
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))\n"
        "from slipstream.cli.entry import main; main()"
    )
    command = [sys.executable, "-c", code, "train", str(tmp_path / "store"), "--model", "dlrm", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "memory does not suffice" in line and "--max-memory" in line


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


ALL_BACK_ENDS = ("reference", *BACK_ENDS)


def kernels_of(name: str) -> Any:
    return reference if name == "reference" else load(name)


@pytest.mark.parametrize("backend", ALL_BACK_ENDS)
def test_steps_beyond_31_bits_wait_as_before(backend):
    """Rows that waited 3 steps decay by 3 steps, wherever the counter stands."""

    def after(step: int) -> torch.Tensor:
        weight, first, second = torch.ones(4, 8), torch.ones(4, 8), torch.ones(4, 8)
        last = torch.full((4,), wrap_step(step - 4), dtype=torch.int32)
        tables = TableSet([TableState(weight, first, second, last_step=last)])
        lookups = Lookups(torch.arange(4).unsqueeze(1), None, 1)
        gradient = RowGradients(lookups, torch.ones(4, 1, 8), (0,))
        settings = UpdateSettings(Rule.ADAM, step, 0.1, 1e-8, 0.9, 0.999)
        kernels_of(backend).row_update(tables, [gradient], settings)
        assert last.tolist() == [wrap_step(step)] * 4
        return first

    wanted = torch.full((4, 8), 0.9**3 + (1 - 0.9**3) * 0.1)
    for step in (5, 2**31 - 1, 2**31, 2**31 + 2, 2**32, 2**32 + 3):
        torch.testing.assert_close(after(step), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ALL_BACK_ENDS)
@pytest.mark.parametrize("rate", [1e-7, 2e-8])
def test_a_small_decay_adds_up_over_a_long_wait(backend, rate):
    """1 - rate is 1 in float32, or its distance from 1 a fifth off."""
    weight, waited = torch.ones(4, 8), round(1 / rate) - 1
    last = torch.tensor([0, 0, waited, waited], dtype=torch.int32)
    tables = TableSet([TableState(weight, torch.zeros(4, 8), torch.zeros(4, 8), last_step=last)])
    gradient = RowGradients(Lookups(torch.arange(4).unsqueeze(1), None, 1), torch.zeros(4, 1, 8), (0,))
    settings = UpdateSettings(Rule.ADAM, waited + 1, 1e-3, 1e-8, 0.9, 0.999, rate * 1e3, decoupled=True)
    kernels_of(backend).row_update(tables, [gradient], settings)
    torch.testing.assert_close(weight[:2], torch.full((2, 8), np.exp(-1.0), dtype=torch.float32), rtol=1e-5, atol=0)
    # A row that did not wait decays as torch has it.
    assert torch.equal(weight[2:], torch.ones(2, 8).mul_(1 - settings.lr * settings.weight_decay))


@pytest.mark.parametrize("backend", ["exact", *BACK_ENDS[1:]])
def test_counts_of_accesses_stop_at_their_end(backend):
    counts = ExactCounts(3)
    counts.scores.copy_(torch.tensor([2**31 - 2, 2**31 - 2, 2**31 - 4]))
    for ids in ([0, 0, 0, 2, 2], [0, 2]):
        if backend == "exact":
            counts.add(torch.tensor(ids))
        else:
            load(backend).count(counts.scores, torch.tensor(ids), 1.0)
    assert counts.scores.tolist() == [2**31 - 1, 2**31 - 2, 2**31 - 1]
