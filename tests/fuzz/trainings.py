"""Whole trainings of settings that are allowed one by one: what follows from each, and from any two together.

Settings are drawn from the JSON schema of the configuration, so that a new one is drawn without a word here. A finding
is what ``targets`` calls one, and a finished training that cannot be reported, scored or resumed to the same bits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from tests.fuzz.commands import called, probabilities
from tests.fuzz.folders import lasting_folder
from tests.malformed.corpus import FIXTURES
from tests.malformed.text import READERS
from tests.training.conftest import write_store
from tests.training.test_resume import Died, Dies

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.training import TrainConfig, evaluate, train
from slipstream.training.checkpoint.folder import FOLDER

_SCHEMA = TrainConfig.model_json_schema()
_LEFT_OUT = {"data", "format", "columns", "cache", "out", "continue_from", "compile", "device", "max_memory"}
"""Settings of files and of the machine, and one that takes a minute of a compiler."""
_WHOLE = (0, 1, 2, 3, 5, 8, 17, 64, 300, 5000, 2**31 - 1, 2**40)
_REAL = (0.0, 1e-300, 1e-30, 1e-6, 1e-3, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0, 1.5, 3.0, 20.0, 1e9, 1e38, 1e300)
_SHARE = (0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.9, 1.0)
_MOST = {
    "batch_size": 300, "epochs": 2, "threads": 3, "bits": 17, "sketch_width": 5000, "sketch_heavy": 5000,
    "embedding_dim": 64, "top": 64, "bottom": 64, "deep": 64, "layers": 64, "rank": 64, "cross_layers": 3,
    "candidates": 64, "chunk_size": 5000, "row_cache_bytes": 5000, "report_points": 64,
}  # fmt: skip
"""Where a larger one would only take longer."""
_NAMES = ("user", "item", "tags", "price")


def _value(draw: st.DrawFn, schema: Mapping[str, Any], name: str) -> Any:
    if "$ref" in schema:
        schema = _SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    for several in ("oneOf", "anyOf"):
        if several in schema:
            return _value(draw, draw(st.sampled_from(schema[several])), name)
    match schema["type"]:
        case "null":
            return None
        case "boolean":
            return draw(st.booleans())
        case "integer":
            return draw(st.sampled_from([v for v in _WHOLE if _within(schema, v) and v <= _MOST.get(name, v)]))
        case "number":
            share = name.rpartition("_")[2] in ("budget", "share", "rate", "holdout")
            return draw(st.sampled_from([v for v in (_SHARE if share else _REAL) if _within(schema, v)]))
        case "string":
            return draw(st.sampled_from(_NAMES))
        case "array" if "prefixItems" in schema:
            return [_value(draw, item, name) for item in schema["prefixItems"]]
        case "array":
            return [_value(draw, schema["items"], name) for _ in range(draw(st.integers(0, 2)))]
        case _:
            return _section(draw, schema["properties"])


def _within(schema: Mapping[str, Any], value: float) -> bool:
    above = value > schema.get("exclusiveMinimum", -np.inf) and value >= schema.get("minimum", -np.inf)
    return above and value < schema.get("exclusiveMaximum", np.inf) and value <= schema.get("maximum", np.inf)


def _section(draw: st.DrawFn, properties: Mapping[str, Any], always: Sequence[str] = ()) -> dict[str, Any]:
    """Some of the settings, at least those whose choice decides which others there are."""
    always = (*always, "name", "inputs", "rows")
    chosen = {name: schema for name, schema in properties.items() if name in always or draw(st.integers(0, 3)) == 0}
    return {name: _value(draw, schema, name) for name, schema in chosen.items()}


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """The settings of a training in JSON, with the name of the data among them; most go together, not all."""
    properties = {name: schema for name, schema in _SCHEMA["properties"].items() if name not in _LEFT_OUT}
    config = _section(draw, properties, ("model", "policy", "optimizer", "batch_size"))
    config.setdefault("threads", 1)
    data = draw(st.sampled_from(sorted([*_stores(), *_raw()])))
    if draw(st.integers(0, 9)) != 7:
        _mend(draw, config, data)
    return json.dumps({**config, "data": data}).encode()


def _mend(draw: st.DrawFn, config: dict[str, Any], data: str) -> None:
    """Leaves out what the others forbid, where a draw would seldom do so."""
    optimizer, policy = config["optimizer"], config["policy"]["name"]
    names = {optimizer["name"], optimizer.get("dense_name")}
    left_out = ["hotline"] if "row_cache_bytes" not in config else []
    if policy in ("slipstream", "order"):
        left_out += ["mode", "shuffle"]
    if policy not in ("none", "random", "importance", "guard"):
        optimizer.pop("untouched", None)
        config.pop("engine", None)
    if config.get("mode") == "prequential" and "mode" not in left_out:
        left_out += ["epochs", "shuffle", "holdout"]
        if config.get("score_to") is not None:
            left_out.append("score_from")
    else:
        left_out += ["score_from", "score_to"]
    if data in _stores():
        left_out.append("prepare")
    for name in left_out:
        config.pop(name, None)
    if not names & {"adam", "adamw"}:
        optimizer.pop("betas", None)
    if "sgd" not in names:
        optimizer.pop("momentum", None)
    if draw(st.integers(0, 2)):
        config.pop("engine", None)


@cache
def _stores() -> dict[str, Path]:
    """Data of several kinds, made once in a process and removed at its end."""
    folder = lasting_folder()
    write_store(folder / "mixed", 240)
    write_store(folder / "few", 12, seed=3)
    write_store(folder / "positives", 60, all_positive=True)
    columns = (FeatureInfo(name="user", num_rows=20), FeatureInfo(name="item", num_rows=15))
    bags = (
        FeatureInfo(name="none", num_rows=1, multi_hot=True),
        FeatureInfo(name="tags", num_rows=9, multi_hot=True),
    )
    rng, count = np.random.default_rng(1), 120
    labels = rng.integers(0, 2, count).astype(np.float32)
    ids = np.stack([rng.integers(0, feature.num_rows, count) for feature in columns], 1).astype(np.int32)
    times = np.arange(count, dtype=np.int64)
    with StoreWriter(folder / "soft", columns, dense=("price",), has_time=True, label_dtype="float32") as writer:
        writer.append(ids, np.ones((count, 1), np.float32), rng.random(count).astype(np.float32), times, [])
        writer.commit({})
    with StoreWriter(folder / "columns", columns, dense=(), has_time=False) as writer:
        writer.append(ids, np.zeros((count, 0), np.float32), labels, None, [])
        writer.commit({})
    with StoreWriter(folder / "dense", columns, dense=("price", "age", "width"), has_time=True) as writer:
        writer.append(ids, rng.normal(size=(count, 3)).astype(np.float32), labels, times, [])
        writer.commit({})
    lengths = np.where(np.arange(count) % 37 == 0, 3, 0)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    values = rng.integers(0, 9, offsets[-1]).astype(np.int32)
    empty = np.zeros(0, np.int32), np.zeros(count + 1, np.int64)
    with StoreWriter(folder / "bags", bags, dense=(), has_time=False) as writer:
        none = np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32)
        writer.append(*none, labels, None, [empty, (values, offsets)])
        writer.commit({})
    return {path.name: path for path in folder.iterdir()}


@cache
def _raw() -> dict[str, dict[str, Any]]:
    """Raw files of every format, as the settings that name them; as long as the stores."""
    folder = lasting_folder()
    found: dict[str, dict[str, Any]] = {
        "clicks": {"data": FIXTURES / "clicks.csv", "columns": FIXTURES / "schema.yaml"}
    }
    for reader in READERS:
        (folder / reader.name).mkdir()
        first, lines = reader.lines[: reader.header], reader.lines[reader.header :]
        command = reader.write(folder / reader.name, "".join(f"{line}\n" for line in [*first, *lines * 12]).encode())
        found[f"raw {reader.name}"] = {"data": Path(command[1]), "format": reader.name}
    return found


def check(data: bytes, folder: Path) -> None:
    """Trains, and uses what was trained; raises AssertionError, or what was not ours, on a finding."""
    config, run = json.loads(data), folder / "run"
    name = config.pop("data")
    config |= {"data": _stores()[name]} if name in _stores() else {**_raw()[name], "cache": folder / "cache"}
    (folder / "config.yaml").write_text(json.dumps(config, default=str))
    more = ["--quiet", "--max-memory", "2GB", "--out", str(run)]
    if called(["train", "--config", str(folder / "config.yaml"), *more]) != 0:
        return
    assert called(["report", str(run)]) == 0
    # Of a raw file that which was made of it.
    store = config["data"] if name in _stores() else next(path.parent for path in folder.rglob("store.json"))
    assert called(["predict", str(run), str(store), str(folder / "out.csv")]) == 0
    probabilities(folder / "out.csv")
    assert called(["evaluate", str(run), str(store)]) == 0
    _score(run, store, config)
    if config.get("row_cache_bytes"):
        _without_a_cache({**config, "out": folder / "uncached"}, run)
    called(["train", str(store), "--continue", str(run), "--out", str(folder / "more"), "--quiet"])
    _resume({**config, "out": folder / "cut"}, (run / "model.safetensors").read_bytes())
    assert not list(folder.rglob(".*")), "something half-written is left"


def _score(run: Path, store: Path, config: Mapping[str, Any]) -> None:
    """The model that was written has the scores that the training ended with."""
    result = json.loads((run / "result.json").read_text())
    if config.get("mode") == "prequential" or result["log_loss"] is None:
        return
    stop = min(Store.open(store).num_samples, config.get("max_samples") or 2**63)
    scores = evaluate(run, store, start=stop - result["samples_scored"], stop=stop).scores
    assert scores.log_loss == pytest.approx(result["log_loss"], rel=1e-5)


def _without_a_cache(config: Mapping[str, Any], run: Path) -> None:
    """Where the tables lie changes nothing that is computed."""
    with warnings.catch_warnings(record=True):
        train(TrainConfig.model_validate({**config, "row_cache_bytes": None, "hotline": False}))
    for figure in ("log_loss", "samples", "steps"):
        cached, plain = (json.loads((folder / "result.json").read_text())[figure] for folder in (run, config["out"]))
        assert cached == pytest.approx(plain, rel=1e-4), f"{figure} with a row cache is {cached}, without it {plain}"


def _resume(config: Mapping[str, Any], whole: bytes) -> None:
    """Trains again, is cut off after a checkpoint, and goes on to the same bits."""
    config = {**config, "checkpoint": {**config.get("checkpoint", {}), "steps": 7, "minutes": None}}
    with warnings.catch_warnings(record=True), suppress(Died):
        train(TrainConfig.model_validate(config), listeners=[Dies(1, 0)])
    if not (config["out"] / FOLDER).is_dir():  # with a row cache nothing is saved
        return
    assert called(["train", "--resume", str(config["out"]), "--quiet"]) == 0
    by_clock = config["policy"].get("half_life_unit") == "seconds"
    assert by_clock or (config["out"] / "model.safetensors").read_bytes() == whole, "resumed to other bits"
