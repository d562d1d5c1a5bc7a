"""What is fuzzed: each reader with its good inputs, damaged, read through the command line; and whole trainings.

A target passes when the command ends with status 0 or with one line and status 2. Whatever else happens, an exception
that is not ours, a second line, a warning of a wrong computation, is a finding.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from hypothesis import strategies as st
from tests.fuzz import policies, trainings
from tests.fuzz.commands import called, probabilities
from tests.fuzz.damage import damaged
from tests.malformed.corpus import FIXTURES
from tests.malformed.parquet import GOOD, written
from tests.malformed.stored import CHECKPOINTS, FINAL, RECORD, STEP, TENSORS, continued, manifest_of, resumed, seal
from tests.malformed.text import READERS

from slipstream.data.encoder import Encoder
from slipstream.data.prepare import encode_raw
from slipstream.errors import SlipstreamError

_DATA = ("ids.i32", "labels.u8", "dense.f32", "time.i64", "bags/tags.offsets.i64", "bags/tags.values.i32")
"""Files of the prepared data set in the fixtures."""
Target = tuple[Sequence[bytes] | Callable[[], Sequence[bytes]], Callable[[Path, bytes], list[str]]]
"""Good inputs, or what makes them when they are wanted, and how one is given to a command."""


def _text(name: str) -> Target:
    reader = next(reader for reader in READERS if reader.name == name)
    return [reader.good, gzip.compress(reader.good, mtime=0)], reader.write


def _movies(folder: Path, data: bytes) -> list[str]:
    reader = next(reader for reader in READERS if reader.name == "movielens")
    command = reader.write(folder, reader.good)
    (folder / "ml/movies.dat").write_bytes(data)
    return command


def _parquet(name: str) -> Target:
    import pyarrow as pa

    def write(folder: Path, data: bytes) -> list[str]:
        (folder / "t.parquet").write_bytes(data)
        return ["prepare", str(folder / "t.parquet"), str(folder / "out"), "--format", name]

    return [written(pa.table(GOOD[name]))], write


def _schema(folder: Path, data: bytes) -> list[str]:
    (folder / "schema.yaml").write_bytes(data)
    return ["prepare", str(FIXTURES / "clicks.csv"), str(folder / "out"), "--schema", str(folder / "schema.yaml")]


def _config(folder: Path, data: bytes) -> list[str]:
    # Data that does not exist: what is fuzzed is the reading of the configuration, not the training.
    (folder / "config.yaml").write_bytes(data)
    return ["train", str(folder / "none"), "--config", str(folder / "config.yaml"), "--quiet"]


def _setting(folder: Path, data: bytes) -> list[str]:
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")
    return ["train", str(folder / "none"), "--quiet", "--set", text]


def _manifest(folder: Path, data: bytes) -> list[str]:
    shutil.copytree(FIXTURES / "store_v1", folder / "store")
    (folder / "store" / "store.json").write_bytes(data)
    return ["inspect", str(folder / "store")]


def _encoder(folder: Path, data: bytes) -> list[str]:
    shutil.copytree(FIXTURES / "store_v1", folder / "store")
    (folder / "store" / "encoder.json").write_bytes(data)
    (folder / "store" / "store.json").unlink()  # else the checksum ends it
    (folder / "out").mkdir()
    return ["encoder", str(folder / "store")]


def _result(folder: Path, data: bytes) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "result.json").write_bytes(data)
    return ["compare", str(folder / "run"), "--csv", str(folder / "out.csv")]


def _model(folder: Path, data: bytes) -> list[str]:
    shutil.copytree(FIXTURES / "run_v1", folder / "run")
    (folder / "run" / "model.safetensors").write_bytes(data)
    return ["predict", str(folder / "run"), str(FIXTURES / "store_v1"), str(folder / "out.csv")]


def _tensors(folder: Path, data: bytes) -> list[str]:
    manifest = manifest_of("finished", FINAL)
    manifest["files"][TENSORS] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    return continued(folder, json.dumps(manifest).encode(), data)


def _metrics(folder: Path, data: bytes) -> list[str]:
    shutil.copytree(CHECKPOINTS / "finished", folder / "run")
    (folder / "run" / "metrics.jsonl").write_bytes(data)
    return ["report", str(folder / "run")]


def _record(folder: Path, data: bytes) -> list[str]:
    (folder / "record.json").write_bytes(data)
    return ["bench", "frontier", "--also", str(folder / "record.json"), "--html", str(folder / "page.html")]


def _samples(folder: Path, data: bytes) -> list[str]:
    """The first byte says which file of the store the others are."""
    shutil.copytree(FIXTURES / "store_v1", folder / "store")
    (folder / "store" / _DATA[(data or b"0")[0] % len(_DATA)]).write_bytes(data[1:])
    return ["train", str(folder / "store"), "--quiet", "--batch-size", "64"]


def _vocabulary(folder: Path, data: bytes) -> list[str]:
    store, run = folder / "store", folder / "run"
    shutil.copytree(FIXTURES / "store_v1", store)
    shutil.copytree(FIXTURES / "run_v1", run)
    (store / "vocabulary/user.parquet").write_bytes(data)
    seal(store, run)
    return ["predict", str(run), str(FIXTURES / "clicks.csv"), str(folder / "out.csv"), "--encoder", str(store)]


def _fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


_SETTINGS = (
    b"optimizer.lr=0.01",
    b"model={name: dlrm, top: [8, 8]}",
    b"policy.name=psse",
    b"seed=3",
    b"prepare.seed=1",
)
TARGETS: dict[str, Target] = {
    **{reader.name: _text(reader.name) for reader in READERS},
    "movies": ([b"10::A (2001)::Comedy\n11::B (2002)::Drama|War\n"], _movies),
    **{f"{name}_parquet": _parquet(name) for name in GOOD},
    "schema": ([_fixture("schema.yaml")], _schema),
    "config": ([_fixture("run_v1/config.yaml")], _config),
    "set": (_SETTINGS, _setting),
    "manifest": ([_fixture("store_v1/store.json")], _manifest),
    "encoder": ([_fixture("store_v1/encoder.json")], _encoder),
    "result": ([json.dumps(json.loads(_fixture("run_v1/result.json"))).encode()], _result),
    "model": ([_fixture("run_v1/model.safetensors")], _model),
    "resumed": ([json.dumps(manifest_of("interrupted", STEP)).encode()], resumed),
    "continued": ([json.dumps(manifest_of("finished", FINAL)).encode()], continued),
    "policies": (policies.manifests, policies.resumed),
    "tensors": ([(CHECKPOINTS / "finished" / FINAL / TENSORS).read_bytes()], _tensors),
    "metrics": ([(CHECKPOINTS / "finished/metrics.jsonl").read_bytes()], _metrics),
    "record": ([RECORD.read_bytes()], _record),
    "samples": ([bytes([i]) + _fixture(f"store_v1/{name}") for i, name in enumerate(_DATA)], _samples),
    "vocabulary": ([_fixture("store_v1/vocabulary/user.parquet")], _vocabulary),
}


TRAININGS = "trainings"
"""The target whose inputs are drawn, not damaged."""
NAMES = (*TARGETS, TRAININGS)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """What a target is tried on."""
    return trainings.configs() if name == TRAININGS else damaged(good(name))


def good(name: str) -> Sequence[bytes]:
    """The good inputs of a target."""
    found = TARGETS[name][0]
    return found() if callable(found) else found


def check(name: str, data: bytes, folder: Path) -> None:
    """Gives a target these bytes in an empty folder; raises AssertionError, or what was not ours, on a finding."""
    if name == TRAININGS:
        trainings.check(data, folder)
        return
    arguments = TARGETS[name][1](folder, data)
    status = called([], lambda _: _load_encoder(folder)) if arguments[0] == "encoder" else called(arguments)
    assert not list(folder.rglob(".*")), "something half-written is left"
    if arguments[0] == "predict" and status == 0:
        probabilities(folder / "out.csv")


def _load_encoder(folder: Path) -> int:
    """The encoder by itself: no command takes one without its checksum."""
    try:
        for _ in encode_raw(FIXTURES / "clicks.csv", Encoder.load(folder / "store"), 100):
            pass
    except SlipstreamError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0
