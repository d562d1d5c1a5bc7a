"""The named formats, on made files and, where it is there, on the shared real data."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slipstream.data.clicks import HISTORY
from slipstream.data.encoder import Encoder
from slipstream.data.formats import detect, open_raw
from slipstream.data.negatives import NegativeDrawer, NegativeOptions
from slipstream.data.prepare import PrepareOptions, encode_raw, prepare
from slipstream.data.split import named_splits
from slipstream.errors import DataError


def values(store, name):
    known = [None, *pq.read_table(store.path / "vocabulary" / f"{name}.parquet")["value"].to_pylist()]
    return [known[i] for i in store.ids[:, [f.name for f in store.one_hot].index(name)].tolist()]


def test_movietweetings(movietweetings, tmp_path):
    store = prepare(movietweetings, tmp_path / "out")
    assert store.manifest.provenance["format"] == "movietweetings" and store.num_samples == 100_000
    lines = [line.split("::") for line in (movietweetings / "ratings.dat").read_text().splitlines()]
    lines.sort(key=lambda row: int(row[3]))
    assert store.labels.tolist() == [int(int(row[2]) >= 8) for row in lines]
    assert store.time.tolist() == [int(row[3]) for row in lines]
    assert values(store, "user") == [row[0] for row in lines] and values(store, "movie") == [row[1] for row in lines]
    films = {}
    for line in (movietweetings / "movies.dat").read_text().splitlines():
        number, title, genres = line.split("::")
        films[number] = (title.rstrip()[-5:-1], genres)
    assert values(store, "year") == [films.get(row[1], ("", ""))[0] for row in lines]
    genres = [None, *pq.read_table(store.path / "vocabulary" / "genres.parquet")["value"].to_pylist()]
    offsets, ids = store.bags[0].offsets[:1001].tolist(), store.bags[0].values.tolist()
    for i in range(1000):
        expected = [genre for genre in films.get(lines[i][1], ("", ""))[1].split("|") if genre]
        assert [genres[k] for k in ids[offsets[i] : offsets[i + 1]]] == expected
    assert [feature.name for feature in store.features] == ["user", "movie", "year", "hour", "weekday", "genres"]


def test_movielens_and_its_errors(tmp_path):
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n2::99::4::978301968\n")
    with pytest.raises(DataError, match=r"movies\.dat: is missing"):
        prepare(folder, tmp_path / "out")
    (folder / "movies.dat").write_bytes(
        "10::Amélie: a film (2001)::Comedy|Drama\n20::No Year::(no genres listed)\n".encode("latin-1")
    )
    assert detect(folder) == "movielens"
    store = prepare(folder, tmp_path / "out")
    assert store.labels.tolist() == [1, 1, 0] and values(store, "year") == ["2001", "", ""]
    assert store.bags[0].offsets.tolist() == [0, 2, 2, 2]
    (folder / "ratings.dat").write_text("1::10::5::978300760\n-1::20::3::978302109\n")
    with pytest.raises(DataError, match=r"ratings\.dat:2, column 'user': user id -1 is negative"):
        prepare(folder, tmp_path / "out", overwrite=True)
    (folder / "movies.dat").write_text("10::A (2001)::Comedy\n10::B (2002)::Drama\n")
    with pytest.raises(DataError, match=r"movies\.dat:2: a film stands twice"):
        prepare(folder, tmp_path / "out", overwrite=True)


AVAZU = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"  # noqa: E501


@pytest.mark.parametrize("header", [True, False])
def test_avazu(tmp_path, header):
    rows = [f"{i},{i % 2},1410210{i},1005,0,s{i},d,c,a,b,e,f,g,h,1,0,17747,320,50,1974,2,39,-1,33" for i in range(4)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([AVAZU, *rows] if header else rows) + "\n")
    store = prepare(path, tmp_path / "out", format="avazu")
    assert store.labels.tolist() == [0, 1, 0, 1] and len(store.features) == 23 and values(store, "C20") == ["-1"] * 4
    # 2014-10-21 was a Tuesday.
    assert store.time.tolist() == [1413849600 + 3600 * i for i in range(4)]
    assert store.ids[:, -2].tolist() == [1, 2, 3, 4] and store.ids[:, -1].tolist() == [2] * 4
    rows[2] = rows[2].replace("14102102", "14132102")
    path.write_text("\n".join([AVAZU, *rows] if header else rows) + "\n")
    with pytest.raises(DataError, match=rf"a\.csv:{4 if header else 3}, column 'time': value is not a time"):
        prepare(path, tmp_path / "out", format="avazu", overwrite=True)


def clicks(n: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    frame = {
        "user_id": rng.integers(0, 20, n),
        "click_article_id": rng.integers(0, 30, n),
        "click_timestamp": np.sort(rng.integers(1_506_826_800, 1_506_926_800, n)),
    }
    names = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")
    return pl.DataFrame(frame | {f"click_{name}": rng.integers(1, 4, n) for name in names})


def test_globo_negatives_are_recent_and_carry_the_context_of_their_click(tmp_path):
    frame = clicks()
    frame.write_parquet(tmp_path / "globo.parquet")
    options = PrepareOptions(negatives=3, negative_window=10)
    store = prepare(tmp_path / "globo.parquet", tmp_path / "out", options=options)
    assert store.manifest.provenance["format"] == "globo" and store.manifest.num_positives == 400
    articles, labels = values(store, "click_article_id"), store.labels.tolist()
    clicked = frame["click_article_id"].cast(pl.String).to_list()
    click = -1
    for i, label in enumerate(labels):
        click += label
        if label:
            assert articles[i] == clicked[click]
        else:
            assert articles[i] != clicked[click] and articles[i] in clicked[max(0, click - 10) : click]
    owner = np.cumsum(labels) - 1
    assert (np.bincount(owner)[20:] == 4).all() and np.bincount(owner)[0] == 1
    for name in ("user_id", "click_os"):
        assert values(store, name) == frame[name].cast(pl.String).gather(owner).to_list()
    assert store.time.tolist() == frame["click_timestamp"].gather(owner).to_list()
    again = prepare(tmp_path / "globo.parquet", tmp_path / "again", options=options)
    other = prepare(tmp_path / "globo.parquet", tmp_path / "other", options=options.model_copy(update={"seed": 1}))
    assert again.fingerprint == store.fingerprint != other.fingerprint
    shuffled = frame.sample(fraction=1, shuffle=True, seed=0).sort("click_os", maintain_order=True)
    shuffled.write_parquet(tmp_path / "unsorted.parquet")
    store = prepare(tmp_path / "unsorted.parquet", tmp_path / "sorted", options=options)
    assert (np.diff(store.time.numpy()) >= 0).all() and store.manifest.num_positives == 400


def test_clicks_carry_what_the_user_clicked_before(tmp_path):
    clicks().sort("click_os", maintain_order=True).write_parquet(tmp_path / "globo.parquet")
    store = prepare(tmp_path / "globo.parquet", tmp_path / "out", options=PrepareOptions(negatives=1))
    columns = [values(store, name) for name in ("user_id", "click_article_id", *HISTORY)]
    seen: dict[str, list[str]] = {}
    again = 0
    for positive, user, article, previous, before, count in zip(store.labels.tolist(), *columns, strict=True):
        past = seen.setdefault(user, [])  # a click's negatives come after it
        past = past if positive else past[:-1]
        assert count == str(min(len(past), 20))
        assert (previous, before) == (past[-1] if past else "", past[-2] if len(past) > 1 else "")
        again += len(past) > 1
        if positive:
            seen[user].append(article)
    assert again > 100


def test_clicks_are_read_whatever_else_their_file_holds(tmp_path):
    plain, more = clicks().to_arrow(), clicks().to_arrow()
    nested = pa.field("x", pa.int64(), metadata={b"\xff": b"\xff"})
    for name, column in (
        ("lists", pa.array([[1]] * 400, pa.list_(nested))),
        ("long", pa.array([1] * 400, pa.decimal256(60))),
        ("bytes", pa.array([b"\xff"] * 400)),
    ):
        more = more.append_column(name, column)
    pq.write_table(plain, tmp_path / "plain.parquet")
    pq.write_table(more.select(more.column_names[::-1]), tmp_path / "more.parquet")
    assert prepare(tmp_path / "more.parquet", tmp_path / "a").fingerprint == (
        prepare(tmp_path / "plain.parquet", tmp_path / "b").fingerprint
    )


def test_globo_refuses_negative_ids(tmp_path):
    frame = clicks().with_columns(user_id=pl.when(pl.int_range(pl.len()) == 7).then(-5).otherwise(pl.col("user_id")))
    frame.write_parquet(tmp_path / "globo.parquet")
    with pytest.raises(DataError, match=r"globo\.parquet:8, column 'user_id': user id -5 is negative"):
        prepare(tmp_path / "globo.parquet", tmp_path / "out")


@pytest.mark.parametrize("method", ["uniform", "popularity"])
def test_pairs_with_a_split(tmp_path, method):
    rng = np.random.default_rng(0)
    pairs = pl.DataFrame({"user": np.repeat(np.arange(40), 10), "item": rng.zipf(1.5, 400) % 200}).unique(
        maintain_order=True
    )
    pairs = pairs.with_columns(split=pl.Series(rng.random(pairs.height) < 0.2).cast(pl.Int8))
    pairs.write_parquet(tmp_path / "p.parquet")
    store = prepare(
        tmp_path / "p.parquet", tmp_path / "out", options=PrepareOptions(negatives=2, negative_method=method)
    )
    known = {(str(user), str(item)): split for user, item, split in pairs.iter_rows()}
    ranges = named_splits(store)
    assert list(ranges) == ["train", "test"] and ranges["train"][1] == ranges["test"][0]
    users, items, labels = values(store, "user"), values(store, "item"), store.labels.tolist()
    for name, split in (("train", 0), ("test", 1)):
        start, stop = ranges[name]
        found = {(users[i], items[i]) for i in range(start, stop) if labels[i]}
        assert found == {pair for pair, where in known.items() if where == split}
    drawn = [(users[i], items[i]) for i in range(store.num_samples) if not labels[i]]
    assert len(drawn) == 2 * pairs.height and not set(drawn) & set(known)
    order = [user for user, label in zip(users, labels, strict=True) if label]
    assert order[:30] != sorted(order[:30], key=int)


@pytest.mark.parametrize(
    ("header", "format"),
    [("user,item", "pairs"), ("user,item,split", "pairs"), ("user,item,label", "csv"), ("user,item,rating", "csv")],
)
def test_a_third_column_that_may_be_a_label_is_not_taken_for_pairs(tmp_path, header, format):
    row = ",".join("0" for _ in header.split(","))
    (tmp_path / "p.csv").write_text(f"{header}\n{row}\n")
    pl.read_csv(tmp_path / "p.csv").write_parquet(tmp_path / "p.parquet")
    assert detect(tmp_path / "p.csv") == format
    assert detect(tmp_path / "p.parquet") == ("parquet" if format == "csv" else "pairs")


def test_names_of_pairs_are_those_of_the_header(tmp_path):
    (tmp_path / "pairs.csv").write_bytes('\ufeff"user", item ,split\r\n1,2,0\r\n1,3,1\r\n'.encode())
    store = prepare(tmp_path / "pairs.csv", tmp_path / "out", format="pairs", options=PrepareOptions(negatives=0))
    assert values(store, "item") == ["2", "3"] and named_splits(store) == {"train": (0, 1), "test": (1, 2)}


def test_labels_beside_users_and_items_are_kept(tmp_path):
    (tmp_path / "p.csv").write_text("user,item,label\na,x,0\nb,y,1\na,y,0\n")
    assert prepare(tmp_path / "p.csv", tmp_path / "out").labels.tolist() == [0, 1, 0]


def test_new_pairs_and_clicks_keep_the_order_of_their_files(tmp_path):
    draw = np.random.default_rng(0)
    pairs = pl.DataFrame({"user": np.arange(100), "item": draw.integers(0, 9, 100), "split": draw.integers(0, 2, 100)})
    pairs.write_parquet(tmp_path / "p.parquet")
    store = prepare(tmp_path / "p.parquet", tmp_path / "pairs")
    batches = encode_raw(tmp_path / "p.parquet", Encoder.load(store.path), 30, labels=False)
    assert names(store, "user", batches) == [str(user) for user in range(100)]
    parts = tmp_path / "clicks"
    parts.mkdir()
    frame = clicks().sample(fraction=1, shuffle=True, seed=0)
    frame[:300].write_parquet(parts / "0.parquet")
    frame[300:].write_parquet(parts / "1.parquet")
    store = prepare(parts, tmp_path / "globo", format="globo")
    batches = list(encode_raw(parts, Encoder.load(store.path), 70, labels=False))
    assert names(store, "user_id", batches) == frame["user_id"].cast(pl.String).to_list()
    before = pl.int_range(pl.len()).over("user_id").clip(0, 20).cast(pl.String)
    history = frame.with_row_index("row").sort("click_timestamp", maintain_order=True)
    history = history.with_columns(count=before).sort("row")
    assert names(store, HISTORY[2], batches) == history["count"].to_list()


def names(store, name, batches):
    known = [None, *pq.read_table(store.path / "vocabulary" / f"{name}.parquet")["value"].to_pylist()]
    column = [feature.name for feature in store.one_hot].index(name)
    return [known[i] for batch in batches for i in batch.inputs.ids[:, column].tolist()]


def test_a_bad_click_is_named_with_its_own_file(tmp_path):
    (tmp_path / "clicks").mkdir()
    clicks().write_parquet(tmp_path / "clicks" / "0.parquet")
    wrong = clicks().with_columns(user_id=pl.when(pl.int_range(pl.len()) == 7).then(-5).otherwise(pl.col("user_id")))
    wrong.write_parquet(tmp_path / "clicks" / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet:8, column 'user_id'"):
        prepare(tmp_path / "clicks", tmp_path / "out", format="globo")


@pytest.mark.parametrize("header", [True, False])
def test_new_avazu_files_need_no_label(tmp_path, header):
    rows = [f"{i},{i % 2},1410210{i},1005,0,s{i},d,c,a,b,e,f,g,h,1,0,17747,320,50,1974,2,39,-1,33" for i in range(4)]
    lines = [AVAZU, *rows] if header else rows
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    store = prepare(tmp_path / "a.csv", tmp_path / "out", format="avazu")
    without = [",".join(field for i, field in enumerate(line.split(",")) if i != 1) for line in lines]
    (tmp_path / "test.csv").write_text("\n".join(without) + "\n")
    for file in ("a.csv", "test.csv"):
        (batch,) = encode_raw(tmp_path / file, Encoder.load(store.path), 10, labels=False)
        assert (batch.inputs.ids == store.ids).all()


def test_negatives_follow_the_stated_distribution():
    rng = np.random.default_rng(0)
    items = rng.zipf(1.6, 60_000).astype(np.int32) % 50 + 1
    users = np.arange(60_000, dtype=np.int32)
    counts = np.bincount(items, minlength=51).astype(float)
    for method, mass in (("uniform", np.r_[0, np.ones(50)]), ("popularity", counts**0.75)):
        drawn = NegativeDrawer(items, users, 51, NegativeOptions(per_positive=4, method=method)).draw(0, 60_000)
        assert (drawn != items[:, None]).all() and drawn.min() >= 1
        # Each positive cannot draw its own item.
        chance = sum(np.where(np.arange(51) == i, 0, mass) / (mass.sum() - mass[i]) * counts[i] for i in range(51))
        share = np.bincount(drawn.ravel(), minlength=51) / drawn.size
        np.testing.assert_allclose(share, chance / chance.sum(), atol=4e-3)
    whole = NegativeDrawer(items, users, 51, NegativeOptions(per_positive=4))
    assert (whole.draw(100, 300)[50:] == whole.draw(150, 300)).all()


def test_negatives_of_two_seeds_have_nothing_to_do_with_each_other():
    items = np.zeros(20_000, dtype=np.int32)
    users = np.arange(20_000, dtype=np.int32)
    options = [NegativeOptions(per_positive=1, method="uniform", seed=seed) for seed in (0, 1, 7)]
    drawn = [NegativeDrawer(items, users, 10_001, each).draw(0, 20_000) for each in options]
    for one, two in itertools.combinations(drawn, 2):
        for apart in range(-8, 9):  # positions of one seed beside those of the other
            assert (one[8:-8] == two[8 + apart : len(two) - 8 + apart]).mean() < 0.005
        both = [np.bincount(side.ravel(), minlength=10_001) for side in (one, two)]
        assert abs(np.corrcoef(*both)[0, 1]) < 0.05


def test_negatives_of_slices_are_drawn_apart(tmp_path):
    def slice_of(day: int) -> Path:
        rows = ["user,item", *(f"{user},{user * 7 % 100}" for user in range(100 * day, 100 * day + 100))]
        path = tmp_path / f"day{day}.csv"
        path.write_text("\n".join(rows) + "\n")
        return path

    options = PrepareOptions(negatives=3, negative_method="uniform")
    first = prepare(slice_of(0), tmp_path / "0", format="pairs", options=options)
    second = prepare(slice_of(1), tmp_path / "1", extend=first.path, options=options)
    third, again = (prepare(slice_of(2), tmp_path / name, extend=second.path, options=options) for name in ("2", "3"))
    sets = []
    for store in (second, third, again):
        names = [feature.name for feature in store.one_hot]
        ids = store.ids.numpy()[:, names.index("item")]
        sets.append(ids[store.labels.numpy() == 0])
    assert (sets[0] == sets[1]).mean() < 0.1
    assert (sets[1] == sets[2]).all()


def test_one_item_has_no_negatives():
    items = np.ones(5, dtype=np.int32)
    for method in ("recent", "uniform", "popularity"):
        drawer = NegativeDrawer(items, items, 2, NegativeOptions(per_positive=2, method=method))
        assert (drawer.draw(0, 5) == -1).all() and sum(len(p[0]) for p in drawer.pieces(2)) == 5


def test_real_criteo(shared, tmp_path):
    path = shared("criteo_kaggle_8k/criteo_kaggle_8000.tsv")
    assert detect(path) == "criteo"
    store = prepare(path, tmp_path / "out")
    assert store.num_samples == 8000 and sum(feature.num_rows - 1 for feature in store.features) == 37_100


def test_real_avazu(shared, tmp_path):
    folder = shared("avazu_8k")
    assert detect(folder / "train.csv") == "avazu"
    store = prepare(folder, tmp_path / "out", format="avazu")
    assert store.num_samples == 8999 and {f.name: f.num_rows for f in store.features}["device_ip"] == 6678 + 1


def test_real_globo_is_recognised(shared):
    data = open_raw(shared("globo_clicks.parquet"))
    assert data.format == "globo" and data.negatives == 2


def test_real_pairs(shared, tmp_path):
    assert detect(shared("gowalla.parquet")) == "pairs"
    store = prepare(shared("ml1m_pairs.parquet"), tmp_path / "out", options=PrepareOptions(negatives=0))
    assert store.num_samples == 1_000_209 and [f.num_rows for f in store.features] == [6041, 3707]


def test_bad_pairs_are_named_by_their_line_of_the_file(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("user,item,split\n1,2,0\n1,3,7\n")
    with pytest.raises(DataError, match=r"pairs\.csv:3\b"):
        prepare(path, tmp_path / "out", format="pairs")
