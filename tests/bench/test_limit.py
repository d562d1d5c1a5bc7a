from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slipstream.bench import BenchOptions, bounds, limit, probe, run, workload
from slipstream.data.schema import FeatureInfo
from slipstream.kernels.types import Rule
from slipstream.models import DLRM, DLRMConfig
from slipstream.report.record import Record

SHAPE = bounds.Shape(2048, 13, (512, 256, 64), (512, 256), 26, 16)


@pytest.mark.parametrize(
    ("optimizer", "dim", "lines_of_a_row"),
    [
        ("sgd", 16, 1),
        ("rowwise_adagrad", 16, 2),  # the sum's 4 bytes move a line
        ("adagrad", 16, 2),
        ("adam", 16, 3),
        ("sgd", 20, 2),  # 80 bytes are two lines
        ("rowwise_adagrad", 128, 9),
        ("adam", 128, 24),
    ],
)
def test_an_update_moves_gradients_once_and_rows_twice(optimizer: str, dim: int, lines_of_a_row: int) -> None:
    moved = bounds.update_bytes(optimizer, dim, lookups=1000, unique=300)
    assert moved.streamed == 1000 * (4 + 4 * dim)
    assert moved.scattered == 300 * 2 * 64 * lines_of_a_row
    assert moved.seconds(1e9, 2e9) == pytest.approx(moved.streamed / 1e9 + moved.scattered / 2e9)


def test_every_optimizer_with_a_bound_is_timed() -> None:
    assert tuple(limit._RULES) == bounds.OPTIMIZERS


def test_states_are_those_of_the_optimizers() -> None:
    assert bounds.state_bytes("sgd", 16) == ()
    assert bounds.state_bytes("rowwise_adagrad", 16) == (4,)
    assert bounds.state_bytes("adam", 16) == (64, 64)


def test_the_shape_is_that_of_the_model() -> None:
    model = DLRM([FeatureInfo(name=f"c{i}", num_rows=2) for i in range(26)], 13, DLRMConfig())
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert SHAPE.layers == [(layer.in_features, layer.out_features) for layer in linear]
    tables = {id(parameter) for parameter in model.embeddings.parameters()}
    assert SHAPE.dense_parameters == sum(p.numel() for p in model.parameters() if id(p) not in tables)
    assert SHAPE.vectors == 27


def test_products_count_each_layer_three_times_but_the_first() -> None:
    found = bounds.products(SHAPE)
    layers = sum(before * after for before, after in SHAPE.layers)
    expected = 2 * 2048 * (3 * layers - 13 * 512 + 27 * 27 * 16 * 2)
    assert sum(product.operations for product in found) == expected
    assert len(found) == 3 * 7 - 1 + 2


def test_rates_are_positive_and_the_probe_changes_nothing() -> None:
    before = torch.get_num_threads()
    assert probe.copy_rate(1 << 20, 1, trials=2) > 0.0
    table = torch.randn(3000, 20)
    copy = table.clone()
    assert probe.random_row_rate(table, 2, count=500, trials=2) > 0.0
    assert probe.gather_rate(table, 1, count=500, trials=2) > 0.0
    assert torch.equal(table, copy)
    assert torch.get_num_threads() == before
    for batch in (0, 3):
        assert probe.product_seconds(4, 5, 6, torch.float32, batch=batch, trials=1) > 0.0


def test_the_record_has_a_ratio_for_each_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cardinalities = workload.cardinalities
    monkeypatch.setattr(workload, "cardinalities", lambda total=0: cardinalities(100_000))
    monkeypatch.setattr(limit, "DIMS", (16,))
    monkeypatch.setattr(limit, "GRADIENT_BYTES", 1 << 20)
    monkeypatch.setattr(limit, "_RULES", {"rowwise_adagrad": Rule.ROWWISE_ADAGRAD})
    monkeypatch.setattr(torch, "compile", lambda model: model)
    record = run("limit", BenchOptions(quick=True))
    kinds = ("", "_after_backward", "_one_thread", "_one_thread_after_backward")
    kinds = kinds[: 2 if torch.get_num_threads() == 1 else 4]
    updates = {f"update_rowwise_adagrad_dim16{kind}/bound" for kind in kinds}
    assert record.ratios.keys() >= {"step_float32/bound", "step_bf16_compile/bound"}
    assert {key for key in record.ratios if key.startswith("update")} == updates
    for row in record.rows:
        measured = record.ratios.get(f"step_{row['system'].removeprefix('step ')}/bound")
        if measured is not None:
            assert measured == pytest.approx(row["p50"] / row["bound"], abs=1e-3)
    assert all(value > 0.0 for value in record.quality.values())
    assert Record.load(record.save(tmp_path / "limit.json")) == record


def test_the_timed_update_is_the_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's call that is timed does what a step of the optimizer does."""
    from slipstream import optim
    from slipstream.bench.systems import Slipstream

    rows = (50, 70)
    batches = workload.zipf_batches(rows, batches=2, batch_size=64)
    grads = [torch.randn(64, 2, 16)]
    ours = Slipstream(rows, 16, batches, grads, optimizer=lambda p: optim.RowwiseAdagrad(p, lr=1e-3, eps=1e-8))
    weights = [weight.clone() for weight in ours.weights()]
    call = limit._update("rowwise_adagrad", limit._RULES["rowwise_adagrad"], weights, batches, grads)
    for number in range(2):
        call(number)
        ours.step(number)
    assert all(torch.equal(a, b) for a, b in zip(weights, ours.weights(), strict=True))
