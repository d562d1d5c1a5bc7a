import numpy as np
import pytest

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import StoreWriter
from slipstream.evaluation import first_seen, novelty, score_new_items
from slipstream.evaluation.popularity import bucket_feature


@pytest.fixture
def store(tmp_path):
    ids = np.array([[0, 3], [0, 1], [1, 3], [2, 4], [2, 4], [0, 2]], dtype=np.int32)
    features = [FeatureInfo(name="user", num_rows=9), FeatureInfo(name="item", num_rows=6)]
    with StoreWriter(tmp_path / "store", features, dense=(), has_time=False) as writer:
        writer.append(ids, np.empty((6, 0), dtype=np.float32), np.array([0, 1, 0, 1, 0, 1], dtype=np.float32))
        return writer.commit({"item": "item"})


def test_the_first_sample_of_each_row(store):
    assert first_seen(store, 1, 6).tolist() == [6, 1, 5, 0, 3, 6]
    assert first_seen(store, 1, 4).tolist() == [4, 1, 4, 0, 3, 4]


def test_new_and_untrained_samples_by_hand(store, monkeypatch):
    rows, logits, labels = store.ids[2:, 1].numpy(), np.zeros(4), store.labels[2:].numpy()
    first = first_seen(store, 1, 6)[rows]  # samples 2 to 5: items 3, 4, 4, 2, first seen at 0, 3, 3, 5
    held_out = score_new_items(first, 2, None, labels, logits)
    assert (held_out["new"].samples, held_out["untrained"].samples) == (3, 3)
    # Chunks 2-3 and 4-5: at sample 4 item 4 has been trained on, in the chunk before.
    stream = score_new_items(first, 2, 2, labels, logits)
    assert (stream["new"].samples, stream["untrained"].samples) == (3, 2)
    monkeypatch.setattr(novelty, "_PIECE", 1)
    assert score_new_items(first, 2, 2, labels, logits) == stream


def test_popularity_is_of_the_items_where_the_data_names_them(store):
    assert bucket_feature(store, None) == 1, "users have more rows"
    assert bucket_feature(store, "user") == 0
