"""What each system sets, and that it trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.training.conftest import make_store as make_store

from slipstream.data.batch import Bag
from slipstream.data.store import Store
from slipstream.embedding import PlainEmbeddingCollection, PulledEmbeddingCollection, TableConfig
from slipstream.errors import ConfigError
from slipstream.models import DLRMConfig
from slipstream.policies import OrderConfig, SlipstreamConfig
from slipstream.systems import SYSTEMS, configure
from slipstream.training import TrainConfig, train

BASE = TrainConfig.model_validate(
    {
        "data": "unused",
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
        "optimizer": {"name": "adam", "lr": 0.2, "embedding_lr": 0.5, "clip": 1.0},
        "policy": {"name": "random", "budget": 0.5},
        "batch_size": 64,
        "threads": 1,
        "seed": 7,
    }
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_all_systems_share(name: str) -> None:
    config = configure(name, BASE)
    assert config.model == DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,), first_order=False, pooling="sum")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.embedding_lr, optimizer.clip) == ("sgd", 0.2, 0.5, None)
    assert (config.batch_size, config.seed, config.data) == (64, 7, BASE.data)
    assert configure(name, config) == config


def test_what_makes_each_system() -> None:
    reference, intel = configure("dlrm_reference", BASE), configure("intel_dlrm", BASE)
    assert (reference.engine, reference.bf16, reference.policy.name) == ("torch", False, "none")
    assert configure("xdl", BASE).engine == "xdl"
    assert (intel.engine, intel.bf16, intel.policy.name) == ("slipstream", True, "none")
    assert configure("fae", BASE).policy == OrderConfig(order="cold_then_hot")
    chosen = BASE.model_copy(update={"policy": OrderConfig(order="interleaved", runs=3)})
    assert configure("fae", chosen).policy == chosen.policy
    paper = configure("slipstream_paper", BASE).policy
    assert paper == SlipstreamConfig(budget=0.7, band=0.08, mode="once", snapshot_start=1000, snapshot_share=0.03)
    chosen = BASE.model_copy(update={"policy": SlipstreamConfig(snapshot_start=5, mode="periodic")})
    assert configure("slipstream_paper", chosen).policy == SlipstreamConfig(snapshot_start=5)


def test_fae_and_hotline_keep_tables_in_host_memory_where_there_is_an_accelerator() -> None:
    assert configure("fae", BASE).row_cache_bytes is None
    assert configure("fae", BASE.model_copy(update={"device": "cuda"})).row_cache_bytes == 256 << 20
    hotline = configure("hotline", BASE)
    assert (hotline.row_cache_bytes, hotline.hotline, hotline.policy.name) == (256 << 20, True, "none")
    small = BASE.model_copy(update={"row_cache_bytes": 5000})
    assert [configure(name, small).row_cache_bytes for name in ("fae", "hotline")] == [5000, 5000]


def test_tables_in_host_memory_train_as_tables_in_one(make_store: Callable[..., Store]) -> None:
    store = make_store(3000)
    small = BASE.model_copy(update={"row_cache_bytes": 90 * 16})  # 90 of 109 rows
    in_one, fae = (train(configure("fae", base), store=store) for base in (BASE, small))
    assert (fae.auc, fae.log_loss) == (in_one.auc, in_one.log_loss)
    whole, halves = (
        train(configure("hotline", base).model_copy(update={"hotline": base is small}), store=store)
        for base in (BASE, small)
    )
    assert halves.log_loss == pytest.approx(whole.log_loss, abs=1e-5)


def test_other_models_become_the_published_one() -> None:
    other = TrainConfig.model_validate({"data": "unused", "model": "deepfm"})
    assert configure("dlrm_reference", other).model == DLRMConfig(pooling="sum")


def test_what_a_system_cannot_do() -> None:
    with pytest.raises(ConfigError, match="unknown system 'horizon'; choose one of dlrm_reference"):
        configure("horizon", BASE)
    with pytest.raises(ConfigError, match="orders the samples: use mode=holdout"):
        configure("fae", BASE.model_copy(update={"shuffle": True}))


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_trains(make_store: Callable[..., Store], name: str) -> None:
    policy = SlipstreamConfig(snapshot_start=2, snapshot_share=0.1, sample_rate=0.5, alpha=1, band=0.25)
    base = BASE.model_copy(update={"policy": policy})
    result = train(configure(name, base), store=make_store(3000))
    assert result.auc > 0.5 and result.log_loss < 0.8


def test_pulled_tables_train_as_the_reference_does(make_store: Callable[..., Store]) -> None:
    store = make_store(3000)
    reference, pulled = (train(configure(name, BASE), store=store) for name in ("dlrm_reference", "xdl"))
    assert pulled.log_loss == pytest.approx(reference.log_loss, abs=2e-5)
    assert pulled.auc == pytest.approx(reference.auc, abs=1e-4)


def test_pulled_rows_get_one_gradient_each() -> None:
    tables = [TableConfig("user", 6, 2), TableConfig("tags", 5, 2)]
    for pooling in ("sum", "mean"):
        torch.manual_seed(0)
        pulled = PulledEmbeddingCollection(tables, multi_hot=["tags"], pooling=pooling)
        plain = PlainEmbeddingCollection(tables, multi_hot=["tags"], pooling=pooling)
        plain.load_state_dict(pulled.state_dict())
        ids = torch.tensor([[5], [0], [5]], dtype=torch.int32)
        bag = Bag(torch.tensor([4, 4, 1], dtype=torch.int32), torch.tensor([0, 2, 2, 3]))
        out, expected = pulled(ids, [bag]), plain(ids, [bag])
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        for mine, theirs in zip(pulled.parameters(), plain.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad.to_dense(), theirs.grad.to_dense())
        assert pulled.tables["user"].weight.grad._indices().tolist() == [[0, 5]]
        assert pulled.tables["tags"].weight.grad._indices().tolist() == [[1, 4]]
