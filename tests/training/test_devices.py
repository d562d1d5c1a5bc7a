"""Trainings with tables in host memory, and what a device is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.store import Store
from slipstream.data.transfer import Sender
from slipstream.errors import ConfigError
from slipstream.training import TrainConfig, evaluate, train

MODEL = {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]}


def config(store: Store, **settings: Any) -> TrainConfig:
    base = {"data": str(store.path), "model": MODEL, "batch_size": 64, "threads": 1}
    return TrainConfig.model_validate({**base, "optimizer": {"name": "adam", "clip": 1.0}, **settings})


@pytest.mark.parametrize("policy", ["none", "psse", "importance"])
def test_tables_in_host_memory_are_trained_saved_and_scored_as_others(
    make_store: Callable[..., Store], tmp_path: Path, policy: str
) -> None:
    store = make_store(1500)
    chosen: dict[str, Any] = {"name": policy}
    if policy == "psse":
        chosen |= {"warmup_steps": 5, "every": 5, "budget": 0.6}
    runs = []
    for name, bytes_ in (("one", None), ("cached", 100 * 4 * 12)):
        runs.append(train(config(store, policy=chosen, row_cache_bytes=bytes_, out=tmp_path / name), store=store))
    # PSSE looks at a batch's ids when its rows are placed, before the backward pass that others learn of them in.
    assert runs[0].log_loss == runs[1].log_loss
    assert runs[0].share_of_row_updates_skipped == runs[1].share_of_row_updates_skipped
    scores = [evaluate(tmp_path / name, store).scores for name in ("one", "cached")]
    assert scores[0] == scores[1]


def test_hotline_in_a_stream(make_store: Callable[..., Store]) -> None:
    store = make_store(1500)
    plain, hotline = (
        train(config(store, mode="prequential", row_cache_bytes=100 * 4 * 12, hotline=on), store=store)
        for on in (False, True)
    )
    assert hotline.log_loss == pytest.approx(plain.log_loss, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"engine": "torch", "row_cache_bytes": 1}, "engine=slipstream"),
        ({"compile": True, "row_cache_bytes": 1}, "compile=false"),
        ({"model": "mf", "row_cache_bytes": 1}, "matrix factorization"),
        ({"hotline": True}, "needs row_cache_bytes"),
        ({"hotline": True, "row_cache_bytes": 1, "policy": "guard"}, "watch losses"),
        ({"device": "tpu"}, "cuda"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrainConfig.model_validate({"data": "x", **settings})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_built(make_store: Callable[..., Store]) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        train(config(make_store(300), device="cuda"))


def test_what_cached_rows_cannot_do_is_refused(make_store: Callable[..., Store]) -> None:
    store = make_store(300)
    with pytest.raises(ConfigError, match="subsampling"):
        train(config(store, row_cache_bytes=10_000, policy="subsampling"), store=store)


def test_saturation_gates_rows_in_host_memory(make_store: Callable[..., Store]) -> None:
    chosen = {"name": "saturation", "warmup_steps": 5, "every": 5, "budget": 0.5, "min_updates": 5}
    store = make_store(3000)
    one, cached = (
        train(config(store, policy=chosen, row_cache_bytes=size), store=store) for size in (None, 100 * 4 * 12)
    )
    assert cached.share_of_row_updates_skipped > 0.02
    assert cached.share_of_row_updates_skipped == pytest.approx(one.share_of_row_updates_skipped, abs=0.05)
    assert cached.log_loss == pytest.approx(one.log_loss, abs=0.01)


def test_a_batch_is_sent_whole_or_without_its_ids() -> None:
    bag = Bag(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0, 1, 2]))
    batch = Batch(Inputs(torch.zeros(2, 1), torch.ones(2, 1), (bag,)), torch.zeros(2), torch.arange(2), torch.ones(2))
    meta = torch.device("meta")
    whole = batch.to(meta)
    assert {tensor.device.type for tensor in whole.tensors()} == {"meta"} and len(whole.tensors()) == 7
    assert Sender(torch.device("cpu")).send(batch) is batch
    sent = Sender(meta, keep_ids=True).send(batch)
    assert sent.inputs.dense.device == sent.labels.device == meta
    assert sent.inputs.ids is batch.inputs.ids and sent.inputs.bags is batch.inputs.bags
    batch.carried = {"history": torch.zeros(2, 3)}
    carried = batch.to(meta).carried
    assert carried is not None and carried["history"].is_meta
