from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from slipstream.bench import BenchOptions, FrontierOptions, frontier, frontier_data, frontier_tune, run
from slipstream.bench.frontier_options import LABEL_ALONE
from slipstream.bench.frontier_policies import chosen, has_budget, with_policy
from slipstream.bench.frontier_tune import Choice, Trial, _climb, best, final_of, prefix_of, tune
from slipstream.cli.app import app
from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import ConfigError, DataError
from slipstream.report.record import Record
from slipstream.training import TrainConfig
from slipstream.training.ranges import ranges
from slipstream.training.run import open_data

MODEL = "model: {name: dlrm, embedding_dim: 4, bottom: [4], top: [8]}\nbatch_size: 64\noptimizer: {lr: 0.05}\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 30, (4000, 2)).astype(np.int32)
    labels = (draw.random(4000) < 0.2 + 0.6 * (ids[:, 0] % 2)).astype(np.float32)
    features = [FeatureInfo(name=name, num_rows=30) for name in ("user", "item")]
    with StoreWriter(tmp_path / "store", features, dense=(), has_time=False) as writer:
        writer.append(ids, np.empty((4000, 0), dtype=np.float32), labels)
        return writer.commit({})


@pytest.fixture
def config(store: Store) -> TrainConfig:
    return TrainConfig.model_validate({"data": store.path, "batch_size": 64})


def test_options_out_of_range_are_refused() -> None:
    for wrong, said in (
        ({"budgets": (0.0,)}, "budgets"),
        ({"budgets": ()}, "budgets"),
        ({"seeds": 0}, "seeds"),
        ({"samples": 3}, "samples"),
        ({"mode": "later"}, "mode"),
        ({"embedding_decays": ("fast",)}, "decays"),
    ):
        with pytest.raises(ConfigError, match=said):
            FrontierOptions(**wrong)


def test_full_training_and_random_are_always_in_it() -> None:
    assert chosen(["psse"]) == ["none", "random", "psse"]
    assert chosen(["importance"]) == ["none", "random", LABEL_ALONE, "importance"]
    assert chosen([])[:2] == ["none", "random"] and "psse" in chosen([])
    with pytest.raises(ConfigError, match="unknown policy 'nothing'"):
        chosen(["nothing"])
    assert [has_budget(name) for name in ("none", "random", "psse")] == [False, True, True]


def test_the_tuning_never_scores_what_the_end_is_scored_on(config: TrainConfig, store: Store) -> None:
    prefix = prefix_of(config, store, 3000)  # trains on 2,700, scores 2,700 to 3,000
    assert (prefix.max_samples, prefix.holdout) == (2700, 0.2)
    store.manifest.provenance["splits"] = {"train": (0, 2000), "test": (2000, 4000)}
    prefix = prefix_of(config, store, 3000)
    _, (_, tuned) = ranges(prefix, store, prefix.max_samples or 0)
    assert tuned == 2000 == ranges(final_of(config, 3000), store, 3000)[1][0]
    del store.manifest.provenance["splits"]
    stream = config.model_copy(update={"mode": "prequential", "score_from": 100})
    prefix, final = prefix_of(stream, store, 3000), final_of(stream, 3000)
    assert (prefix.max_samples, prefix.score_from) == (1000, 500)
    assert final.score_from == 1000
    assert final_of(stream.model_copy(update={"score_from": 2000}), 3000).score_from == 2000


def test_choices_scale_both_rates_and_the_batch(config: TrainConfig) -> None:
    base = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"embedding_lr": 0.1})})
    tuned = Choice(2.0, 0.5, "linear").apply(base)
    assert (tuned.optimizer.lr, tuned.optimizer.embedding_lr, tuned.batch_size) == (0.02, 0.2, 32)
    assert tuned.schedule.embedding == "linear"
    assert Choice(2.0).apply(config).optimizer.embedding_lr is None, "the tables follow lr"


@pytest.mark.parametrize(("summit", "steps"), [(1.0, 3), (4.0, 4), (0.25, 5), (1000.0, 4)])
def test_rates_climb_to_the_summit_and_stay_within_reach(summit: float, steps: int) -> None:
    seen: list[Choice] = []

    def reached(choice: Choice) -> float:
        seen.append(choice)
        return -abs(np.log2(choice.rate / summit))

    assert _climb(Choice(), lambda choice: reached(choice), 8.0).rate == min(summit, 8.0)
    assert len({choice.rate for choice in seen}) == steps


def test_every_policy_is_tuned_in_rate_and_batch_size(config: TrainConfig, store: Store) -> None:
    trials = tune(config, ["constant"], store, reach=2.0)
    assert {trial.choice.batch for trial in trials} >= {1.0, 0.5}
    assert {0.5, 1.0, 2.0} >= {trial.choice.rate for trial in trials} >= {1.0, 2.0}


@pytest.mark.parametrize(("summit", "tried"), [(1.0, {1.0, 0.5}), (0.5, {1.0, 0.5, 0.25}), (0.1, {1.0, 0.5, 0.25})])
def test_batch_sizes_are_halved_for_as_long_as_that_helps(
    config: TrainConfig, store: Store, monkeypatch: pytest.MonkeyPatch, summit: float, tried: set[float]
) -> None:
    def trained(changed: TrainConfig, store: Store) -> SimpleNamespace:
        return SimpleNamespace(quality=1.0 - abs(np.log2(changed.batch_size / config.batch_size / summit)) / 100)

    monkeypatch.setattr(frontier_tune, "train", trained)
    trials = tune(config, ["constant"], store, (1.0, 0.5, 0.25))
    assert {trial.choice.batch for trial in trials} == tried
    assert best(trials).batch == max(summit, 0.25)


def test_the_best_choice_is_of_the_trainings_that_converged() -> None:
    trials = [Trial(Choice(0.5), 0.6), Trial(Choice(1.0), 0.7), Trial(Choice(2.0), None)]
    assert best(trials) == Choice(1.0)
    with pytest.raises(ConfigError, match="diverged"):
        best(trials[2:])


def test_clocks_of_policies_fit_short_trainings(config: TrainConfig) -> None:
    policy = with_policy(config, "psse", 0.5, 6400).policy
    assert (policy.budget, policy.warmup_steps, policy.every) == (0.5, 12, 5)  # type: ignore[union-attr]
    long = with_policy(config, "psse", 0.5, 64_000_000).policy
    assert (long.warmup_steps, long.every) == (500, 200)  # type: ignore[union-attr]


def test_a_policy_that_does_not_fit_is_left_out_and_named(config: TrainConfig, store: Store, monkeypatch) -> None:
    def refuse(config: TrainConfig, name: str, budget: float, samples: int) -> TrainConfig:
        if name == "psse":
            raise ConfigError("does not fit")
        return with_policy(config, name, budget, samples)

    monkeypatch.setattr(frontier, "with_policy", refuse)
    measured = frontier.Frontier(
        config, store, FrontierOptions(policies=("psse",), budgets=(0.5,), seeds=1, tune=False)
    )
    measured.tune()
    measured.measure()
    assert measured.left_out == {"psse 0.5": "does not fit"}
    assert [(point["policy"], point["budget"]) for point in measured.points] == [
        ("none", 1.0),
        ("random", 0.5),
    ]


def test_trainings_alternate_over_the_policies_within_a_seed(config: TrainConfig, store: Store) -> None:
    options = FrontierOptions(policies=("psse",), budgets=(0.25, 0.5), seeds=2, tune=False)
    measured = frontier.Frontier(config, store, options)
    measured.tune()
    measured.measure()
    names = ("random", "psse")
    order = [("none", 1.0), *((name, budget) for budget in (0.25, 0.5) for name in names)]
    assert [(point["policy"], point["budget"]) for point in measured.points] == 2 * order
    assert [point["seed"] for point in measured.points] == 5 * [0] + 5 * [1]
    seeds_done: list[int] = []
    measured.points.clear()
    measured.measure(lambda: seeds_done.append(len(measured.points)))
    assert seeds_done == [5, 10]
    random = measured.points[1]
    assert random["share_of_inputs_trained"] == pytest.approx(0.25, abs=0.05)
    assert random["seconds"] > 0 and {"auc", "log_loss", "calibration", "by_popularity", "lr"} <= random.keys()


def test_a_policy_that_chose_another_batch_is_measured_with_that_of_full_training_too(
    config: TrainConfig, store: Store, monkeypatch
) -> None:
    def tuned(config: TrainConfig, *_: object) -> list[Trial]:
        small = config.policy.name == "psse"
        return [Trial(Choice(rate=2.0), 0.7), Trial(Choice(), 0.6), Trial(Choice(batch=0.5), 0.8 if small else 0.5)]

    monkeypatch.setattr(frontier, "tune", tuned)
    measured = frontier.Frontier(config, store, FrontierOptions(policies=("psse",), budgets=(0.5,), seeds=1))
    measured.tune()
    assert {str(place): choice for place, choice in measured.choices.items()} == {
        "none 1": Choice(rate=2.0),
        "random 0.5": Choice(rate=2.0),
        "psse 0.5": Choice(batch=0.5),
        "psse, batch of full 0.5": Choice(rate=2.0),
    }
    measured.measure()
    assert [(point["policy"], point["batch_size"]) for point in measured.points] == [
        ("none", config.batch_size),
        ("random", config.batch_size),
        ("psse", config.batch_size // 2),
        ("psse, batch of full", config.batch_size),
    ]


def test_the_command_writes_record_and_page(store: Store, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(MODEL, encoding="utf-8")
    record, page = tmp_path / "record.json", tmp_path / "page.html"
    arguments = ["--data", str(store.path), "--config", str(tmp_path / "config.yaml"), "--policies", "psse"]
    arguments += ["--budgets", "0.5", "--quick", "--threads", "1", "--json", str(record), "--html", str(page)]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "frontier", *arguments])
    assert done.exit_code == 0, done.output
    kept = Record.load(record)
    assert kept.name == "frontier_store"
    assert {point["policy"] for point in kept.points} == {"none", "random", "psse"}
    assert len(kept.conditions["tuning"]["random 0.5"]) >= 2, "few rates"
    assert "AUC of full training" in kept.quality
    assert "<svg" in page.read_text(encoding="utf-8")
    again = tmp_path / "again.html"
    done = CliRunner().invoke(app, ["bench", "frontier", "--also", str(record), "--html", str(again)])
    assert done.exit_code == 0 and again.exists()


def test_pairs_are_tuned_and_judged_by_ndcg(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 40)
    frame = pl.DataFrame({"user": users, "item": (users % 3) * 40 + draw.integers(0, 40, users.size)})
    frame.unique(maintain_order=True).write_parquet(tmp_path / "ml1m_pairs.parquet")
    options = FrontierOptions(data="ml1m", folder=tmp_path, policies=("psse", "order"), budgets=(0.5,), seeds=1)
    config = frontier_data.training_of(options, tmp_path, batch_size=64, epochs=2, threads=1).resolved()
    measured = frontier.Frontier(config, open_data(config), options, 1.0, (1.0,))
    measured.tune()
    measured.measure()
    assert measured.left_out == {}
    assert [point["policy"] for point in measured.points] == ["none", "order", "random", "psse"]
    for point in measured.points:
        assert point["auc"] is None and 0.0 < point["ndcg"] < 1.0 and 0.0 < point["coverage"] <= 1.0
        assert set(point["recall_by_popularity"]) == {"head", "torso", "tail", "new"}
    record = frontier._record(measured, quick=True)
    assert "NDCG of full training" in record.quality
    assert all("ndcg" in trial for trials in record.conditions["tuning"].values() for trial in trials)
    assert "of each user's pairs" in record.conditions["split"]


def test_wrong_data_and_options_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data"):
        run("frontier", BenchOptions(frontier=FrontierOptions(data="nothing")))
    with pytest.raises(DataError, match="--folder"):
        run("frontier", BenchOptions(frontier=FrontierOptions(data="globo", folder=tmp_path)))
    with pytest.raises(ConfigError, match="settings of its own"):
        run("frontier", BenchOptions(frontier=FrontierOptions(data="movietweetings", config=tmp_path / "a.yaml")))


def test_synthetic_sets_have_their_base_rate(tmp_path: Path) -> None:
    options = FrontierOptions(data="synthetic-2", samples=20_000)
    config = frontier_data.training_of(options, tmp_path)
    store = Store.open(config.data)
    assert float(store.labels.float().mean()) == pytest.approx(0.02, abs=0.005)
    assert config.max_samples == store.num_samples == 20_000


def test_a_model_takes_the_place_of_the_data_sets_own(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(MODEL)
    for name, kind in (("dlrm-small", "dlrm"), ("dlrm-kaggle", "dlrm"), ("dcnv2", "dcnv2"), ("deepfm", "deepfm")):
        options = FrontierOptions(data=str(store.path), config=file, model=name)
        model = frontier_data.training_of(options, tmp_path).model
        assert (model.name, model.embedding_dim) == (kind, 4)
    with pytest.raises(ConfigError, match="dlrm-kaggle, dcnv2, deepfm"):
        frontier_data.training_of(FrontierOptions(data=str(store.path), config=file, model="bst"), tmp_path)
    (tmp_path / "ml1m_pairs.parquet").touch()
    with pytest.raises(ConfigError, match="ml1m is pairs"):
        frontier_data.training_of(FrontierOptions(data="ml1m", folder=tmp_path, model="deepfm"), tmp_path)
