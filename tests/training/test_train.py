import io
import json
import warnings

import numpy as np
import pytest
import torch
from numba.core import event
from rich.console import Console

from slipstream.errors import ConfigError, DataError, NotPrepared
from slipstream.evaluation import auc
from slipstream.kernels.parallel import SlowPathWarning
from slipstream.staleness.compiled import tally
from slipstream.training import (
    CompilingKernels,
    EpochDone,
    HeldOutScored,
    Progress,
    RunDone,
    RunStarted,
    StepDone,
    TrainConfig,
    Trainer,
    evaluate,
    load_config,
    loop,
    predict,
    predicting,
    run,
    train,
)
from slipstream.training.run import open_data
from slipstream.training.warm_up import warm_up

SMALL = {
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
    "optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.1},
    "batch_size": 64,
    "log_every": 10,
    "threads": 1,
}


def config(**settings) -> TrainConfig:
    return TrainConfig.model_validate({"data": "unused", **SMALL, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "prequential", "chunk_size": 500, "score_from": 2000},
        {"engine": "torch"},
        {"engine": "torch", "optimizer": {"name": "adam", "lr": 0.01}},
        {"bf16": True},
        {"policy": {"name": "random", "budget": 0.7}, "epochs": 2, "shuffle": True},
        {"policy": {"name": "psse", "budget": 0.8, "warmup_steps": 10, "every": 10}},
        {"optimizer": {"name": "rowwise_adagrad", "lr": 0.01, "dense_name": "adam", "clip": 5.0}},
        {"model": {"name": "mf", "embedding_dim": 8}, "optimizer": {"name": "adagrad", "lr": 0.3}},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_training_learns(make_store, settings):
    result = train(config(**settings), store=make_store())
    assert result.auc > 0.62
    assert 0.5 < result.calibration < 2
    assert result.seconds > 0
    assert sum(scores.samples for scores in result.by_popularity.values()) == result.samples_scored


def test_skipping_is_reported(make_store):
    store = make_store()
    half = train(config(policy={"name": "random", "budget": 0.5}), store=store)
    assert half.policy == "random"
    assert half.share_of_inputs_trained == pytest.approx(0.5, abs=0.03)
    assert half.samples == 5400
    assert half.steps == pytest.approx(5400 / 64 / 2, abs=4)
    rows = train(config(policy={"name": "random", "level": "rows", "budget": 0.5}), store=store)
    assert rows.share_of_inputs_trained == 1
    assert rows.share_of_row_updates_skipped == pytest.approx(0.5, abs=0.1)


def test_the_run_folder_holds_everything_and_the_model_scores_the_same_again(make_store, tmp_path):
    store, out = make_store(), tmp_path / "run"
    result = train(config(out=out), store=store)
    assert json.loads((out / "result.json").read_text())["auc"] == result.auc
    assert load_config(out / "config.yaml").schedule.dense == "linear"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "start" and "step" in events and events.count("score") == 10
    assert lines[-1]["event"] == "epoch" or lines[-1]["samples"] == 5400
    again = evaluate(out, store.path, start=5400)
    assert again.scores.auc == pytest.approx(result.auc, abs=1e-9)
    assert again.scores.log_loss == pytest.approx(result.log_loss, rel=1e-6)
    probabilities = predict(out, store, start=5400)
    assert probabilities.dtype == np.float32
    assert auc(store.labels[5400:].numpy(), probabilities) == pytest.approx(result.auc, abs=1e-6)


def test_runs_repeat_and_seeds_differ(make_store):
    store = make_store(2000)
    first, again, other = (train(config(seed=seed), store=store) for seed in (1, 1, 2))
    assert (first.auc, first.log_loss) == (again.auc, again.log_loss)
    assert first.log_loss != other.log_loss


def test_training_leaves_the_callers_random_state_and_threads_alone(make_store):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(config(), store=make_store(500))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_rates_warm_up_and_only_the_dense_one_decays(make_store):
    events = []
    schedule = {"warmup_steps": 9}
    train(config(log_every=1, schedule=schedule), store=make_store(3000), listeners=[events.append])
    steps = [event for event in events if isinstance(event, StepDone)]
    assert steps[0].embedding_lr == pytest.approx(0.01)
    assert steps[20].embedding_lr == steps[-1].embedding_lr == pytest.approx(0.1)
    dense = [step.dense_lr for step in steps[10:]]
    assert dense == sorted(dense, reverse=True)
    assert dense[-1] < 0.1 * dense[0]


def test_events_come_in_order(make_store):
    events = []
    train(config(epochs=2), store=make_store(1000), listeners=[events.append])
    scored = [event for event in events if isinstance(event, HeldOutScored)]
    assert len(scored) == 10 and {event.scores.samples for event in scored} == {100}
    events = [event for event in events if not isinstance(event, StepDone | HeldOutScored | CompilingKernels)]
    assert [type(event) for event in events] == [RunStarted, EpochDone, EpochDone, RunDone]
    assert events[0].total_samples == 1800


class Spy(Trainer):
    """Writes down which samples are predicted and which are trained on, in order."""

    def __init__(self, *args):
        self.log = []
        super().__init__(*args)

    def predict(self, start, stop):
        self.log.append(("predict", set(range(start, stop))))
        return super().predict(start, stop)

    def _step(self, batch):
        self.log.append(("train", set(batch.index.tolist())))
        super()._step(batch)


@pytest.mark.parametrize("policy", ["none", {"name": "random", "budget": 0.5}])
@pytest.mark.parametrize("chunk", [64, 100, 333])
def test_prequential_predicts_every_sample_before_it_trains_on_it(make_store, policy, chunk):
    settings = config(mode="prequential", chunk_size=chunk, policy=policy, max_samples=900).resolved()
    trainer = Spy(settings, make_store(1000))
    labels, logits = trainer.run()
    assert len(labels) == len(logits) == 900
    predicted, trained = set(), []
    for kind, samples in trainer.log:
        if kind == "predict":
            assert not samples & predicted
            predicted |= samples
        else:
            assert samples <= predicted
            trained += samples
    assert predicted == set(range(900))
    assert len(trained) == len(set(trained)) == trainer.skipper.inputs_kept
    assert (len(trained) == 900) == (policy == "none")


def test_prequential_predictions_are_those_of_the_model_of_that_moment(make_store):
    store = make_store(600)
    settings = config(mode="prequential", chunk_size=200, threads=None).resolved()
    _, all_logits = Trainer(settings, store).run()
    _, first_logits = Trainer(settings.model_copy(update={"max_samples": 400}), store).run()
    np.testing.assert_array_equal(all_logits[:400], first_logits)


def test_a_trainer_tells_its_position_and_state(make_store):
    trainer = Trainer(config().resolved(), make_store(1000))
    trainer.run()
    state = trainer.state_dict()
    assert (state["samples"], state["steps"], state["epoch"]) == (900, 15, 1)
    assert state["skipper"]["inputs_seen"] == 900


def test_progress_is_silent_without_a_terminal_and_draws_on_one(make_store):
    outputs = []
    train(config(), store=make_store(1000))  # kernels are compiled
    for terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=80)
        train(config(), store=make_store(1000, name=f"s{terminal}"), listeners=[Progress(console)])
        outputs.append(text.getvalue())
    assert outputs[0] == ""
    assert "100 %" in outputs[1] or "samples/s" in outputs[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_that_kernels_are_compiled_is_said_once_where_they_are(make_store, monkeypatch, terminal):
    text, states = io.StringIO(), []
    progress = Progress(Console(file=text, force_terminal=terminal, width=80))

    def compiles(*arguments):
        # What Numba says while it compiles; tests/kernels/test_compiling.py has it compile.
        for _ in range(2):
            with event.trigger_event("numba:run_pass"):
                pass
        states.append(text.getvalue())

    monkeypatch.setattr(run, "warm_up", compiles)
    train(config(), store=make_store(1000), listeners=[progress])
    assert states[0].count("compiling kernels, once for this version: about a minute") == 1
    if not terminal:
        assert text.getvalue().count("\n") == 1


def test_errors_say_what_is_wrong(make_store, tmp_path):
    with pytest.raises(ConfigError, match="lower the learning rates"):
        train(config(optimizer={"name": "sgd", "lr": 1e9}), store=make_store(1000))
    events = []
    with pytest.raises(DataError, match="positives alone"):
        train(config(), store=make_store(300, name="positives", all_positive=True), listeners=[events.append])
    assert not any(isinstance(event, RunStarted) for event in events)  # before any training
    with pytest.raises(ConfigError, match="no one-hot feature 'genre'"):
        train(config(popularity_feature="genre"), store=make_store(300, name="c"))
    with pytest.raises(ConfigError, match="no samples to score"):
        train(config(mode="prequential", score_from=300), store=make_store(300, name="d"))
    with pytest.raises(DataError, match="no model"):
        predict(tmp_path, make_store(300, name="e"))
    with pytest.raises(NotPrepared):
        evaluate(tmp_path, tmp_path)


def test_a_failed_training_leaves_no_result(make_store, tmp_path):
    out = tmp_path / "run"
    store = make_store(1000)
    train(config(out=out), store=store)
    with pytest.raises(ConfigError):
        train(config(out=out, optimizer={"name": "sgd", "lr": 1e9}), store=store)
    assert not (out / "result.json").exists()
    with pytest.raises(ConfigError, match="is a file"):
        train(config(out=out / "metrics.jsonl"), store=store)


def test_data_of_other_shape_and_a_damaged_model_are_refused(make_store, tmp_path):
    out = tmp_path / "run"
    train(config(out=out), store=make_store(1000))
    other = make_store(500, name="other")
    other.num_dense = 2
    with pytest.raises(DataError, match="other features"):
        predict(out, other)
    (out / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        predict(out, make_store(500, name="more"))


def test_compiled_training_equals_eager(make_store):
    store = make_store(1000)
    torch._dynamo.reset()
    eager, compiled = (train(config(compile=flag, batch_size=60), store=store) for flag in (False, True))
    assert compiled.log_loss == pytest.approx(eager.log_loss, rel=1e-3)


def test_random_gates_follow_the_seed(make_store):
    store = make_store(1000)
    policy = {"name": "random", "level": "rows", "budget": 0.5}

    def skipped(seed: int) -> list[torch.Tensor]:
        trainer = Trainer(config(policy=policy, seed=seed, batch_size=128), store)
        with torch.no_grad():  # the same beginning for both: only the draws differ
            for number, parameter in enumerate(trainer.model.parameters()):
                parameter.normal_(generator=torch.Generator().manual_seed(number))
        before = {name: table.weight.detach().clone() for name, table in trainer.skipper.tables.items()}
        for batch in trainer.skipper.push(store.slice(0, 128)):
            trainer._step(batch)
        return [(table.weight.detach() == before[name]).all(1) for name, table in trainer.skipper.tables.items()]

    first, again, other = skipped(1), skipped(1), skipped(2)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("half_life", [None, 100.0])
def test_nothing_is_compiled_after_the_warm_up(make_store, half_life):
    settings = config(policy={"name": "psse", "half_life": half_life, "warmup_steps": 2, "every": 2}).resolved()
    store = make_store(600)
    warm_up(settings, store)
    before = list(tally.signatures)
    Trainer(settings, store).run()
    assert before and list(tally.signatures) == before


def test_a_bf16_run_is_scored_in_bf16(make_store, tmp_path):
    store, out = make_store(2000), tmp_path / "run"
    result = train(config(out=out, bf16=True), store=store)
    scores = evaluate(out, store, start=1800).scores
    assert (scores.auc, scores.log_loss) == pytest.approx((result.auc, result.log_loss), rel=1e-7)


@pytest.mark.parametrize(("policy", "most"), [("random", 108), ("importance", 108), ("guard", 16)])
def test_small_batches_are_decided_on_several_at_a_time(make_store, monkeypatch, policy, most):
    store = make_store()

    def trained(decided: int) -> tuple[list[int], list[int], list[int]]:
        monkeypatch.setattr(loop, "DECIDED", decided)
        trainer = Trainer(config(policy=policy, batch_size=16, epochs=2).resolved(), store)
        policy_of, pieces, kept, sizes = trainer.skipper.policy, [], [], []
        decide, step = policy_of.keep_probability, trainer._step
        policy_of.keep_probability = lambda batch: (pieces.append(len(batch)), decide(batch))[1]
        trainer._step = lambda batch: (kept.extend(batch.index.tolist()), sizes.append(len(batch)), step(batch))[2]
        trainer.run()
        assert sum(pieces) == 2 * trainer.epoch_samples
        assert set(sizes[: len(sizes) // 2 - 1]) == {16}
        return pieces, kept, sizes

    pieces, kept, _ = trained(2048)
    assert max(pieces) == most // 16 * 16
    if policy == "random":
        assert trained(1)[1] == kept, "what is kept hangs on the sample's number alone"


def test_bfloat16_where_the_processor_has_no_products_of_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    say = predicting._say_slow_bf16
    for found, times in (("AVX2", 1), ("AVX-512 bf16", 0), (None, 0)):
        monkeypatch.setattr(predicting, "instructions", lambda found=found: found)
        say.cache_clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for bf16, device in ((False, "cpu"), (True, "cuda"), (True, "cpu"), (True, "cpu")):
                predicting.autocast(bf16, device)
        assert [warning.category for warning in said if "bfloat16 n" in str(warning.message)] == [
            SlowPathWarning
        ] * times
    say.cache_clear()


@pytest.mark.parametrize("setting", [{"momentum": 0.9}, {"betas": (0.8, 0.99), "dense_name": "sgd"}])
def test_settings_of_another_optimizer_are_refused(make_store, setting):
    with pytest.raises(ConfigError, match=rf"optimizer\.{next(iter(setting))} does nothing with adagrad"):
        train(config(optimizer={"name": "adagrad", **setting}), store=make_store(300))


def test_settings_of_raw_files_say_that_they_do_nothing_with_prepared_data(make_store):
    store = make_store(300)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_data(config(data=store.path, prepare={"threads": 1}))
        assert not said
        open_data(config(data=store.path, prepare={"min_frequency": 5}))
    assert "is prepared already" in str(said[0].message)
