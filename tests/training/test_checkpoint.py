"""The format of checkpoints: what goes in comes out, damage is found, only what changed is written."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.data import atomic
from slipstream.embedding.table import Table
from slipstream.errors import CheckpointError, ConfigError, DataError, Interrupted, OutputError
from slipstream.training.checkpoint import CheckpointFolder, DamagedCheckpointWarning, folder, manifest, tensors
from slipstream.training.checkpoint.folder import Info
from slipstream.training.checkpoint.manifest import encode_manifest, read_manifest
from slipstream.training.checkpoint.touched import Touched
from slipstream.training.checkpoint.tree import join_tree, split_tree
from slipstream.training.position import Position


def info(steps: int) -> Info:
    return Info(position={"steps": steps}, config={}, data={})


TENSORS = st.sampled_from(
    [
        torch.arange(6).view(2, 3).t(),
        torch.tensor(1.5),
        torch.empty(0, 4),
        torch.zeros(3, dtype=torch.uint16),
        torch.tensor([True, False]),
        torch.randn(5, 2).to(torch.bfloat16),
        torch.tensor([float("nan"), float("inf")], dtype=torch.float64),
    ]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | TENSORS
STATES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        if not isinstance(two, torch.Tensor) or (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return one.contiguous().flatten().view(torch.uint8).equal(two.contiguous().flatten().view(torch.uint8))
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and (one == two or one != one)


@settings(deadline=None)
@given(state=STATES)
def test_any_state_survives_the_tree(state):
    tree, found = split_tree(state)
    assert same(join_tree(json.loads(json.dumps(tree, allow_nan=False)), found), state)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES)
def test_any_state_survives_the_disk(tmp_path, state):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save(state, info(1))
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and same(loaded.state, state)


def test_large_tensors_are_cut_and_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "SHARD_BYTES", 100)
    state = {"a": torch.arange(50).view(25, 2), "b": torch.arange(3), "c": torch.arange(70, dtype=torch.uint8)}
    path = CheckpointFolder(tmp_path).save(state, info(1))
    assert len(list(path.glob("*.safetensors"))) == 6
    assert all(file.stat().st_size < 400 for file in path.glob("*.safetensors"))
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and same(loaded.state, state)


def test_a_tensor_that_stands_twice_is_written_once(tmp_path):
    gate = torch.zeros(100_000, dtype=torch.uint8)
    path = CheckpointFolder(tmp_path).save({"table": gate, "policy": [gate]}, info(1))
    assert sum(file.stat().st_size for file in path.glob("*.safetensors")) < 150_000


def test_the_last_few_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2, 30):
        checkpoints.save({"step": step}, info(step))
    assert checkpoints.names() == ["step-000000000002", "step-000000000030"]
    checkpoints.save({"step": 31}, info(31), finished=True)
    assert checkpoints.names() == ["final"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_are_not_among_the_last_few(tmp_path, keep):
    checkpoints = CheckpointFolder(tmp_path, keep=3)
    for step in (4, 8, 12):
        path = checkpoints.save({"step": step, "weights": torch.ones(5)}, info(step))
        if step > 4:
            (path / "manifest.json").write_bytes(b"")
    again = CheckpointFolder(tmp_path, keep=keep)
    with pytest.warns(DamagedCheckpointWarning):
        loaded = again.newest()
    assert loaded is not None and loaded.state["step"] == 4
    assert again.save({"step": 6}, info(6)).is_dir()
    assert again.names() == ["step-000000000004", "step-000000000006"][-keep:]
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and loaded.state["step"] == 6


def test_one_that_takes_the_place_of_another_is_there_at_every_moment(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    if not atomic._exchange(one, two):
        pytest.skip("this system or file system cannot exchange two folders")
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save({"value": 1}, info(1), finished=True)
    moves = []

    def rename(old, new):
        moves.append((old, new))
        os_rename(old, new)
        assert CheckpointFolder(tmp_path).newest() is not None

    os_rename = os.rename
    monkeypatch.setattr(os, "rename", rename)
    checkpoints.save({"value": 2}, info(1), finished=True)
    assert not moves and checkpoints.names() == ["final"]  # they changed places in one step
    assert [entry.name for entry in checkpoints.path.iterdir()] == ["final"]
    loaded = checkpoints.newest()
    assert loaded is not None and loaded.state == {"value": 2}
    monkeypatch.setattr(os, "rename", os_rename)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # a system that cannot
    checkpoints.save({"value": 3}, info(1), finished=True)
    loaded = checkpoints.newest()
    assert loaded is not None and loaded.state == {"value": 3}
    assert [entry.name for entry in checkpoints.path.iterdir()] == ["final"]


def test_every_changed_byte_is_found(tmp_path):
    tries = 1000 if "KILLS" in os.environ else 150  # make faults
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({"weights": torch.randn(40, 4), "name": "x" * 50, "more": torch.arange(9)}, info(1))
    path = tmp_path / "checkpoints" / "step-000000000001"
    draw, found = random.Random(0), 0
    files = sorted(path.iterdir())
    for _ in range(tries):
        file = draw.choice(files)
        before = file.read_bytes()
        place = draw.randrange(len(before))
        changed = bytearray(before)
        changed[place] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        try:
            checkpoints.read(path.name)
        except CheckpointError:
            found += 1
        file.write_bytes(before)
    assert found == tries
    checkpoints.read(path.name)


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "empty manifest"])
def test_the_one_before_a_damaged_one_is_used_and_that_is_said(tmp_path, damage):
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2):
        checkpoints.save({"step": step, "weights": torch.ones(5)}, info(step))
    path = tmp_path / "checkpoints" / "step-000000000002"
    file = path / ("manifest.json" if "manifest" in damage else "tensors-00000.safetensors")
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty manifest":
            file.write_bytes(b"")
        case _:
            file.unlink()
    with pytest.warns(DamagedCheckpointWarning, match="step-000000000001 instead"):
        loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and loaded.state["step"] == 1
    shutil.rmtree(tmp_path / "checkpoints" / "step-000000000001")
    with pytest.raises(CheckpointError, match="no checkpoint before it"):
        CheckpointFolder(tmp_path).newest()


def test_a_newer_format_is_refused_and_a_foreign_file_is_not_opened(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    path = checkpoints.save({"a": torch.ones(2)}, info(1))
    manifest, _ = read_manifest(path)
    data, _ = encode_manifest(manifest.model_copy(update={"format_version": 99}))
    (path / "manifest.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="update slipstream-rec"):
        checkpoints.newest()
    for name in ("../../weights.safetensors", "/etc/passwd"):
        piece = manifest.tensors["a"].pieces[0].model_copy(update={"file": name})
        tensor = manifest.tensors["a"].model_copy(update={"pieces": (piece,)})
        data, _ = encode_manifest(manifest.model_copy(update={"tensors": {"a": tensor}}))
        (path / "manifest.json").write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.read(path.name)


class Tables:
    """Two tables with optimizer state, of which some rows change."""

    def __init__(self, rows: int, dim: int) -> None:
        weights = {name: torch.nn.Parameter(torch.randn(rows, dim)) for name in ("a", "b")}
        self.tables = {name: Table(weight, name) for name, weight in weights.items()}
        self.state = {name: torch.zeros(rows, dim) for name in weights}
        self.touched = Touched(self.tables)
        self.touched.follow({name: [table.weight.detach(), self.state[name]] for name, table in self.tables.items()})

    def change(self, rows: torch.Tensor) -> None:
        for name, table in self.tables.items():
            for listener in table.listeners:
                listener(table, rows)
            with torch.no_grad():
                table.weight[rows] += 1
                self.state[name][rows] += 2

    def tree(self) -> dict:
        return {
            "weights": {name: table.weight for name, table in self.tables.items()},
            "state": self.state,
            "counts": torch.arange(10),
        }


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_an_incremental_checkpoint_holds_the_rows_touched_and_reads_as_the_whole(tmp_path, monkeypatch, share):
    monkeypatch.setattr(folder, "INCREMENTAL_FROM", 1)
    made = Tables(20_000, 16)
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    full = checkpoints.save(made.tree(), info(1), touched=made.touched)
    whole = sum(file.stat().st_size for file in full.iterdir())
    for step in (2, 3):  # both from the same base
        made.change(torch.randperm(20_000)[: int(share * 20_000)])
        path = checkpoints.save(made.tree(), info(step), touched=made.touched)
    written = sum(file.stat().st_size for file in path.iterdir())
    kind = read_manifest(path)[0].kind
    assert (kind, written <= 0.05 * whole) == (("full", False) if share == 0.9 else ("rows", True))
    assert len(checkpoints.names()) == (1 if kind == "full" else 2), "the base stays"
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and same(loaded.state, {**made.tree(), "weights": _plain(made.tree()["weights"])})


def test_an_incremental_checkpoint_does_not_take_the_place_of_its_base(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "INCREMENTAL_FROM", 1)
    made = Tables(2000, 8)
    checkpoints = CheckpointFolder(tmp_path)
    for rows in (0, 20):  # the second without a step since the first
        made.change(torch.arange(rows))
        path = checkpoints.save(made.tree(), info(1), touched=made.touched)
        assert read_manifest(path)[0].kind == "full"
    made.change(torch.arange(10))
    path = checkpoints.save(made.tree(), info(2), touched=made.touched)
    assert read_manifest(path)[0].kind == "rows"
    for name in checkpoints.names():
        checkpoints.read(name)


def _plain(weights: dict) -> dict:
    return {name: weight.detach() for name, weight in weights.items()}


def test_an_incremental_checkpoint_whose_base_is_damaged_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "INCREMENTAL_FROM", 1)
    made = Tables(2000, 8)
    checkpoints = CheckpointFolder(tmp_path, keep=3)
    base = checkpoints.save(made.tree(), info(1), touched=made.touched)
    made.change(torch.arange(20))
    checkpoints.save(made.tree(), info(2), touched=made.touched)
    file = base / "tensors-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(CheckpointError):
        CheckpointFolder(tmp_path).newest()


def test_what_cannot_be_written_leaves_those_before_it(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({"step": 1}, info(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "fsync_path", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoints.save({"a": torch.ones(3)}, info(2))
    monkeypatch.undo()
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-000000000001"]
    loaded = checkpoints.newest()
    assert loaded is not None and loaded.state == {"step": 1}


def test_a_manifest_that_no_reader_takes_is_not_written(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    size = (checkpoints.save({"text": "x" * 1000}, info(1)) / "manifest.json").stat().st_size
    for module in (folder, manifest):
        monkeypatch.setattr(module, "MAX_BYTES", size)
    with pytest.raises(OutputError, match=r"step-000000000002: cannot be written .*bytes of manifest\.json"):
        checkpoints.save({"text": "x" * 1001}, info(2))
    assert [entry.name for entry in checkpoints.path.iterdir()] == ["step-000000000001"]
    checkpoints.save({"text": "x" * 1000}, info(3))
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and loaded.state == {"text": "x" * 1000}


def test_a_training_goes_on_from_more_samples_than_steps_have_digits():
    position = Position(epoch=0, samples=10**12, steps=5, predicted=10**12, scoring=False)
    position.check(10, 2 * 10**12)
    for wrong in ({"steps": 10**12}, {"samples": 2**53 + 1}, {"predicted": -1}):
        with pytest.raises(ConfigError, match="cannot stand"):
            replace(position, **wrong).check(10, 2**60)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o027)
    try:
        path = CheckpointFolder(tmp_path).save({"a": torch.ones(3)}, info(1))
    finally:
        os.umask(old)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {
        "manifest.json": "0o640",
        "tensors-00000.safetensors": "0o640",
    }


def test_counts_that_no_state_can_hold_are_refused(tmp_path):
    with pytest.raises(TypeError, match="ndarray"):
        CheckpointFolder(tmp_path).save({"counts": np.zeros(3)}, info(1))


@pytest.mark.parametrize(
    ("raised", "becomes", "said"),
    [
        (KeyError("model"), CheckpointError, "does not hold the state of this training .KeyError"),
        (ConfigError("is of another table", remedy="do this"), CheckpointError, "final: .*another table.*; do this"),
        (RuntimeError("can't allocate memory: you tried"), MemoryError, ""),
        (Interrupted("asked to end", remedy="saved"), Interrupted, "asked to end"),
        (DataError("was truncated", file="ids.i32"), DataError, "ids.i32: was truncated"),
    ],
)
def test_what_readers_of_a_state_raise(tmp_path, raised, becomes, said):
    CheckpointFolder(tmp_path).save({"a": 1}, info(1), finished=True)
    loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None
    with pytest.raises(becomes, match=said), loaded.taken_over():
        raise raised


def test_an_older_checkpoint_takes_the_place_of_one_whose_tree_lacks_a_tensor(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({"a": torch.ones(2)}, info(1))
    path = checkpoints.save({"a": torch.ones(2)}, info(2))
    manifest, _ = read_manifest(path)
    data, _ = encode_manifest(manifest.model_copy(update={"state": {"a": {"$tensor": "b"}}}))
    (path / "manifest.json").write_bytes(data)
    with pytest.warns(DamagedCheckpointWarning, match="tensor 'b' is missing"):
        loaded = CheckpointFolder(tmp_path).newest()
    assert loaded is not None and loaded.path.name == "step-000000000001"
