import collections
import gzip
import itertools
import math
import os
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.data import MultiHot, Schema, Store
from slipstream.data.blocks import Block
from slipstream.data.encoder import Encoder
from slipstream.data.formats import open_raw
from slipstream.data.prepare import PrepareOptions, encode_raw, open_or_prepare, prepare
from slipstream.data.sources import TextSource
from slipstream.data.split import named_splits, split_by_time
from slipstream.errors import ConfigError, DataError, NotPrepared, OutputError
from slipstream.training.saved import Wanted

STOP = PrepareOptions()
QUARANTINE = PrepareOptions(on_bad_row="quarantine")


def vocabulary(store: Store, name: str) -> list[str]:
    """Value by id; None stands for row 0."""
    return [None, *pq.read_table(store.path / "vocabulary" / f"{name}.parquet")["value"].to_pylist()]


def decoded(store: Store, name: str) -> list[str]:
    values = vocabulary(store, name)
    column = [feature.name for feature in store.one_hot].index(name)
    return [values[i] for i in store.ids[:, column].tolist()]


def test_criteo_is_encoded_value_by_value(criteo, criteo_lines, tmp_path):
    store = prepare(criteo, tmp_path / "out")
    rows = [line.split("\t") for line in criteo_lines]
    assert store.num_samples == 300 and store.num_dense == 13 and store.time is None
    assert [feature.name for feature in store.features] == [f"C{i}" for i in range(1, 27)]
    assert store.labels.dtype == torch.uint8 and store.labels.tolist() == [int(row[0]) for row in rows]
    for i, feature in enumerate(store.features):
        assert decoded(store, feature.name) == [row[14 + i] for row in rows]
        counts = collections.Counter(row[14 + i] for row in rows).most_common()
        assert vocabulary(store, feature.name) == [None, *(value for value, _ in counts)]
        assert feature.num_rows == len(counts) + 1
    dense = [[math.log1p(max(float(x), 0)) if x else 0 for x in row[1:14]] for row in rows]
    np.testing.assert_allclose(store.dense.numpy(), np.array(dense, dtype=np.float32), rtol=1e-6)
    assert Store.open(tmp_path / "out", verify=True).fingerprint == store.fingerprint
    assert store.manifest.provenance["format"] == "criteo" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("variant", ["crlf", "bom", "gzip", "no last line end", "day files", "small blocks"])
def test_the_same_rows_in_another_wrapping_give_the_same_store(criteo, criteo_lines, tmp_path, variant, monkeypatch):
    expected = prepare(criteo, tmp_path / "expected").fingerprint
    data, other, format = criteo.read_bytes(), tmp_path / "other.tsv", "criteo"
    if variant == "crlf":
        other.write_bytes(data.replace(b"\n", b"\r\n"))
    elif variant == "bom":
        other.write_bytes(b"\xef\xbb\xbf" + data)
    elif variant == "gzip":
        other.write_bytes(gzip.compress(data))
    elif variant == "no last line end":
        other.write_bytes(data.rstrip(b"\n"))
    elif variant == "day files":
        other, format = tmp_path / "days", None
        other.mkdir()
        for number, piece in ((2, criteo_lines[:100]), (10, criteo_lines[100:])):
            (other / f"day_{number}").write_text("".join(line + "\n" for line in piece))
    else:
        from slipstream.data import formats, sources

        other.write_bytes(data)
        monkeypatch.setattr(
            formats, "TextSource", lambda *args, **kwargs: sources.TextSource(*args, **kwargs, block_bytes=1000)
        )
    assert prepare(other, tmp_path / "out", format=format).fingerprint == expected


def change(line: str, column: int, value: str) -> str:
    fields = line.split("\t")
    fields[column] = value
    return "\t".join(fields)


@pytest.mark.parametrize(
    ("column", "value", "where", "reason"),
    [
        (0, "x", "label", "'x' is not a number"),
        (0, "", "label", "has no label"),
        (0, "nan", "label", "NaN or infinite"),
        (0, "2", "label", "neither 0 nor 1"),
        (3, "abc", "I3", "'abc' is not a number"),
        (4, "nan", "I4", "NaN or infinite"),
        (20, "a\tb", None, "expected 40 columns, found 41"),
        (20, b"\xff", None, "invalid UTF-8"),
    ],
)
def test_a_malformed_row_stops_with_its_place_or_is_set_aside(criteo_lines, tmp_path, column, value, where, reason):
    text = change(criteo_lines[41], column, value if isinstance(value, str) else "@@")
    lines = [line.encode() for line in criteo_lines]
    lines[41] = text.encode().replace(b"@@", value if isinstance(value, bytes) else b"@@")
    path = tmp_path / "bad.tsv"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(DataError) as caught:
        prepare(path, tmp_path / "out", format="criteo")
    error = caught.value
    assert (error.file, error.line, error.column) == (path, 42, where)
    assert reason in str(error) and "quarantine" in str(error)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    store = prepare(path, tmp_path / "out", format="criteo", options=QUARANTINE)
    assert store.num_samples == 299 and store.manifest.provenance["bad_rows"] == 1
    side = (tmp_path / "out" / "quarantine.tsv").read_text().splitlines()
    assert side[0] == "file\tline\tcolumn\treason\trow" and len(side) == 2
    assert side[1].split("\t")[:3] == ["bad.tsv", "42", where or ""] and reason in side[1]
    clean = tmp_path / "clean.tsv"
    clean.write_text("".join(line + "\n" for i, line in enumerate(criteo_lines) if i != 41))
    expected = prepare(clean, tmp_path / "expected", format="criteo")
    for name in ("ids.i32", "dense.f32", "labels.u8"):
        assert (tmp_path / "out" / name).read_bytes() == (expected.path / name).read_bytes()


def test_the_first_of_several_bad_rows_is_named(criteo_lines, tmp_path):
    path = tmp_path / "bad.tsv"
    lines = [change(criteo_lines[0], 5, "x"), "too few", change(criteo_lines[1], 0, "y"), ""]
    path.write_text("".join(line + "\n" for line in [*criteo_lines[:7], *lines]))
    with pytest.raises(DataError, match=r"bad\.tsv:8, column 'I5': 'x' is not a number"):
        prepare(path, tmp_path / "out", format="criteo")
    store = prepare(path, tmp_path / "out", format="criteo", options=QUARANTINE)
    side = (store.path / "quarantine.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[1] for row in side] == ["8", "9", "10", "11"] and store.num_samples == 7
    assert side[1].endswith("expected 40 columns, found 1\ttoo few") and "found 0" in side[3]


def test_a_time_that_is_none_stops_with_its_place_or_is_set_aside(tmp_path):
    (tmp_path / "t.csv").write_text("y,time,c\n1,1500000000,a\n0,abc,b\n0,1500000001,a\n")
    schema = Schema(label="y", time="time", categorical=("c",))
    with pytest.raises(DataError, match=r"t\.csv:3, column 'time': 'abc' is not a time"):
        prepare(tmp_path / "t.csv", tmp_path / "out", schema=schema)
    store = prepare(tmp_path / "t.csv", tmp_path / "out", schema=schema, options=QUARANTINE)
    assert store.time.tolist() == [1_500_000_000, 1_500_000_001]


def test_a_block_is_split_once_for_all_its_bad_rows(criteo_lines, tmp_path):
    class Counted(bytes):
        splits = 0

        def split(self, *arguments):
            Counted.splits += 1
            return super().split(*arguments)

    lines = [change(line, 3, "x") if i % 2 else line for i, line in enumerate(criteo_lines)]
    path = tmp_path / "bad.tsv"
    path.write_text("".join(line + "\n" for line in lines))
    data = open_raw(path, format="criteo")
    assert isinstance(data.source, TextSource)
    block = Block(Counted(path.read_bytes()), 1, len(lines))
    chunk = data.source._chunk(path, block, data.columns, data.columns)
    assert [chunk.show(i) for i in range(300)] == lines and Counted.splits == 1


def test_nan_can_count_as_missing(criteo_lines, tmp_path):
    path = tmp_path / "nan.tsv"
    path.write_text(change(criteo_lines[0], 4, "nan") + "\n" + criteo_lines[1] + "\n")
    store = prepare(path, tmp_path / "out", format="criteo", options=PrepareOptions(nan="missing"))
    assert store.num_samples == 2 and store.dense[0, 3] == 0


def test_files_that_hold_nothing_or_are_damaged(criteo, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        prepare(tmp_path / "none.tsv", tmp_path / "out")
    empty = tmp_path / "empty.tsv"
    empty.touch()
    for format in (None, "criteo", "csv"):
        with pytest.raises(DataError, match=r"empty\.tsv: (is empty|holds no usable row)"):
            prepare(empty, tmp_path / "out", format=format)
    broken = tmp_path / "broken.tsv.gz"
    packed = gzip.compress(criteo.read_bytes())
    broken.write_bytes(packed[: len(packed) // 2])
    for options in (STOP, QUARANTINE):
        with pytest.raises(DataError, match="gzip stream is truncated"):
            prepare(broken, tmp_path / "out", format="criteo", options=options)
    broken.write_bytes(packed[:200] + b"garbage" + packed[207:])
    with pytest.raises(DataError, match="is damaged"):
        prepare(broken, tmp_path / "out", format="criteo")
    damaged = tmp_path / "x.parquet"
    damaged.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="Parquet"):
        prepare(damaged, tmp_path / "out")
    everything = tmp_path / "all_bad.tsv"
    everything.write_text("a\nb\n")
    with pytest.raises(DataError, match="no usable row"):
        prepare(everything, tmp_path / "out", format="criteo", options=QUARANTINE)


def test_rare_and_unseen_values_share_row_0(tmp_path):
    frame = pl.DataFrame({"label": [0, 1] * 4, "c": ["a", "a", "a", "b", "b", "c", "d", "a"]})
    frame.write_csv(tmp_path / "f.csv")
    store = prepare(tmp_path / "f.csv", tmp_path / "rare", options=PrepareOptions(min_frequency=2))
    assert decoded(store, "c") == ["a", "a", "a", "b", "b", None, None, "a"]
    store = prepare(tmp_path / "f.csv", tmp_path / "first", options=PrepareOptions(fit_share=0.5))
    assert decoded(store, "c") == ["a", "a", "a", "b", "b", None, None, "a"]
    assert store.manifest.provenance["fitted_rows"] == 4


def test_hashed_columns_need_no_vocabulary_and_agree_between_files(criteo, criteo_lines, tmp_path):
    options = PrepareOptions(hash_rows=50)
    store = prepare(criteo, tmp_path / "out", options=options)
    assert all(feature.num_rows == 50 for feature in store.features) and not (store.path / "vocabulary").exists()
    assert int(store.ids.min()) >= 1 and int(store.ids.max()) <= 49
    tail = tmp_path / "tail.tsv"
    tail.write_text("".join(line + "\n" for line in criteo_lines[200:]))
    assert torch.equal(prepare(tail, tmp_path / "tail", options=options).ids, store.ids[200:])


def table(n: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "y": rng.integers(0, 2, n),
            "when": 1_600_000_000 + rng.integers(0, 10**6, n),
            "user": rng.integers(0, 9, n),
            "text": rng.choice(["x", "", "long, with comma", "Ω"], n),
            "price": np.round(rng.normal(5, 3, n), 3),
            "tags": ["|".join(rng.choice(["a", "b", "c"], rng.integers(0, 3))) for _ in range(n)],
        }
    )


SCHEMA = Schema(
    label="y",
    time="when",
    categorical=("user", "text"),
    dense=("price",),
    multi_hot=(MultiHot(name="tags"),),
    calendar=("hour", "weekday"),
)


@pytest.mark.parametrize("fit_share", [1.0, 0.4])
def test_a_table_with_a_schema_is_put_in_order_of_time(tmp_path, fit_share):
    frame = table()
    frame.write_csv(tmp_path / "t.csv")
    frame.with_columns(pl.col("tags").str.split("|"), pl.from_epoch("when").alias("when")).write_parquet(
        tmp_path / "t.parquet", row_group_size=17
    )
    options = PrepareOptions(fit_share=fit_share)
    store = prepare(tmp_path / "t.csv", tmp_path / "csv", schema=SCHEMA, options=options)
    ordered = frame.sort("when", maintain_order=True)
    assert store.time.tolist() == ordered["when"].to_list() and store.labels.tolist() == ordered["y"].to_list()
    fitted = ordered.head(int(60 * fit_share))
    mean, std = fitted["price"].mean(), fitted["price"].std(ddof=0)
    expected = (ordered["price"].to_numpy() - mean) / std
    np.testing.assert_allclose(store.dense[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    seen = set(fitted["user"].to_list())
    assert decoded(store, "user") == [str(user) if user in seen else None for user in ordered["user"]]
    times = pl.from_epoch(ordered["when"])
    assert (store.ids[:, 2] - 1).tolist() == times.dt.hour().to_list()
    assert store.ids[:, 3].tolist() == times.dt.weekday().to_list()
    values, offsets = store.bags[0].values.tolist(), store.bags[0].offsets.tolist()
    names = vocabulary(store, "tags")
    if fit_share == 1:
        bags = ["|".join(names[i] for i in values[a:b]) for a, b in itertools.pairwise(offsets)]
        assert bags == ordered["tags"].to_list()
        other = prepare(tmp_path / "t.parquet", tmp_path / "parquet", schema=SCHEMA)
        for name in ("ids.i32", "dense.f32", "time.i64", "bags/tags.offsets.i64"):
            assert (store.path / name).read_bytes() == (other.path / name).read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_table_comes_back_as_it_was(tmp_path_factory, data):
    n = data.draw(st.integers(1, 15))
    words = st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\x85\u2028\u2029"), max_size=6
    )
    frame = pl.DataFrame(
        {
            "label": data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)),
            "word": data.draw(st.lists(words, min_size=n, max_size=n)),
            "number": data.draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=n, max_size=n)),
        }
    )
    folder = tmp_path_factory.mktemp("any")
    kind = data.draw(st.sampled_from(["csv", "parquet"]))
    (frame.write_csv if kind == "csv" else frame.write_parquet)(folder / f"f.{kind}")
    schema = Schema(label="label", categorical=("word",), dense=("number",))
    store = prepare(folder / f"f.{kind}", folder / "out", schema=schema, options=PrepareOptions(dense="none"))
    assert decoded(store, "word") == frame["word"].to_list() and store.labels.tolist() == frame["label"].to_list()
    assert store.dense[:, 0].tolist() == frame["number"].to_list()


def test_columns_of_a_table_are_inferred_only_without_doubt(tmp_path):
    frame = pl.DataFrame({"click": [0, 1], "timestamp": [5, 3], "site": ["a", "b"], "age": [0.5, 1.5], "n": [1, 2]})
    frame.write_csv(tmp_path / "t.csv")
    frame.with_columns(tags=pl.Series([["x"], []])).write_parquet(tmp_path / "t.parquet")
    store = prepare(tmp_path / "t.csv", tmp_path / "csv")
    assert [feature.name for feature in store.features] == ["site", "n"] and store.manifest.dense == ("age",)
    assert store.time.tolist() == [3, 5] and store.labels.tolist() == [1, 0]
    assert [f.name for f in prepare(tmp_path / "t.parquet", tmp_path / "pq").multi_hot] == ["tags"]
    frame.rename({"click": "outcome"}).write_csv(tmp_path / "u.csv")
    with pytest.raises(ConfigError, match=r"no column is the label.*outcome.*schema"):
        prepare(tmp_path / "u.csv", tmp_path / "out")
    frame.rename({"n": "label"}).write_csv(tmp_path / "u.csv")
    with pytest.raises(ConfigError, match="could all be the label"):
        prepare(tmp_path / "u.csv", tmp_path / "out")


def test_a_missing_column_is_named(tmp_path):
    pl.DataFrame({"y": [1], "a": ["x"]}).write_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv, column 'b': the column is missing; the file has 'y', 'a'"):
        prepare(tmp_path / "t.csv", tmp_path / "out", schema=Schema(label="y", categorical=("a", "b")))
    pl.DataFrame({"y": [1], "a": ["x"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'b': the column is missing"):
        prepare(tmp_path / "t.parquet", tmp_path / "out", schema=Schema(label="y", categorical=("a", "b")))


def test_bad_rows_of_parquet_and_nulls(tmp_path):
    frame = pl.DataFrame(
        {
            "y": [0, 1, None, 1],
            "c": ["a", None, "b", "a"],
            "d": [1.0, None, 2.0, float("nan")],
            "l": [["q"], None, [], ["q", "r"]],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    schema = Schema(label="y", categorical=("c",), dense=("d",), multi_hot=(MultiHot(name="l"),))
    with pytest.raises(DataError, match=r"t\.parquet:3, column 'y': has no label"):
        prepare(tmp_path / "t.parquet", tmp_path / "out", schema=schema)
    store = prepare(tmp_path / "t.parquet", tmp_path / "out", schema=schema, options=QUARANTINE)
    assert decoded(store, "c") == ["a", ""] and store.dense[1, 0] == 0 and store.bags[0].offsets.tolist() == [0, 1, 1]
    side = (store.path / "quarantine.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[1:4] for row in side] == [
        ["3", "y", "has no label"],
        ["4", "d", "value is NaN or infinite (prepared with --set nan=missing, it counts as missing)"],
    ]


def test_a_bad_row_is_shown_whatever_its_times_are(tmp_path):
    times = {
        "far": pa.array([10**15] * 2, pa.timestamp("ms")),
        "fine": pa.array([10**9 + 7] * 2, pa.timestamp("ns")),
        "zoned": pa.array([0] * 2, pa.timestamp("ms", "No/Where")),
        "day": pa.array([date(2020, 1, 2)] * 2),
    }
    pq.write_table(pa.table({"y": [1, None], "c": ["a", "b"], **times}), tmp_path / "t.parquet")
    source = open_raw(tmp_path / "t.parquet", schema=Schema(label="y", categorical=("c",))).source
    (task,) = source.tasks(["y", "c", *times])
    shown = task().show(1).split("\t")
    assert shown[:2] == ["None", "b"] and shown[3:] == ["1970-01-01 00:00:01.000000007", shown[4], "2020-01-02"]
    assert "1970" in shown[4] and str(10**15) in shown[2]


def test_a_text_of_parquet_that_is_no_utf8_is_named(tmp_path):
    texts = pa.array([b"a", b"\xff"]).view(pa.string())
    for name, columns in (("pairs", {"item": [1, 2]}), ("parquet", {"label": [0, 1]})):
        pq.write_table(pa.table({"user": texts, **columns}), tmp_path / "t.parquet")
        with pytest.raises(DataError, match=r"t\.parquet.*, column 'user': is damaged \(.*UTF8.*\); copy"):
            prepare(tmp_path / "t.parquet", tmp_path / "out", format=name, options=QUARANTINE)


def test_words_for_a_missing_number_are_refused_with_the_remedy_or_count_as_missing(tmp_path):
    rows = ["y,c,d", "1,a,2.5", "0,b,NA", "1,a,null", "0,b,N/A", "1,a,nan", "0,b,"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    schema = Schema(label="y", categorical=("c",), dense=("d",))
    with pytest.raises(DataError, match=r"t\.csv:3, column 'd': 'NA' is not a number .*nan=missing"):
        prepare(tmp_path / "t.csv", tmp_path / "out", schema=schema)
    options = PrepareOptions(nan="missing", dense="none")
    store = prepare(tmp_path / "t.csv", tmp_path / "out", schema=schema, options=options)
    assert store.dense[:, 0].tolist() == [2.5, 0, 0, 0, 0, 0]
    (batch,) = encode_raw(tmp_path / "t.csv", Encoder.load(store.path), 10)
    assert torch.equal(batch.inputs.dense, store.dense)
    (tmp_path / "t.csv").write_text("\n".join([*rows, "1,a,?"]) + "\n")
    with pytest.raises(DataError, match=r"t\.csv:8, column 'd': '\?' is not a number; correct"):
        prepare(tmp_path / "t.csv", tmp_path / "other", schema=schema, options=options)


def test_labels_may_be_any_numbers_or_get_a_threshold(tmp_path):
    pl.DataFrame({"label": [0.5, 3, 5], "c": ["a", "b", "a"]}).write_csv(tmp_path / "t.csv")
    store = prepare(tmp_path / "t.csv", tmp_path / "out")
    assert store.labels.dtype == torch.float32 and store.labels.tolist() == [0.5, 3, 5]
    store = prepare(tmp_path / "t.csv", tmp_path / "binary", options=PrepareOptions(label_threshold=3))
    assert store.labels.dtype == torch.uint8 and store.labels.tolist() == [0, 1, 1]


def test_new_files_are_encoded_as_the_fitted_ones(criteo, criteo_lines, tmp_path):
    store = prepare(criteo, tmp_path / "out")
    encoder = Encoder.load(store.path)
    batches = list(encode_raw(criteo, encoder, 70))
    assert [len(batch) for batch in batches] == [70, 70, 70, 70, 20]
    assert torch.equal(torch.cat([batch.inputs.ids for batch in batches]), store.ids)
    assert torch.equal(torch.cat([batch.inputs.dense for batch in batches]), store.dense)
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(300))
    new = tmp_path / "new.tsv"
    new.write_text(change(change(criteo_lines[0], 14, "never seen"), 0, "?") + "\n")
    with pytest.raises(DataError, match="'\\?' is not a number"):
        list(encode_raw(new, encoder, 10))
    (batch,) = encode_raw(new, encoder, 10, labels=False)
    assert batch.inputs.ids[0, 0] == 0 and torch.equal(batch.inputs.ids[0, 1:], store.ids[0, 1:])
    new.write_text("".join(line.split("\t", 1)[1] + "\n" for line in criteo_lines))
    (batch,) = encode_raw(new, encoder, 300, labels=False)
    assert torch.equal(batch.inputs.ids, store.ids), "Kaggle's own test file has no label column"
    with pytest.raises(NotPrepared):
        Encoder.load(tmp_path)
    (store.path / "encoder.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        Encoder.load(store.path)


def test_raw_files_are_prepared_once(criteo, tmp_path):
    first = open_or_prepare(criteo, tmp_path / "cache")
    assert open_or_prepare(criteo, tmp_path / "cache").path == first.path
    assert open_or_prepare(first.path, tmp_path / "cache").path == first.path
    other = open_or_prepare(criteo, tmp_path / "cache", options=PrepareOptions(min_frequency=2))
    assert other.path != first.path
    criteo.write_text(criteo.read_text() * 2)
    assert open_or_prepare(criteo, tmp_path / "cache").num_samples == 600


@pytest.mark.parametrize("stage", ["fit", "encode"])
def test_what_another_training_has_prepared_meanwhile_is_taken(criteo, tmp_path, stage):
    faster = []

    def at(now, _rows):
        if now == stage and not faster:
            faster.append(open_or_prepare(criteo, tmp_path / "cache"))

    ours = open_or_prepare(criteo, tmp_path / "cache", progress=at)
    assert ours.path == faster[0].path and ours.stamps == faster[0].stamps
    assert list((tmp_path / "cache").iterdir()) == [ours.path]
    with pytest.raises(DataError, match="no usable row"):
        criteo.write_text("a\n")
        open_or_prepare(criteo, tmp_path / "cache", format="criteo", options=QUARANTINE)


@pytest.mark.parametrize("most", [100, 1000, 6000, 20_000])
def test_a_full_disk_leaves_nothing(criteo, tmp_path, full_disk, most):
    with pytest.raises(OutputError, match=r"out(/\S+)?: cannot be written \(.*File too large.*\)"), full_disk(most):
        prepare(criteo, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [criteo]


@pytest.mark.parametrize("there", ["a store", "an empty folder", "nothing"])
def test_a_link_is_followed(criteo, tmp_path, there):
    link, folder = tmp_path / "link", tmp_path / "real" / "data"
    link.symlink_to(folder)
    if there != "nothing":
        folder.mkdir(parents=True)
    if there == "a store":
        prepare(criteo, folder, options=PrepareOptions(min_frequency=2))
    for _ in range(2):
        store = prepare(criteo, link, overwrite=True)
        assert link.is_symlink() and Store.open(link).fingerprint == Store.open(folder).fingerprint == store.fingerprint
    assert sorted(tmp_path.iterdir()) == sorted([criteo, link, folder.parent])
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_name_that_is_no_utf8_is_refused(criteo, tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.tsv")
    criteo.rename(file)
    for make in (prepare, open_or_prepare):
        with pytest.raises(DataError, match="name is not UTF-8; rename"):
            make(file, tmp_path / "out")


def test_unknown_formats_and_contradictions(criteo, tmp_path):
    with pytest.raises(ConfigError, match="format 'criterio' is unknown; choose one of criteo"):
        prepare(criteo, tmp_path / "out", format="criterio")
    with pytest.raises(ConfigError, match="brings its own schema"):
        prepare(criteo, tmp_path / "out", format="criteo", schema=SCHEMA)
    with pytest.raises(ConfigError, match="without a label"):
        prepare(criteo, tmp_path / "out", options=PrepareOptions(negatives=2))
    (tmp_path / "letter.txt").write_text("Dear Sir,\nHello\n")
    with pytest.raises(ConfigError, match="cannot tell the format"):
        prepare(tmp_path / "letter.txt", tmp_path / "out")


def test_progress_tells_stage_and_rows(criteo, tmp_path):
    seen = []
    prepare(criteo, tmp_path / "out", progress=lambda stage, rows: seen.append((stage, rows)))
    assert seen == [("fit", 300), ("encode", 300)]


def test_splits_in_time_order(criteo, tmp_path):
    store = prepare(criteo, tmp_path / "out")
    assert split_by_time(store, (0.8, 0.1, 0.1)) == [(0, 240), (240, 270), (270, 300)]
    assert split_by_time(store, positions=[100]) == [(0, 100), (100, 300)] and named_splits(store) == {}
    for arguments in ({}, {"fractions": (0.5, 0.4)}, {"positions": [200, 100]}, {"positions": [301]}):
        with pytest.raises(ConfigError):
            split_by_time(store, **arguments)


def test_schema_survives_yaml_and_refuses_nonsense(tmp_path):
    SCHEMA.save(tmp_path / "schema.yaml")
    assert Schema.load(tmp_path / "schema.yaml") == SCHEMA
    for text, reason in [
        ("label: a\ncategorical: [a]", "two roles"),
        ("label: a", "no feature"),
        ("categorical: [a]\nuser: b", "user column 'b'"),
        ("categorical: [a]\ncalendar: [hour]", "need a time column"),
        ("categorical: [a]\nmulti_hot: [{name: b, separator: '::'}]", "separator"),
        ("colour: red\ncategorical: [a]", "colour"),
        ("[", "is not YAML"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            Schema.load(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Schema.load(Path(tmp_path / "none.yaml"))


def test_what_a_new_users_csv_stumbles_over_says_what_to_do(tmp_path: Path) -> None:
    table, schema = tmp_path / "t.csv", tmp_path / "schema.yaml"
    table.write_text('liked?,"Price, EUR",Dish\nno,1.5,"Soup, hot"\n')
    with pytest.raises(ConfigError, match=r"no column is the label.*lines such as `label: COLUMN`"):
        prepare(table, tmp_path / "out")
    schema.write_text("label: liked?\ncategorical: [Dish]\ndense: [Price, EUR]\n")
    with pytest.raises(DataError, match=r"column 'Price': the column is missing.*a comma.*stands in quotes"):
        prepare(table, tmp_path / "out", schema=Schema.load(schema))
    schema.write_text('label: liked?\ncategorical: [Dish]\ndense: ["Price, EUR"]\n')
    with pytest.raises(DataError, match=r"'no' is not a number \(labels are 0 and 1"):
        prepare(table, tmp_path / "out", schema=Schema.load(schema))
    table.write_text('liked?,"Price, EUR",Dish\n1,1.5,"Soup,\nhot"\n')
    with pytest.raises(DataError, match=r"t\.csv:2: a quote is not closed.*take the line break out"):
        prepare(table, tmp_path / "out", schema=Schema.load(schema))


def test_data_of_another_vocabulary_is_told_apart_even_where_all_counts_are_equal(tmp_path: Path) -> None:
    stores = []
    for name, values in (("mon", "ab"), ("tue", "ba")):
        rows = [f"{i % 2},{values[0] if i % 3 else values[1]}" for i in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["label,user", *rows]) + "\n")
        schema = Schema(label="label", categorical=("user",))
        stores.append(prepare(tmp_path / f"{name}.csv", tmp_path / name, format="csv", schema=schema))
    mine, other = stores
    assert [feature.num_rows for feature in mine.features] == [feature.num_rows for feature in other.features]
    wanted = Wanted.of(mine)
    wanted.check(mine)
    with pytest.raises(DataError, match="was encoded differently from the training data"):
        wanted.check(other)
    again = prepare(tmp_path / "mon.csv", tmp_path / "again", format="csv", schema=schema)
    wanted.check(again)


def test_a_vocabulary_with_other_values_than_the_encoder_says_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,user\n0,a\n1,b\n0,a\n")
    schema = Schema(label="label", categorical=("user",))
    store = prepare(tmp_path / "a.csv", tmp_path / "store", format="csv", schema=schema)
    (store.path / "store.json").unlink()  # with its checksums
    file = store.path / "vocabulary" / "user.parquet"
    pl.read_parquet(file).reverse().write_parquet(file)
    with pytest.raises(DataError, match="holds other values than the data was encoded with"):
        Encoder.load(store.path)


def test_a_slice_is_prepared_with_the_options_of_what_it_extends(tmp_path: Path) -> None:
    def write(name: str, users: list[int]) -> Path:
        rows = ["user,item", *(f"{user},{i % 7}" for i, user in enumerate(users))]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        return tmp_path / name

    chosen = {"min_frequency": 3, "negatives": 4, "negative_method": "uniform", "seed": 5}
    one = prepare(write("1.csv", [1, 2, 3] * 7), tmp_path / "1", options=PrepareOptions(**chosen))
    two = prepare(write("2.csv", [7, 8, 9] * 7 + [11, 12]), tmp_path / "2", extend=one.path)
    given = PrepareOptions(negatives=1, min_frequency=1)
    three = prepare(tmp_path / "2.csv", tmp_path / "3", extend=one.path, options=given)
    assert [store.features[0].num_rows for store in (one, two, three)] == [4, 7, 9]
    drawn = [store.manifest.provenance["negatives"] for store in (one, two, three)]
    assert drawn[0] == drawn[1] == {"per_positive": 4, "method": "uniform", "window": 3000, "seed": 5}
    assert drawn[2] == {**drawn[0], "per_positive": 1}


def test_a_slice_of_ratings_is_prepared_with_the_threshold_of_what_it_extends(tmp_path: Path) -> None:
    stores: list[Store] = []
    for day in (1, 2):
        folder = tmp_path / f"raw{day}"
        folder.mkdir()
        rows = [f"{user}::{user * day % 9}::{1 + user % 5}::{1000 * day + user}" for user in range(40)]
        (folder / "ratings.dat").write_text("\n".join(rows) + "\n")
        (folder / "movies.dat").write_text("".join(f"{movie}::Movie {movie} (1999)::Drama\n" for movie in range(9)))
        options = PrepareOptions(label_threshold=3) if day == 1 else None
        before = stores[0].path if stores else None
        stores.append(prepare(folder, tmp_path / f"{day}", format="movielens", options=options, extend=before))
    assert [store.manifest.num_positives for store in stores] == [24, 24]


@pytest.mark.parametrize(("value", "count"), [("19.99", 100), ("0.1", 7), ("1234.567", 5000)])
def test_a_column_that_does_not_vary_is_no_measure_of_what_does(value: str, count: int, tmp_path: Path) -> None:
    rows = [f"{i % 2},u{i % 5},{value}" for i in range(count)]
    (tmp_path / "a.csv").write_text("\n".join(["label,u,price", *rows]) + "\n")
    schema = Schema(label="label", categorical=("u",), dense=("price",))
    store = prepare(tmp_path / "a.csv", tmp_path / "a", format="csv", schema=schema)
    assert bool((store.dense == 0).all())
    (tmp_path / "b.csv").write_text("label,u,price\n1,u1,20\n")
    (batch,) = encode_raw(tmp_path / "b.csv", Encoder.load(store.path), 10)
    assert float(batch.inputs.dense[0, 0]) == pytest.approx(20 - float(value), rel=1e-5)


def test_ids_of_pairs_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n007,a\n7,a\n7,b\n007,c\n0007,d\nNA,a\nNULL,a\n")
    store = prepare(tmp_path / "a.csv", tmp_path / "a", options=PrepareOptions(negatives=0))
    users = pl.read_parquet(store.path / "vocabulary" / "user.parquet")
    assert dict(users.iter_rows()) == {"007": 2, "7": 2, "0007": 1, "NA": 1, "NULL": 1}
    (tmp_path / "b.csv").write_text("user,item\n007,a\n7,b\n")  # all of them numbers here
    (batch,) = encode_raw(tmp_path / "b.csv", Encoder.load(store.path), 10)
    assert 0 not in batch.inputs.ids


def test_negatives_of_hashed_items_are_items(tmp_path: Path) -> None:
    rows = ["user,item", *(f"{n % 100},{n * 7 % 50}" for n in range(2000))]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    options = PrepareOptions(hash_rows=100_000, negative_method="uniform", negatives=1)
    store = prepare(tmp_path / "a.csv", tmp_path / "a", options=options)
    items = store.ids[:, [feature.name for feature in store.one_hot].index("item")]
    assert set(items[store.labels == 0].tolist()) <= set(items[store.labels == 1].tolist())


def test_a_store_is_made_anew_when_a_file_beside_the_ratings_changes(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("".join(f"{n}::{n % 3}::{1 + n % 5}::{n}\n" for n in range(30)))
    for genres in ("Drama", "Drama|War|Crime"):
        (tmp_path / "movies.dat").write_text("".join(f"{n}::Movie (1999)::{genres}\n" for n in range(3)))
        store = open_or_prepare(tmp_path, tmp_path / "cache", format="movielens")
        assert {feature.name: feature.num_rows for feature in store.features}["genres"] == 2 + genres.count("|")


def test_a_threshold_is_reached_by_its_own_value_in_float32(tmp_path: Path) -> None:
    values = pl.Series("label", [4.0, 4.1, 4.2], dtype=pl.Float32)
    pl.DataFrame({"label": values, "u": ["a", "b", "c"]}).write_parquet(tmp_path / "a.parquet")
    schema = Schema(label="label", categorical=("u",), label_threshold=4.1)
    store = prepare(tmp_path / "a.parquet", tmp_path / "a", format="parquet", schema=schema)
    assert store.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("date", ["01/02/2024", "1-2-2024 10:00"])
def test_dates_that_do_not_begin_with_their_year_are_refused(date: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"label,time,u\n1,{date},a\n0,{date},b\n")
    schema = Schema(label="label", time="time", categorical=("u",))
    with pytest.raises(DataError, match="is not a time"):
        prepare(tmp_path / "a.csv", tmp_path / "a", format="csv", schema=schema)


def test_the_same_file_plain_and_packed_is_refused_and_hidden_ones_are_others(tmp_path: Path) -> None:
    text = "label,u\n1,a\n0,b\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / ".b.csv").write_text(text)
    schema = Schema(label="label", categorical=("u",))
    assert prepare(tmp_path, tmp_path / "one", format="csv", schema=schema).num_samples == 2
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match=r"a\.csv: is there packed, too"):
        prepare(tmp_path, tmp_path / "two", format="csv", schema=schema)
