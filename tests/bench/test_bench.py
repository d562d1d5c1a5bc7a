from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slipstream.bench import BENCHES, MODULES, BenchOptions, gates, kernels, rounds, run, step, workload
from slipstream.bench.answer import next_line
from slipstream.bench.reference_dlrm import ReferenceDLRM
from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.models import DLRM, DLRMConfig
from slipstream.report.record import Record

QUICK = BenchOptions(quick=True)


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    cardinalities = workload.cardinalities
    monkeypatch.setattr(workload, "cardinalities", lambda total=0: cardinalities(100_000))


def test_unknown_names_and_thread_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of kernels"):
        run("speed", QUICK)
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        run("kernels", BenchOptions(threads=0))


def test_the_cache_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernels, "run", lambda options: Record(name="kernels", conditions={"there": options.cache.is_dir()})
    )
    assert run("kernels", BenchOptions(cache=tmp_path / "new" / "cache")).conditions["there"]


def test_every_name_is_a_module() -> None:
    folder = Path(sys.modules["slipstream.bench"].__file__ or "").parent
    assert {name for name in BENCHES if not (folder / f"{MODULES.get(name, name)}.py").exists()} == set()


def test_tables_add_up_and_small_ones_keep_their_size() -> None:
    rows = workload.cardinalities()
    assert sum(rows) == workload.TOTAL_ROWS
    assert len(rows) == 26
    assert rows[0] == 1460
    assert max(rows) == rows[2]


def test_ids_follow_the_seed_and_stay_in_their_tables() -> None:
    rows = (3, 1000)
    first = workload.zipf_batches(rows, batches=2, batch_size=512, seed=3)
    again = workload.zipf_batches(rows, batches=2, batch_size=512, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].dtype == torch.int32
    ids = torch.cat(first)
    assert bool((ids >= 0).all()) and bool((ids < torch.tensor(rows)).all())
    # P(rank 1) of 1,000 ranks under exponent 1.05 is 0.157.
    assert 0.11 < ids[:, 1].bincount().max().item() / len(ids) < 0.21


def test_ratios_are_medians_within_the_rounds() -> None:
    # A slow last round hits both: the ratio of the medians would be the same, that of the means not.
    assert rounds.ratio([1.0, 1.0, 10.0], [2.0, 3.0, 30.0]) == 3.0
    assert rounds.best({"a": [3.0, 3.0], "b": [2.0, 9.0, 2.0]}, ["a", "b"]) == "b"


def test_turns_count_steps_and_set_threads() -> None:
    seen: list[tuple[int, int]] = []
    before = torch.get_num_threads()
    seconds = rounds.compete(
        {"a": lambda n: seen.append((n, torch.get_num_threads())), "b": lambda n: None},
        rounds=2,
        steps_per_round=2,
        warm_up=1,
        threads={"a": 1},
    )
    assert seen == [(n, 1) for n in range(6)]
    assert [len(values) for values in seconds.values()] == [2, 2]
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("small_tables")
def test_kernels_agree_with_the_peers(tmp_path: Path) -> None:
    record = run("kernels", QUICK)
    assert {"torch_adagrad_dim16", "sparse_adam_dim16"} <= record.ratios.keys()
    differences = {key: value for key, value in record.quality.items() if key.endswith("largest_weight_difference")}
    # Weights move by about the learning rate a step.
    assert max(differences.values()) < kernels.LEARNING_RATE / 100, differences
    fbgemm = {key for key in record.ratios if key.startswith("fbgemm")}
    assert bool(fbgemm) != bool(record.conditions.get("missing_peers"))
    assert Record.load(record.save(tmp_path / "record.json")) == record
    assert {"p20", "p50", "p80", "threads", "dim"} <= record.rows[0].keys()


@pytest.mark.usefixtures("small_tables")
def test_a_missing_peer_is_named_and_its_ratio_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu.split_embedding_configs", None)
    monkeypatch.setattr(kernels, "DIMS", (16,))
    monkeypatch.setattr(kernels, "TORCH_DIMS", ())
    record = run("kernels", QUICK)
    assert record.ratios == {}
    assert "make env-bench" in record.conditions["missing_peers"][0]


@pytest.mark.usefixtures("small_tables")
def test_gates_skip_the_share_they_say() -> None:
    record = run("gates", QUICK)
    assert record.ratios.keys() == {"cold", "hot", "all_open", "thinned"}
    for kind in ("cold", "hot"):
        assert record.quality[f"share of accesses skipped, {kind} gated"] == pytest.approx(gates.GATED, abs=0.03)
    assert record.quality["share of accesses skipped, all open"] == 0.0


def test_the_reference_dlrm_is_our_dlrm() -> None:
    rows = (5, 7, 11)
    features = [FeatureInfo(name=f"c{i}", num_rows=count) for i, count in enumerate(rows)]
    ours = DLRM(features, 13, DLRMConfig())
    reference = ReferenceDLRM(rows)
    linear = [module for module in ours.modules() if isinstance(module, torch.nn.Linear)]
    reference.copy_from(linear, [value for key, value in ours.state_dict().items() if "tables." in key])
    ids = torch.stack([torch.randint(0, count, (4,)) for count in rows], dim=1)
    dense = torch.randn(4, 13)
    offsets = [torch.arange(4)] * 3
    torch.testing.assert_close(
        torch.sigmoid(ours(Inputs(dense, ids.int(), ()))), reference(dense, offsets, list(ids.T.contiguous()))
    )


def test_a_failing_worker_is_an_error() -> None:
    from slipstream.bench import shared

    arguments = ["no such measurement", 1, 1, 1]
    with pytest.raises(shared.WorkerFailed, match="failed"), shared._workers({}, arguments, copies=1):
        pass


def test_a_process_answers_ends_or_takes_too_long() -> None:
    script = "import time; print(input(), flush=True); time.sleep(60 * bool(input()))"
    command = [sys.executable, "-c", script]
    for then, status in (("\n", 0), ("wait\n", -signal.SIGKILL)):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write("said\n")
            process.stdin.flush()
            assert next_line(process, 30.0) == "said\n"
            process.stdin.write(then)
            process.stdin.flush()
            if status == 0:
                assert next_line(process, 30.0) == ""
            else:
                with pytest.raises(TimeoutError, match=r"took longer than 0\.2 s"):
                    next_line(process, 0.2)
        assert process.returncode == status


def test_a_worker_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.bench import shared

    monkeypatch.setattr(shared, "_LIMIT_SECONDS", 0.1)
    arguments = ["kernels", 1000, 1, 1]
    said = "shared_worker kernels 1000 1 1 took longer"
    with pytest.raises(shared.WorkerFailed, match=said), shared._workers({}, arguments, copies=1):
        pass


def test_a_worker_measures_as_often_as_it_is_asked() -> None:
    from slipstream.bench import shared

    with shared._workers({}, ["dlrm_reference", 100_000, 1, 1], copies=1) as workers:
        for _ in range(2):
            (figures,) = shared._measured(workers)
            assert figures["seconds"] > 0.0


@pytest.mark.parametrize("system", ["slipstream", "dlrm_reference", "torchrec"])
def test_the_trainings_that_share_cores_train(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.bench import shared_worker

    if system == "torchrec":
        pytest.importorskip("torchrec", reason="the peer is not installed: make env-bench")
        pytest.importorskip("fbgemm_gpu", reason="the peer is not installed: make env-bench")
    monkeypatch.setattr(workload, "BATCH_SIZE", 16)
    losses: list[float] = []
    step = getattr(shared_worker, f"_{system}")((40, 50), [torch.randint(40, (16, 2), dtype=torch.int32)])
    backward = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self, *args: (losses.append(float(self.detach())), backward(self, *args))
    )
    for _ in range(30):
        step(0)
    assert losses[-1] < losses[0]


def test_kept_records_are_records() -> None:
    kept = list((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
    for path in kept:
        record = Record.load(path)
        assert record.name
        assert record.machine.processor
        assert record.versions["torch"]
        assert not record.conditions.get("quick"), f"{path.name} was made by --quick"


@pytest.mark.parametrize(("found", "bf16"), [("AVX2", False), ("AVX-512 bf16", True), (None, True)])
@pytest.mark.usefixtures("small_tables")
def test_bf16_sits_out_where_the_processor_would_take_hours(
    found: str | None, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "BATCH_SIZE", 4)
    monkeypatch.setattr(step, "instructions", lambda: found)
    systems = step._systems(step._stream(QUICK), seed=0)
    assert (step.BF16 in systems) is bf16
    systems.pop("slipstream float32 compile")  # compiling it takes long
    systems.pop(step.BF16, None)
    losses = [float(system.step(0)) for system in systems.values()]
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)
