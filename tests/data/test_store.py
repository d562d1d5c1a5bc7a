import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.data import Batch, FeatureInfo, Store, StoreWriter, atomic
from slipstream.data import writer as writing
from slipstream.data.atomic import replace_folder
from slipstream.data.shuffle import BlockShuffle
from slipstream.errors import ConfigError, DataError, NotPrepared, OutputError

FEATURES = [
    FeatureInfo(name="user", num_rows=50),
    FeatureInfo(name="item/id", num_rows=7),
    FeatureInfo(name="tags: all", num_rows=9, multi_hot=True),
]


def raw(n: int, seed: int = 0, label_dtype: str = "uint8"):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, 50, n), rng.integers(0, 7, n)], axis=1).astype(np.int32)
    dense = rng.normal(size=(n, 3)).astype(np.float32)
    labels = rng.integers(0, 2, n) if label_dtype == "uint8" else rng.normal(size=n).astype(np.float32)
    time = np.sort(rng.integers(0, 10**9, n))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))])
    values = rng.integers(0, 9, offsets[-1]).astype(np.int32)
    return ids, dense, labels, time, values, offsets


def write(path: Path, data, pieces: int = 3, **options) -> Store:
    ids, dense, labels, time, values, offsets = data
    label_dtype = "float32" if labels.dtype == np.float32 else "uint8"
    with StoreWriter(
        path, FEATURES, dense=("a", "b", "c"), label_dtype=label_dtype, has_time=True, **options
    ) as writer:
        for rows in np.array_split(np.arange(len(labels)), pieces):
            if rows.size == 0:
                continue
            first, last = rows[0], rows[-1] + 1
            bag = (values[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first])
            writer.append(ids[first:last], dense[first:last], labels[first:last], time[first:last], [bag])
        return writer.commit({"source": "test"})


def bag_lists(bag) -> list[list[int]]:
    values, offsets = bag.values.tolist(), bag.offsets.tolist()
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def same(batch: Batch, data, rows) -> None:
    ids, dense, labels, time, values, offsets = data
    assert batch.inputs.ids.dtype == torch.int32 and batch.inputs.dense.dtype == torch.float32
    assert batch.labels.dtype == torch.float32 and batch.index.dtype == torch.int64 and batch.time.dtype == torch.int64
    assert batch.inputs.ids.shape == (len(rows), 2) and batch.inputs.dense.shape == (len(rows), 3)
    np.testing.assert_array_equal(batch.inputs.ids.numpy(), ids[rows])
    np.testing.assert_array_equal(batch.inputs.dense.numpy(), dense[rows])
    np.testing.assert_array_equal(batch.labels.numpy(), labels[rows].astype(np.float32))
    np.testing.assert_array_equal(batch.time.numpy(), time[rows])
    np.testing.assert_array_equal(batch.index.numpy(), rows)
    assert (batch.weights == 1).all() and len(batch) == len(rows)
    assert batch.inputs.bags[0].offsets[0] == 0
    assert bag_lists(batch.inputs.bags[0]) == [values[offsets[r] : offsets[r + 1]].tolist() for r in rows]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 40), pieces=st.integers(1, 5), size=st.integers(1, 50), seed=st.integers(0, 99), real=st.booleans()
)
def test_what_was_written_is_read(tmp_path_factory, n, pieces, size, seed, real):
    data = raw(n, seed, "float32" if real else "uint8")
    path = tmp_path_factory.mktemp("store") / "s"
    write(path, data, pieces)
    store = Store.open(path, verify=True)
    assert len(store) == n and store.num_dense == 3 and [f.name for f in store.features] == [f.name for f in FEATURES]
    assert store.manifest.num_positives == pytest.approx(float(data[2].sum()), abs=1e-4)
    seen = 0
    batches = store.batches(size)
    for batch in batches:
        same(batch, data, np.arange(seen, seen + len(batch)))
        seen += len(batch)
        assert batches.position == seen
    assert seen == n


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("size", [1000, 7, 40_000])
def test_shuffled_batches_hold_every_sample_once(tmp_path, prefetch, size):
    data = raw(30_000)
    store = write(tmp_path / "s", data)
    batches = store.batches(size, start=100, stop=29_000, shuffle_seed=3, prefetch=prefetch)
    parts = list(batches)
    assert len(parts) == len(batches)
    rows = torch.cat([part.index for part in parts]).numpy()
    assert sorted(rows) == list(range(100, 29_000)) and abs(np.corrcoef(rows, np.arange(rows.size))[0, 1]) < 0.05
    for part in parts[:2]:
        same(part, data, part.index.numpy())
    again = torch.cat([part.index for part in store.batches(size, start=100, stop=29_000, shuffle_seed=3)]).numpy()
    assert (again == rows).all()
    second = torch.cat([part.index for part in batches]).numpy()
    assert batches.epoch == 1 and not (second == rows).all() and sorted(second) == sorted(rows)


@pytest.mark.parametrize("seed", [None, 5])
def test_resumed_batches_continue_where_they_stopped(tmp_path, seed):
    store = write(tmp_path / "s", raw(5000))
    whole = store.batches(300, shuffle_seed=seed)
    expected = [part.index for _ in range(2) for part in whole]
    broken = store.batches(300, shuffle_seed=seed)
    got, states = [], []
    for part in broken:
        got.append(part.index)
        states.append(broken.state_dict())
        if len(got) == 5:
            break
    resumed = store.batches(300, shuffle_seed=seed)
    resumed.load_state_dict(states[-1])
    got += [part.index for part in resumed] + [part.index for part in resumed]
    assert torch.equal(torch.cat(got), torch.cat(expected))
    other = store.batches(300, shuffle_seed=8)
    with pytest.raises(ConfigError, match="cannot resume: shuffle_seed"):
        other.load_state_dict(states[-1])


def test_a_last_batch_that_is_not_full_can_be_dropped(tmp_path):
    store = write(tmp_path / "s", raw(1000))
    for seed in (None, 1):
        batches = store.batches(300, drop_last=True, shuffle_seed=seed)
        assert [len(part) for part in batches] == [300] * 3 == [len(part) for part in batches]
        assert len(batches) == 3 and batches.epoch == 1


def test_batches_in_order_are_views_and_writing_into_them_leaves_the_file_alone(tmp_path):
    store = write(tmp_path / "s", raw(100))
    before = (tmp_path / "s" / "dense.f32").read_bytes()
    batch = store.slice(10, 20)
    assert batch.inputs.dense.data_ptr() == store.dense.data_ptr() + 10 * 3 * 4
    batch.inputs.dense.zero_()
    assert (tmp_path / "s" / "dense.f32").read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_block_shuffle_is_a_permutation_from_any_position(data):
    n = data.draw(st.sampled_from([0, 1, 255, 256, 257, 5000, 600_001]))
    order = BlockShuffle(n, 4, 1)
    rows = order.rows(0, n)
    assert rows.size == n and (np.bincount(rows, minlength=n) == 1).all()
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert (BlockShuffle(n, 4, 1).rows(start, stop) == rows[start:stop]).all()


def test_select_concat_and_split(tmp_path):
    data = raw(60)
    batch = write(tmp_path / "s", data).slice(0, 60)
    rows = torch.tensor([5, 5, 0, 59])
    same(batch.select(rows), data, rows.numpy())
    mask = torch.arange(60) % 7 == 2
    same(batch.select(mask), data, np.flatnonzero(mask.numpy()))
    same(batch.select(torch.zeros(60, dtype=torch.bool)), data, np.empty(0, dtype=int))
    first, rest = batch.split(13)
    same(first, data, np.arange(13))
    same(rest, data, np.arange(13, 60))
    same(Batch.concat([rest, first]), data, np.concatenate([np.arange(13, 60), np.arange(13)]))
    assert Batch.concat([batch]) is batch
    with pytest.raises(ConfigError):
        batch.split(61)
    with pytest.raises(ConfigError):
        Batch.concat([])


def test_damage_is_found(tmp_path):
    write(tmp_path / "s", raw(100))
    file = tmp_path / "s" / "ids.i32"
    good = file.read_bytes()
    file.write_bytes(good[:-4])
    with pytest.raises(DataError, match=r"ids\.i32: has 796 bytes instead of 800"):
        Store.open(tmp_path / "s")
    file.write_bytes(good[:-1] + b"\x01")
    Store.open(tmp_path / "s")
    with pytest.raises(DataError, match="checksum"):
        Store.open(tmp_path / "s", verify=True)
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        Store.open(tmp_path / "s")


def test_manifests_that_cannot_be_used(tmp_path):
    with pytest.raises(NotPrepared, match="slipstream prepare"):
        Store.open(tmp_path / "nothing")
    write(tmp_path / "s", raw(10))
    manifest = tmp_path / "s" / "store.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(NotPrepared, match="format 99"):
        Store.open(tmp_path / "s")
    manifest.write_text(text.replace('"ids.i32"', '"../ids.i32"'))
    with pytest.raises(DataError, match="outside the store"):
        Store.open(tmp_path / "s")
    manifest.write_text(text[:50])
    with pytest.raises(DataError, match="damaged"):
        Store.open(tmp_path / "s")


def test_a_store_is_written_whole_or_not_at_all(tmp_path):
    data = raw(10)
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "s", FEATURES[:1]) as writer:
        writer.append(data[0][:, :1], None, data[2])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    first = write(tmp_path / "s", data)
    with pytest.raises(DataError, match="already prepared"):
        write(tmp_path / "s", data)
    second = write(tmp_path / "s", raw(20), overwrite=True)
    assert (
        len(second) == 20 and [p.name for p in tmp_path.iterdir()] == ["s"] and first.fingerprint != second.fingerprint
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(DataError, match="not a prepared data set"):
        write(tmp_path / "mine", data, overwrite=True)


@pytest.mark.parametrize(("most", "pieces"), [(5000, 100), (5000, 1), (10, 1)])
def test_a_full_disk_names_the_store_and_leaves_nothing(tmp_path, full_disk, most, pieces):
    # In small pieces the rest of a file waits in a buffer, and is written once more when the file is closed.
    with pytest.raises(OutputError, match=r"/s: cannot be written \(File too large\)"), full_disk(most):
        write(tmp_path / "s", raw(3000 if most > 10 else 5), pieces)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_added_or_made_leaves_nothing(tmp_path, full_disk, monkeypatch):
    with pytest.raises(OutputError, match="/s: cannot be written"), StoreWriter(tmp_path / "s", FEATURES[:1]) as writer:
        with full_disk(10):
            writer.add_file("more", lambda path: path.write_bytes(bytes(100)))
    assert not list(tmp_path.iterdir())

    def refused(path, kind):
        raise OSError("too many open files")

    monkeypatch.setattr(writing, "_Output", refused)
    with pytest.raises(OutputError, match=r"/s: cannot be written \(too many open files\)"):
        StoreWriter(tmp_path / "s", FEATURES[:1])
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_its_folder_is_replaced(tmp_path):
    folder, link = tmp_path / "there" / "s", tmp_path / "link"
    link.symlink_to(folder)
    for n, options in ((10, {}), (20, {"overwrite": True})):
        assert len(write(link, raw(n), **options)) == n
        assert link.is_symlink() and len(Store.open(link)) == len(Store.open(folder)) == n
    with pytest.raises(DataError, match="already prepared"):
        write(link, raw(10))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match=r"circle: is a link in a circle; choose"):
        write(tmp_path / "circle", raw(10))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["circle", "link", "there"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_place_that_is_taken_meanwhile_is_left_alone(tmp_path):
    with StoreWriter(tmp_path / "s", FEATURES[:1]) as writer:
        writer.append(raw(10)[0][:, :1], None, raw(10)[2])
        first = write(tmp_path / "s", raw(20))
        with pytest.raises(DataError, match="already prepared"):
            writer.commit()
    assert Store.open(tmp_path / "s").fingerprint == first.fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("path", [".", ".."])
def test_a_folder_without_a_name_is_refused(path, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError, match="is no name for a new folder; name"):
        write(path, raw(10))


def test_wrong_pieces_are_refused(tmp_path):
    ids, dense, labels, time, values, offsets = raw(10)
    bag = [(values, offsets)]
    with StoreWriter(tmp_path / "s", FEATURES, dense=("a", "b", "c"), has_time=True) as writer:
        bad = ids.copy()
        bad[4, 1] = 7
        with pytest.raises(DataError, match=r":5, column 'item/id': id 7 is outside|5, column 'item/id': id 7"):
            writer.append(bad, dense, labels, time, bag)
        with pytest.raises(DataError, match="id -1"):
            writer.append(-np.ones_like(ids), dense, labels, time, bag)
        broken = dense.copy()
        broken[2, 1] = np.nan
        with pytest.raises(DataError, match=r"column 'b': value is not finite"):
            writer.append(ids, broken, labels, time, bag)
        with pytest.raises(DataError, match="neither 0 nor 1"):
            writer.append(ids, dense, labels + 1, time, bag)
        with pytest.raises(DataError, match="offsets must rise"):
            writer.append(ids, dense, labels, time, [(values, offsets[::-1])])
        for arguments in [
            (ids[:, :1], dense, labels, time, bag),
            (ids, None, labels, time, bag),
            (ids, dense, labels, None, bag),
            (ids, dense, labels, time, []),
        ]:
            with pytest.raises(DataError, match="must"):
                writer.append(*arguments)
        assert writer.num_samples == 0
    with pytest.raises(ConfigError, match="same name"):
        StoreWriter(tmp_path / "t", [FEATURES[0], FEATURES[0]])
    with pytest.raises(ConfigError, match="before multi-hot"):
        StoreWriter(tmp_path / "t", FEATURES[::-1])


def test_equal_data_has_an_equal_fingerprint(tmp_path):
    one, two = write(tmp_path / "a", raw(50), pieces=1), write(tmp_path / "b", raw(50), pieces=4)
    assert one.fingerprint == two.fingerprint != write(tmp_path / "c", raw(50, 1)).fingerprint


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"prefetch": -1}, {"start": 5, "stop": 3}, {"shuffle_seed": -1}]
)
def test_batches_out_of_range(tmp_path, arguments):
    store = write(tmp_path / "s", raw(10))
    with pytest.raises(ConfigError):
        store.batches(**({"batch_size": 4} | arguments))


def test_breaking_off_leaves_no_thread(tmp_path):
    import threading

    store = write(tmp_path / "s", raw(40_000))
    for _ in range(3):
        iterator = iter(store.batches(100, shuffle_seed=1))
        next(iterator)
        iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slipstream-prefetch")]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    old, new = tmp_path / "data", tmp_path / "new"
    for folder in (old, new):
        (folder / "bags").mkdir(parents=True)
        (folder / "bags" / "name").write_text(folder.name)
    rename = os.rename

    def fails_once(source, target):
        if source == new:
            raise OSError("no space left")
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(atomic, "_exchange", lambda *_: False, raising=False)
        patch.setattr(os, "rename", fails_once)
        replace_folder(new, old)
    assert (old / "bags" / "name").read_text() == "data" and sorted(tmp_path.iterdir()) == [old, new]
    flushed = []
    monkeypatch.setattr(atomic, "fsync_path", flushed.append)
    replace_folder(new, old)
    assert (old / "bags" / "name").read_text() == "new" and list(tmp_path.iterdir()) == [old]
    assert flushed == [new, new / "bags", tmp_path]
