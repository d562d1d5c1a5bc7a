"""What earlier versions wrote stays readable; what later ones will write is refused with a clear word.

``tests/fixtures/store_v1`` and ``run_v1`` were written by version 0.1.0 and never change, nor do ``store_v2`` and
``store_v3``, whose encoders are of versions 2 and 3, nor ``checkpoint_v1``: a training that was interrupted after a
full checkpoint and one of some rows, and the same training finished. A new format gets its own fixtures beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.malformed.corpus import FIXTURES

from slipstream.data.encoder import ENCODER_VERSION, Encoder
from slipstream.data.manifest import FORMAT_VERSION
from slipstream.data.prepare import encode_raw
from slipstream.data.store import Store
from slipstream.errors import NotPrepared
from slipstream.report.runs import load_runs
from slipstream.training import evaluate, predict, saved, train
from slipstream.training.checkpoint import CheckpointFolder, manifest
from slipstream.training.config import load_config

STORE, RUN, CHECKPOINTS = FIXTURES / "store_v1", FIXTURES / "run_v1", FIXTURES / "checkpoint_v1"
FINGERPRINT = "9da1c15d00eb"


def test_there_are_fixtures_of_every_format() -> None:
    found = FORMAT_VERSION, ENCODER_VERSION, saved.FORMAT_VERSION, manifest.FORMAT_VERSION
    assert found == (1, 3, 1, 1), "add fixtures of the new format"


def test_a_store_of_format_1() -> None:
    store = Store.open(STORE, verify=True)
    assert store.num_samples == 300 and store.fingerprint.startswith(FINGERPRINT)
    assert [feature.name for feature in store.features] == ["user", "item", "hour", "tags"]
    assert int(store.labels.sum()) == store.manifest.num_positives


@pytest.mark.parametrize(("folder", "version"), [(STORE, 1), (FIXTURES / "store_v2", 2), (FIXTURES / "store_v3", 3)])
def test_its_encoder_encodes_the_same_file_alike(folder: Path, version: int) -> None:
    store, encoder = Store.open(folder), Encoder.load(folder)
    assert encoder.spec.encoder_version == version
    (batch,) = encode_raw(FIXTURES / "clicks.csv", encoder, 1000)
    assert (batch.inputs.ids == store.ids).all() and (batch.inputs.dense == store.dense).all()
    assert (batch.inputs.bags[0].values == store.bags[0].values).all()


def test_a_model_of_format_1() -> None:
    found = evaluate(RUN, STORE, start=270)
    kept = json.loads((RUN / "result.json").read_text(encoding="utf-8"))
    assert found.scores.auc == pytest.approx(kept["auc"]) and found.scores.log_loss == pytest.approx(kept["log_loss"])
    assert np.isfinite(predict(RUN, STORE)).all()


def test_a_training_goes_on_from_checkpoints_of_format_1(tmp_path: Path) -> None:
    run = shutil.copytree(CHECKPOINTS / "interrupted", tmp_path / "run")
    newest = CheckpointFolder(run).newest()
    assert newest is not None and newest.manifest.kind == "rows" and newest.manifest.position["steps"] == 6
    lines = newest.state["listeners"]["JsonlMetrics"]["text"]
    assert isinstance(lines, str)  # later checkpoints hold them as bytes
    config = load_config(run / "config.yaml").model_copy(update={"data": STORE, "out": run})
    result = train(config, resume=True)
    kept = json.loads((CHECKPOINTS / "finished" / "result.json").read_text(encoding="utf-8"))
    assert result.auc == pytest.approx(kept["auc"]) and result.log_loss == pytest.approx(kept["log_loss"])
    weights = [load_file(folder / "model.safetensors") for folder in (run, CHECKPOINTS / "finished")]
    assert (run / "metrics.jsonl").read_text(encoding="utf-8").startswith(lines)
    for name, weight in weights[1].items():
        np.testing.assert_allclose(weights[0][name], weight, rtol=1e-5, atol=1e-7)


def test_a_finished_training_of_format_1_is_continued(tmp_path: Path) -> None:
    run = shutil.copytree(CHECKPOINTS / "finished", tmp_path / "run")
    config = load_config(run / "config.yaml").model_copy(update={"data": STORE, "out": None, "continue_from": run})
    assert np.isfinite(train(config).log_loss)


def test_a_result_of_version_0_1() -> None:
    (run,) = load_runs([RUN])
    assert run.policy == "none" and run.number("auc") == pytest.approx(0.32)


@pytest.mark.parametrize(("file", "key"), [("store.json", "format_version"), ("encoder.json", "encoder_version")])
def test_a_newer_format_is_refused(file: str, key: str, tmp_path: Path) -> None:
    shutil.copytree(STORE, tmp_path / "store")
    path = tmp_path / "store" / file
    # Whatever else a newer version writes, its number is what is complained about.
    newest = {"format_version": FORMAT_VERSION, "encoder_version": ENCODER_VERSION}[key]
    written = {**json.loads(path.read_text(encoding="utf-8")), key: newest + 1, "new": {}}
    path.write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(
        NotPrepared, match=rf"{newest + 1}, this slipstream reads up to {newest}; update slipstream-rec"
    ):
        Store.open(tmp_path / "store") if file == "store.json" else Encoder.load(tmp_path / "store")
