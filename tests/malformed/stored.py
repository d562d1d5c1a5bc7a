"""What the product itself has written and somebody has changed: stores, encoders, results, models, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tests.malformed.corpus import FIXTURES, Case

CHECKPOINTS = FIXTURES / "checkpoint_v1"
RECORD = FIXTURES.parents[1] / "benchmarks/results/frontier_globo_wide.json"
STEP, FINAL, TENSORS = "checkpoints/step-000000000006", "checkpoints/final", "tensors-00000.safetensors"
Change = Callable[[dict[str, Any]], object]
Damage = Callable[[Path], object]

TEXTS: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "invalid UTF-8": b'{"a": "\xff"}',
    "half a surrogate": b'{"format_version": 1, "encoder_version": 1, "policy": "\\ud800"}',
    "NUL bytes": bytes(64),
    "100,000 brackets": b"[" * 100_000,
    "10,000 nested objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "an integer of 5000 digits": b'{"format_version": ' + b"9" * 5000 + b"}",
    "a byte-order mark and nothing": b"\xef\xbb\xbf",
}


def cases() -> Iterator[Case]:
    """Stores, encoders, results, records, models, checkpoints."""
    yield from _stores()
    yield from _encoders()
    yield from _results()
    yield from _models()
    yield from _checkpoints()


# --- store.json and the files it names


def _store(name: str, damage: Damage, *says: str, command: str = "train") -> Case:
    def build(folder: Path) -> list[str]:
        shutil.copytree(FIXTURES / "store_v1", folder / "store")
        damage(folder / "store")
        if command == "inspect":
            return ["inspect", str(folder / "store")]
        if command == "evaluate":
            return ["evaluate", str(FIXTURES / "run_v1"), str(folder / "store")]
        train = ["train", str(folder / "store"), "--quiet", "--out", str(folder / "out"), "--batch-size", "64"]
        return [*train, "--set", "shuffle=true"] if command == "shuffle" else train

    return Case(f"store/{name}", build, says or ("store",))


def _edit(file: str, change: Change) -> Damage:
    def damage(folder: Path) -> None:
        tree = json.loads((folder / file).read_text())
        change(tree)
        (folder / file).write_text(json.dumps(tree))

    return damage


def _set(path: str, value: Any) -> Change:
    *way, last = path.split("/")

    def change(tree: Any) -> None:
        for part in (part.replace("~1", "/") for part in way):  # as in a JSON pointer
            tree = tree[int(part) if isinstance(tree, list) else part]
        tree[int(last) if isinstance(tree, list) else last] = value

    return change


def _stores() -> Iterator[Case]:
    for name, data in TEXTS.items():
        yield _store(f"store.json {name}", lambda s, d=data: (s / "store.json").write_bytes(d), "store.json")
    for path, value in (
        ("format_version", 2),
        ("format_version", "one"),
        ("format_version", -1),
        ("format_version", 10**30),
        ("num_samples", -1),
        ("num_samples", 10**30),
        ("num_samples", "many"),
        ("num_samples", 299),
        ("num_samples", 0),
        ("num_positives", "NaN"),
        ("label_dtype", "float64"),
        ("label_dtype", "float32"),
        ("has_time", "perhaps"),
        ("dense", ["price", "price"]),
        ("dense", []),
        ("dense", 3),
        ("features", []),
        ("features/0/num_rows", 0),
        ("features/0/num_rows", 2**31),
        ("features/0/num_rows", -5),
        ("features/0/name", ""),
        ("features/0/name", 3),
        ("features/0/name", "item"),
        ("features/0/multi_hot", True),
        ("features/3/multi_hot", False),
        ("features/3/name", "../../secret"),
        ("files", {}),
        ("files/ids.i32/size", -1),
        ("files/ids.i32/size", 10**20),
        ("files/ids.i32/sha256", "no"),
        ("colour", "red"),
    ):
        yield _store(f"{path} {str(value)[:12]!r}", _edit("store.json", _set(path, value)))
    for path in ("../secret", "/etc/passwd", "a/../../secret", "bags/../../x", "", ".", "a\0b", "x" * 5000, "bags"):
        entry = {"size": 5, "sha256": "0" * 64}
        yield _store(f"file {path[:20]!r}", _edit("store.json", lambda t, p=path, e=entry: t["files"].update({p: e})))
    for file in ("ids.i32", "labels.u8", "dense.f32", "time.i64", "bags/tags.values.i32", "bags/tags.offsets.i64"):
        yield _store(f"{file} missing", lambda s, f=file: (s / f).unlink(), Path(file).name)
        yield _store(f"{file} cut", lambda s, f=file: (s / f).write_bytes((s / f).read_bytes()[:-4]), Path(file).name)
        yield _store(f"{file} longer", lambda s, f=file: (s / f).write_bytes((s / f).read_bytes() + b"1234"))
        yield _store(f"{file} linked out of the folder", lambda s, f=file: _linked(s, f), Path(file).name)
    yield _store("ids.i32 a folder", lambda s: _replaced(s / "ids.i32", Path.mkdir), "ids.i32")
    yield _store("ids.i32 a pipe", lambda s: _replaced(s / "ids.i32", os.mkfifo), "ids.i32")
    yield _store("store.json a folder", lambda s: _replaced(s / "store.json", Path.mkdir))
    yield _store("store.json a pipe", lambda s: _replaced(s / "store.json", os.mkfifo))
    yield _store("store.json linked in a circle", lambda s: _replaced(s / "store.json", _circle))
    for command in ("train", "inspect", "evaluate"):
        for name, value in (("far", 2**31 - 1), ("negative", -1), ("just outside", 13)):
            damage = _numbers("ids.i32", "<i4", 17 * 3, value)
            yield _store(f"id {name}, {command}", damage, "id", command=command)
    yield _store("id of a bag far", _numbers("bags/tags.values.i32", "<i4", 5, 2**30), "id")
    yield _store("id of a bag negative", _numbers("bags/tags.values.i32", "<i4", 5, -9), "id")
    for command in ("train", "evaluate"):
        yield _store(f"label 7, {command}", _numbers("labels.u8", "u1", 280, 7), "label", command=command)
    yield _store("NaN, evaluate", _numbers("dense.f32", "<f4", 280, np.nan), "sample 280", command="evaluate")
    yield _store("infinite, evaluate", _numbers("dense.f32", "<f4", 9, np.inf), "sample 9", command="evaluate")
    for name, value in (("falls", 0), ("leaves", 2**40), ("negative", -5)):
        yield _store(f"offset {name}", _numbers("bags/tags.offsets.i64", "<i8", 40, value), "offsets")
        damage = _numbers("bags/tags.offsets.i64", "<i8", 40, value)
        yield _store(f"offset {name}, shuffled", damage, "offsets", command="shuffle")
    yield _store("offset falls in a piece of a batch", _numbers("bags/tags.offsets.i64", "<i8", 257, 0), "offsets")
    yield _store("one class", lambda s: (s / "labels.u8").write_bytes(bytes(300)), "same label")
    yield Case("store/not there", lambda f: ["inspect", str(f / "none")], ("none",))
    yield Case("store/an empty folder", lambda f: ["inspect", str(f)], ("slipstream prepare",))
    yield Case("inspect/no slices", lambda f: ["inspect", str(FIXTURES / "store_v1"), "--slices", "0"], ("slices",))
    yield Case("inspect/slices", lambda f: ["inspect", str(FIXTURES / "store_v1"), "--slices", "9" * 30], ("slices",))


def _linked(store: Path, file: str) -> None:
    outside = store.parent / "outside"
    shutil.move(store / file, outside)
    (store / file).symlink_to(outside)


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _numbers(file: str, kind: str, place: int, value: float) -> Damage:
    def damage(store: Path) -> None:
        numbers = np.fromfile(store / file, kind)
        numbers[place] = value
        numbers.tofile(store / file)

    return damage


# --- encoder.json and the vocabularies


def _encoder(name: str, damage: Damage, *says: str, sealed: bool = True) -> Case:
    """``sealed``: the manifest agrees with the damaged file, as if somebody had meant it."""

    def build(folder: Path) -> list[str]:
        store, run = folder / "store", folder / "run"
        shutil.copytree(FIXTURES / "store_v1", store)
        shutil.copytree(FIXTURES / "run_v1", run)
        damage(store)
        if sealed:
            seal(store, run)
        raw, out = str(FIXTURES / "clicks.csv"), str(folder / "out.csv")
        return ["predict", str(run), raw, out, "--encoder", str(store)]

    return Case(f"encoder/{name}", build, says or ("store",))


def seal(store: Path, run: Path) -> None:
    """Makes the store's manifest, and the model of a run, agree with the store's files, as if somebody had meant it."""
    manifest = json.loads((store / "store.json").read_text())
    for file, entry in manifest["files"].items():
        data = (store / file).read_bytes()
        entry |= {"size": len(data), "sha256": sha256(data).hexdigest()}
    (store / "store.json").write_text(json.dumps(manifest))
    header, weights = _split(run / "model.safetensors")
    data = json.loads(header["__metadata__"]["data"])
    data["encoder"] = manifest["files"]["encoder.json"]["sha256"]
    header["__metadata__"]["data"] = json.dumps(data)
    _join(run / "model.safetensors", header, weights)


def _encoders() -> Iterator[Case]:
    for name, data in TEXTS.items():
        yield _encoder(name, lambda s, d=data: (s / "encoder.json").write_bytes(d), "encoder.json")
    for path, value in (
        ("encoder_version", 4),
        ("encoder_version", "one"),
        ("format", "excel"),
        ("columns", {}),
        ("columns/categorical", ["user"]),
        ("columns/dense", []),
        ("columns/calendar", []),
        ("sparse", []),
        ("sparse/0/num_rows", 2),
        ("sparse/0/num_rows", 0),
        ("sparse/0/name", "../user"),
        ("sparse/0/kind", "calendar"),
        ("sparse/0/kind", "magic"),
        ("sparse/2/kind", "vocabulary"),
        ("sparse/3/multi_hot", False),
        ("dense", []),
        ("dense/0/std", 0),
        ("dense/0/std", 1e999),
        ("dense/0/mean", 1e999),
        ("dense/0/mean", None),
        ("dense/0/transform", "cube"),
    ):
        yield _encoder(f"{path} {str(value)[:12]!r}", _edit("encoder.json", _set(path, value)))
    great = _edit("encoder.json", _set("dense/0/mean", 1e308))
    yield _encoder("a mean beyond float32", great, "clicks.csv:", "price", "too large to be standardised")
    yield _encoder("missing", lambda s: (s / "encoder.json").unlink(), sealed=False)
    yield _encoder("changed, not sealed", _edit("encoder.json", _set("dense/0/mean", 1.0)), sealed=False)
    yield _encoder("vocabulary missing", lambda s: (s / "vocabulary/user.parquet").unlink(), "user", sealed=False)
    yield _encoder("vocabulary cut", lambda s: _cut(s / "vocabulary/user.parquet"), "user.parquet")
    yield _encoder("vocabulary of another column", lambda s: _swap(s / "vocabulary"), "user.parquet")
    yield _encoder("vocabulary without its column", lambda s: _other_column(s / "vocabulary/user.parquet"), "user")
    yield _encoder("a value twice", lambda s: _twice(s / "vocabulary/user.parquet"), "user.parquet")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _swap(folder: Path) -> None:
    shutil.copy(folder / "tags.parquet", folder / "user.parquet")


def _other_column(path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).rename_columns(["valeur", "count"]), path)


def _twice(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)]), path)


# --- result.json, config.yaml of runs, and records


def _result(name: str, damage: Damage, *says: str) -> Case:
    def build(folder: Path) -> list[str]:
        shutil.copytree(FIXTURES / "run_v1", folder / "run")
        damage(folder / "run")
        return ["compare", str(folder / "run"), str(FIXTURES / "run_v1"), "--html", str(folder / "page.html")]

    return Case(f"result/{name}", build, says or ("result.json",))


def _results() -> Iterator[Case]:
    for name, data in TEXTS.items():
        yield _result(name, lambda r, d=data: (r / "result.json").write_bytes(d))
    for path, value in (
        ("auc", "high"),
        ("auc", [1]),
        ("auc", 1e999),
        ("auc", -3),
        ("seconds", "long"),
        ("seconds", -1),
        ("seconds", 10**400),
        ("log_loss", {}),
        ("samples_per_second", True),
        ("policy", None),
        ("policy", {}),
        ("policy", ["psse"]),
        ("learning_curve", 3),
        ("learning_curve", [3]),
        ("learning_curve", [{"samples": "x", "auc": 1}, {"samples": 2, "auc": 1}]),
        ("learning_curve", [{"auc": 0.5}, {"auc": 0.5}]),
        ("by_popularity", [1]),
        ("by_popularity", {"head": 3}),
        ("by_popularity", {"head": {"auc": "x"}}),
        ("machine", 3),
        ("versions", [1]),
        ("commit", {"a": 1}),
    ):
        yield _result(f"{path} {str(value)[:12]!r}", _edit("result.json", _set(path, value)))
    for key in ("auc", "policy", "seconds"):
        yield _result(f"without {key}", _edit("result.json", lambda tree, k=key: tree.pop(k)), key)
    yield _result("missing", lambda r: (r / "result.json").unlink())
    yield _result("a folder", lambda r: _replaced(r / "result.json", Path.mkdir))
    yield _result("a pipe", lambda r: _replaced(r / "result.json", os.mkfifo))
    yield _result("64 MB", lambda r: (r / "result.json").write_bytes(b" " * (64 << 20)))
    for name, data in (
        ("not YAML", b"a: ["),
        ("a list", b"- 1"),
        ("a tag", b"a: !!python/name:os.system\n"),
        ("invalid UTF-8", b"\xff"),
        ("deep", b"a: " + b"[" * 100_000),
        ("NUL", b"\0"),
    ):
        yield _result(f"config.yaml {name}", lambda r, d=data: (r / "config.yaml").write_bytes(d), "config.yaml")
    yield Case("result/a file for a folder", lambda f: ["compare", str(FIXTURES / "clicks.csv")], ("clicks.csv",))
    yield Case("result/out is a folder", _page_is_a_folder, ("page.html",))
    for name, data in TEXTS.items():
        yield Case(f"record/{name}", lambda f, d=data: _record(f, d), ("record.json",))
    yield Case("record/of another benchmark", lambda f: _record(f, _RECORD), ("record.json", "points"))
    for name, value in (
        ("policy", None),
        ("policy", 3),
        ("budget", "half"),
        ("auc", None),
        ("auc", "high"),
        ("seconds", 0),
        ("seconds", -1.0),
        ("by_popularity", {"head": {}}),
        ("by_popularity", [1]),
        ("recall_by_popularity", {"head": "x"}),
        ("seed", 1.5),
    ):
        change = _set(f"points/1/{name}", value)
        yield Case(
            f"record/{name} {str(value)[:12]!r}", lambda f, c=change: _record(f, _kept(c)), ("record.json", name)
        )
    change = _set("conditions/left out", "psse")
    yield Case("record/left out a text", lambda f: _record(f, _kept(change)), ("record.json", "left out"))
    yield Case("record/missing", lambda f: ["bench", "frontier", "--also", str(f / "no.json"), "--html", str(f / "p")])


_RECORD = b'{"name": "x", "points": []}'


def _kept(change: Change) -> bytes:
    """A kept record of a frontier, changed."""
    tree = json.loads(RECORD.read_bytes())
    change(tree)
    return json.dumps(tree).encode()


def _record(folder: Path, data: bytes) -> list[str]:
    (folder / "record.json").write_bytes(data)
    return ["bench", "frontier", "--also", str(folder / "record.json"), "--html", str(folder / "page.html")]


def _page_is_a_folder(folder: Path) -> list[str]:
    (folder / "page.html").mkdir()
    return ["compare", str(FIXTURES / "run_v1"), "--html", str(folder / "page.html")]


# --- model.safetensors


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _join(path: Path, header: Mapping[str, Any], weights: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + weights)


def _model(name: str, damage: Damage, *says: str, command: str = "evaluate") -> Case:
    def build(folder: Path) -> list[str]:
        shutil.copytree(FIXTURES / "run_v1", folder / "run")
        damage(folder / "run" / "model.safetensors")
        more = [str(folder / "out.csv")] if command == "predict" else []
        return [command, str(folder / "run"), str(FIXTURES / "store_v1"), *more]

    return Case(f"model/{name}, {command}", build, says or ("model.safetensors",))


def _header(change: Change) -> Damage:
    def damage(path: Path) -> None:
        header, weights = _split(path)
        change(header)
        _join(path, header, weights)

    return damage


def _metadata(key: str, change: Change) -> Damage:
    def within(header: dict[str, Any]) -> None:
        tree = json.loads(header["__metadata__"][key])
        change(tree)
        header["__metadata__"][key] = json.dumps(tree)

    return _header(within)


def _weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        header, weights = _split(path)
        _join(path, header, change(weights))

    return damage


def _great(weights: bytes) -> bytes:
    """Hidden units overflow, and the last layer, which comes last, takes half of them from the others."""
    return struct.pack("<f", 3e38) * (len(weights) // 4 - 4) + struct.pack("<4f", *[-3e38] * 4)


def _great_on_raw(folder: Path) -> list[str]:
    shutil.copytree(FIXTURES / "run_v1", folder / "run")
    _weights(_great)(folder / "run" / "model.safetensors")
    store, raw = str(FIXTURES / "store_v1"), str(FIXTURES / "clicks.csv")
    return ["predict", str(folder / "run"), raw, str(folder / "out.csv"), "--encoder", store]


def _models() -> Iterator[Case]:
    def raw(change: Callable[[bytes], bytes]) -> Damage:
        return lambda path: path.write_bytes(change(path.read_bytes()))

    for command in ("evaluate", "predict"):
        yield _model("empty", raw(lambda d: b""), command=command)
        yield _model("cut in the header", raw(lambda d: d[:50]), command=command)
        yield _model("cut in the weights", raw(lambda d: d[:-10]), command=command)
        yield _model("longer", raw(lambda d: d + b"1234"), command=command)
        yield _model("a header of 2^60 bytes", raw(lambda d: struct.pack("<Q", 1 << 60) + d[8:]), command=command)
        yield _model("a header of zeros", raw(lambda d: d[:8] + bytes(len(d) - 8)), command=command)
        yield _model("a pickle", raw(lambda d: b"\x80\x04cos\nsystem\n(S'true'\ntR."), command=command)
        yield _model("a zip archive", raw(lambda d: b"PK\x03\x04" + d), command=command)
        yield _model("weights that are NaN", _weights(lambda w: b"\xff" * len(w)), command=command)
        yield _model("weights whose products overflow", _weights(_great), "NaN", command=command)
    for name, value in TEXTS.items():
        text = value.decode("utf-8", "replace")
        yield _model(f"configuration {name}", _header(_set("__metadata__/model", text)))
        yield _model(f"features {name}", _header(_set("__metadata__/data", text)))
    yield _model("no metadata", _header(lambda header: header.pop("__metadata__")))
    yield _model("no configuration", _header(lambda header: header["__metadata__"].pop("model")))
    yield _model("no features", _header(lambda header: header["__metadata__"].pop("data")))
    for path, value in (
        ("format_version", 2),
        ("format_version", "two"),
        ("features", []),
        ("features/0/num_rows", 2**31 - 1),
        ("features/0/num_rows", -1),
        ("features/0/num_rows", 14),
        ("features/0/name", "somebody"),
        ("features/0/multi_hot", True),
        ("num_dense", 10**12),
        ("num_dense", -1),
        ("num_dense", 0),
        ("encoder", "0" * 64),
    ):
        place = ("store",) if path in ("encoder", "features/0/multi_hot") else ("model.safetensors",)
        yield _model(f"{path} {str(value)[:12]!r}", _metadata("data", _set(path, value)), *place)
    for path, value in (
        ("name", "gpt"),
        ("embedding_dim", 4096),
        ("embedding_dim", 10**9),
        ("top", [10**9]),
        ("top", [8] * 5000),
        ("top", []),
        ("bottom", [0]),
        ("colour", "red"),
    ):
        yield _model(f"{path} {str(value)[:12]!r}", _metadata("model", _set(path, value)))
    yield _model("a tensor missing", _header(lambda header: header.pop(next(k for k in header if k != "__metadata__"))))
    yield _model("a tensor of integers", _header(_retyped))
    yield Case("model/weights whose products overflow, raw data", _great_on_raw, ("model.safetensors", "NaN"))
    yield _model("missing", Path.unlink)
    yield _model("a folder", lambda path: _replaced(path, Path.mkdir))
    yield _model("a pipe", lambda path: _replaced(path, os.mkfifo))
    yield Case("evaluate/range turned round", lambda f: _evaluate("--start", "200", "--stop", "100"), ("200",))
    yield Case("evaluate/range outside", lambda f: _evaluate("--stop", "301"), ("301",))
    yield Case("evaluate/negative start", lambda f: _evaluate("--start", "-1"), ("-1",))
    yield Case("evaluate/empty range", lambda f: _evaluate("--start", "5", "--stop", "5"), ("5",))
    yield Case("evaluate/no run", lambda f: ["evaluate", str(f), str(FIXTURES / "store_v1")], ("model.safetensors",))
    yield Case("predict/other ending", lambda f: _predict(f, "out.xlsx"), ("out.xlsx",))
    yield Case("predict/range of raw files", lambda f: [*_predict(f, "o.csv", raw=True), "--start", "3"], ("--start",))


def _retyped(header: dict[str, Any]) -> None:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = "I32"


def _evaluate(*options: str) -> list[str]:
    return ["evaluate", str(FIXTURES / "run_v1"), str(FIXTURES / "store_v1"), *options]


def _predict(folder: Path, out: str, *, raw: bool = False) -> list[str]:
    data = FIXTURES / ("clicks.csv" if raw else "store_v1")
    return ["predict", str(FIXTURES / "run_v1"), str(data), str(folder / out), "--encoder", str(FIXTURES / "store_v1")]


# --- checkpoints whose checksums are right, as if somebody had meant what they say


def sealed_manifest(content: bytes) -> bytes:
    """``manifest.json`` of a checkpoint, from what stands after its checksum."""
    body = b'"checkpoint": ' + content + b"}\n"
    return f'{{"sha256": "{sha256(body).hexdigest()}",\n'.encode() + body


def manifest_of(run: str, checkpoint: str) -> dict[str, Any]:
    """What the manifest of a kept checkpoint says."""
    return json.loads((CHECKPOINTS / run / checkpoint / "manifest.json").read_bytes())["checkpoint"]


def resumed(folder: Path, manifest: bytes) -> list[str]:
    """Goes on with the interrupted training, its newest checkpoint (of some rows) of this manifest."""
    shutil.copytree(CHECKPOINTS / "interrupted", folder / "run")
    (folder / "run" / STEP / "manifest.json").write_bytes(sealed_manifest(manifest))
    return ["train", str(FIXTURES / "store_v1"), "--resume", str(folder / "run"), "--quiet"]


def continued(folder: Path, manifest: bytes, tensors: bytes | None = None) -> list[str]:
    """Trains on from the finished training, its checkpoint of this manifest and, if given, these tensors."""
    shutil.copytree(CHECKPOINTS / "finished", folder / "run")
    (folder / "run" / FINAL / "manifest.json").write_bytes(sealed_manifest(manifest))
    if tensors is not None:
        (folder / "run" / FINAL / TENSORS).write_bytes(tensors)
    run, out = str(folder / "run"), str(folder / "out")
    return ["train", str(FIXTURES / "store_v1"), "--continue", run, "--out", out, "--quiet"]


def _checkpoint(name: str, change: Change, *says: str, command: str = "resume") -> Case:
    def build(folder: Path) -> list[str]:
        run, checkpoint = ("interrupted", STEP) if command == "resume" else ("finished", FINAL)
        tree = manifest_of(run, checkpoint)
        change(tree)
        data = json.dumps(tree).encode()
        return resumed(folder, data) if command == "resume" else continued(folder, data)

    return Case(f"checkpoint/{name}, {command}", build, says or ("checkpoints",))


def _checkpoints() -> Iterator[Case]:
    state, table = "state/trainer", "embeddings.tables.user.weight"
    for path, value in (
        ("state", None),
        ("state", []),
        (state, {}),
        (f"{state}/model", []),
        (f"{state}/model/{table}", 3),
        (f"{state}/optimizers", []),
        (f"{state}/optimizers/0", None),
        (f"{state}/tables", {}),
        (f"{state}/skipper", 0),
        (f"{state}/skipper/policy_state", {}),
        (f"{state}/rates", ["a", "b"]),
        (f"{state}/rates", [0.1]),
        (f"{state}/losses", ["a"]),
        (f"{state}/losses", [1e308, 1e308]),
        (f"{state}/phase_seconds/update", 1e300),
        (f"{state}/phase_seconds/update", "long"),
        (f"{state}/logits", None),
        (f"{state}/random", 3),
    ):
        yield _checkpoint(
            f"{path.removeprefix(state)} {str(value)[:12]!r}", _set(path, value), "does not hold the state"
        )
    for name, value in (
        ("epoch", -1),
        ("epoch", 2),
        ("samples", 10**30),
        ("steps", -3),
        ("scoring", 1),
        ("steps", "1"),
    ):
        yield _checkpoint(f"{name} {value!r}", _set(f"{state}/{name}", value), "cannot stand at")
    gate = f"{state}/tables/{table}/gate"
    yield _checkpoint(
        "a gate of another table", _set(f"{gate}/$tensor", f"trainer/tables/{_OTHER}/gate"), "gate of", "not uint8"
    )
    yield _checkpoint("another policy's state", _set(f"{state}/skipper/policy", "random"), "'random'")
    for key, other in (("exp_avg", "embeddings.tables.item.weight"), ("exp_avg_sq", "bottom.0.bias")):
        swap = _moment(key, {"$tensor": f"trainer/model/{other}"})
        yield _checkpoint(f"{key} of another table", swap, "another shape")
        yield _checkpoint(f"{key} of another table", swap, "another shape", command="continue")
    yield _checkpoint("a moment is a text", _moment("exp_avg", "x"), "another shape")
    yield _checkpoint("no state", _set(state, {}), "does not hold the state", command="continue")
    yield _checkpoint("no configuration", _set("config", {}), "cannot continue", command="continue")
    for name, change in (
        ("files lead out", lambda t: t["files"].update({"../../../secret": {"size": 1, "sha256": "0" * 64}})),
        ("a piece leads out", _set(f"tensors/trainer~1model~1{table}/pieces/0/file", "../../x.safetensors")),
        ("rows without end", _widened(table, 10**12)),
        ("rows of a negative number", _widened(table, -1)),
        ("more rows than there are", _widened(table, 10**6)),
        ("another type", _set(f"tensors/trainer~1model~1{table}/dtype", "float64")),
        ("no such type", _set(f"tensors/trainer~1model~1{table}/dtype", "complex9")),
    ):
        yield _checkpoint(name, change, "damaged", command="continue")
    for name, path, value in (
        ("steps beyond twelve digits", "steps", 10**12),
        ("seconds that are none", "training_seconds", {"$float": "nan"}),
        ("a policy's clock of 400 digits", "skipper/policy_state/clock", -(10**400)),
        ("more inputs than can be counted", "skipper/inputs_seen", 10**30),
        ("popularity in units of nothing", f"skipper/policy_state/counts/{table}/increment", 0),
        ("popularity of a text", f"skipper/policy_state/counts/{table}/scores", "x"),
        ("gates of another table", f"skipper/policy_state/gates/{table}/$tensor", f"trainer/tables/{_OTHER}/gate"),
    ):
        yield _checkpoint(name, _set(f"{state}/{path}", value))
    text = "state/listeners/JsonlMetrics/text"
    yield _checkpoint("a listener's text is none", _set(text, {}))
    yield _checkpoint("a listener's text is weights", _set(text, {"$tensor": f"trainer/model/{table}"}))
    yield _checkpoint("a listener's text is gates", _set(text, {"$tensor": f"trainer/tables/{table}/gate"}))
    for value in ({"$float": "nan"}, -1, 1.5, 10**30):
        yield _checkpoint(f"step {value!r}", _moment("step", value), "another shape or type")
    yield _checkpoint("threads without number", _set("threads", 10**30), command="continue")
    yield _checkpoint("a piece for two tensors", _twice_named(table), "stands twice", command="continue")
    for name, make in _IN_PLACE.items():
        for file in ("manifest.json", TENSORS):
            damage = partial(_put, f"{FINAL}/{file}", make)
            yield Case(f"checkpoint/{file} is {name}", partial(_continue_after, damage), ("checkpoints",))
        damage = partial(_put, "model.safetensors", make)
        yield Case(f"checkpoint/model is {name}", partial(_continue_after, damage), ("model.safetensors",))


_IN_PLACE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link in a circle": _circle,
}


def _put(file: str, make: Callable[[Path], object], run: Path) -> None:
    _replaced(run / file, make)


def _continue_after(damage: Damage, folder: Path) -> list[str]:
    command = continued(folder, json.dumps(manifest_of("finished", FINAL)).encode())
    damage(folder / "run")
    return command


def _twice_named(table: str) -> Change:
    def change(tree: Any) -> None:
        tree["tensors"]["again"] = tree["tensors"][f"trainer/model/{table}"]

    return change


_OTHER = "embeddings.tables.hour.weight"


def _moment(name: str, value: Any) -> Change:
    """In the place of a moment of the first parameter."""

    def change(tree: Any) -> None:
        entries = tree["state"]["trainer"]["optimizers"][0]["state"]["$items"]
        entries[0][1][name] = value

    return change


def _widened(table: str, rows: int) -> Change:
    """A tensor that says to have other rows than its file holds."""

    def change(tree: Any) -> None:
        stored = tree["tensors"][f"trainer/model/{table}"]
        stored["shape"][0] = stored["pieces"][0]["stop"] = rows

    return change
