"""On a GPU: what the interpreter cannot show. ``make test-gpu``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.training.conftest import make_store as make_store
from torch import nn

from slipstream import optim
from slipstream.data.store import Store
from slipstream.embedding import CachedEmbeddingCollection, Embedding, EmbeddingCollection, TableConfig
from slipstream.errors import IndexOutOfRange
from slipstream.kernels import registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateSettings
from slipstream.training import TrainConfig, train

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
CONFIGS = [TableConfig("user", 5_000, 16), TableConfig("item", 300, 16), TableConfig("day", 3, 16)]


def ids(step: int, size: int = 512) -> torch.Tensor:
    draw = torch.Generator().manual_seed(step)
    columns = [(config.num_embeddings * torch.rand(size, generator=draw) ** 3).int() for config in CONFIGS]
    return torch.stack(columns, 1)


def test_the_back_end_is_picked_by_the_device() -> None:
    assert registry.backend_name(torch.zeros(1, device=DEVICE)) == "cuda"
    for dtype in (torch.bfloat16, torch.float16):
        assert registry.backend_name(torch.zeros(1, device=DEVICE, dtype=dtype)) == "cuda"


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.AdamW])
def test_a_training_is_that_of_the_cpu_and_the_same_again(kind: Any) -> None:
    def run(device: torch.device) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(EmbeddingCollection(CONFIGS), nn.Flatten(), nn.Linear(48, 1)).to(device)
        optimizer = kind(model.parameters(), lr=0.05)
        for step in range(30):
            optimizer.zero_grad()
            model(ids(step).to(device)).square().mean().backward()
            optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    cpu, gpu = run(torch.device("cpu")), run(DEVICE)
    torch.use_deterministic_algorithms(True)  # refuses what has no deterministic way
    try:
        again = run(DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, true, same in zip(gpu, cpu, again, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-4)
        assert torch.equal(mine, same)


def test_a_step_never_waits() -> None:
    model = nn.Sequential(EmbeddingCollection(CONFIGS), nn.Flatten(), nn.Linear(48, 1)).to(DEVICE)
    for table in model[0].table_of.values():
        table.open_gate()[::2] = 100
        table.measure()
    optimizer = optim.Adam(model.parameters(), lr=0.05, on_skip="catch_up", foreach=True)
    batches = [ids(step).to(DEVICE) for step in range(12)]
    for step, batch in enumerate(batches):
        if step == 2:  # kernels are compiled, state is made
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        finally:
            if step == len(batches) - 1:
                torch.cuda.set_sync_debug_mode("default")
    assert model[0].table_of["user"].lookups == 12 * 512


def test_a_graph_replays_lookup_and_update_with_new_settings() -> None:
    from slipstream.kernels import cuda

    weight = torch.randn(1_000, 16)
    gate = torch.full((1_000,), 128, dtype=torch.uint8)

    def table() -> TableState:
        zeros = torch.zeros(1_000, 16, device=DEVICE)
        return TableState(weight.to(DEVICE), zeros, zeros.clone(), gate.to(DEVICE))

    def settings(step: int) -> UpdateSettings:
        return UpdateSettings(Rule.ADAM, step, 0.1 / step, 1e-8, 0.9, 0.999)

    captured, eager = TableSet([table()]), TableSet([table()])
    rows, grad = torch.zeros(512, 1, dtype=torch.int64, device=DEVICE), torch.zeros(512, 1, 16, device=DEVICE)

    def work(tables: TableSet, step: int) -> torch.Tensor:
        found = Lookups(rows, None, 1)
        out = cuda.pool([tables[0].weight], found)
        cuda.row_update(tables, [RowGradients(found, grad, (0,))], settings(step))
        return out

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work(captured, 1)
    torch.cuda.current_stream().wait_stream(stream)
    for tensor in (captured[0].first, captured[0].second):
        assert tensor is not None
        tensor.zero_()
    captured[0].weight.copy_(weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work(captured, 1)
    for step in range(1, 8):
        draw = torch.Generator().manual_seed(step)
        rows.copy_(torch.randint(0, 1_000, (512, 1), generator=draw))
        grad.copy_(torch.randn(512, 1, 16, generator=draw))
        cuda.write_settings(captured, settings(step))
        graph.replay()
        assert torch.equal(out, work(eager, step))
        assert torch.equal(captured[0].weight, eager[0].weight)


@pytest.mark.parametrize("kind", [optim.SGD, optim.RowwiseAdagrad, optim.Adam])
def test_a_graph_replays_a_whole_step_of_an_optimizer(kind: Any) -> None:
    def made() -> tuple[EmbeddingCollection, Any, torch.Tensor]:
        torch.manual_seed(0)
        tables = EmbeddingCollection(CONFIGS).to(DEVICE)
        return tables, kind(tables.parameters(), lr=0.05), ids(0).to(DEVICE)

    def step(tables: EmbeddingCollection, optimizer: Any, rows: torch.Tensor) -> None:
        tables(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    captured, eager = made(), made()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*captured)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*captured)
    for _ in range(3):
        step(*eager)
    for number in range(1, 6):
        for _, optimizer, rows in (captured, eager):
            rows.copy_(ids(number))
            optimizer.param_groups[0]["lr"] = 0.05 / number
        captured[1].before_replay()
        graph.replay()
        step(*eager)
        for mine, true in zip(captured[0].parameters(), eager[0].parameters(), strict=True):
            assert torch.equal(mine, true)
    for tables in (captured[0], eager[0]):
        assert tables.table_of["user"].lookups == 8 * 512


def test_errors_come_late_without_a_wait_and_on_request() -> None:
    before = registry.set_check("lazy")
    try:
        table = Embedding(10, 16, device=DEVICE)
        optimizer = optim.SGD(table.parameters(), lr=0.1)
        table(torch.tensor([3, 10], device=DEVICE)).sum().backward()
        optimizer.step()
        with pytest.raises(IndexOutOfRange, match="lookup 1 has id 10"):
            registry.check_errors()
    finally:
        registry.set_check(before)


@pytest.mark.parametrize("policy", ["none", "random", "psse", "saturation", "importance"])
def test_trainings_with_policies(make_store: Callable[..., Store], policy: str) -> None:
    settings: dict[str, Any] = {"name": policy}
    if policy in ("psse", "saturation"):
        settings |= {"warmup_steps": 10, "every": 10}
    base = {"data": "x", "model": "dlrm", "batch_size": 64, "policy": settings, "optimizer": {"name": "adam"}}
    store = make_store()
    cpu, gpu = (train(TrainConfig.model_validate({**base, "device": d}), store=store) for d in ("cpu", "cuda"))
    assert gpu.auc == pytest.approx(cpu.auc, abs=0.01)
    assert gpu.share_of_inputs_trained == pytest.approx(cpu.share_of_inputs_trained, abs=1e-6)
    assert gpu.share_of_row_updates_skipped == pytest.approx(cpu.share_of_row_updates_skipped, abs=0.02)


def test_bf16_and_compile(make_store: Callable[..., Store]) -> None:
    base = {"data": "x", "model": "dlrm", "batch_size": 64, "optimizer": {"name": "adam"}, "device": "cuda"}
    store = make_store()
    plain, fast = (
        train(TrainConfig.model_validate({**base, "bf16": fast, "compile": fast}), store=store)
        for fast in (False, True)
    )
    assert fast.auc == pytest.approx(plain.auc, abs=0.02)


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_tables_in_host_memory_train_as_on_the_card(ahead: bool) -> None:
    def run(cached: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        if cached:
            module: Any = CachedEmbeddingCollection(CONFIGS, budget_bytes=900 * 16 * 12, device=DEVICE)
        else:
            module = EmbeddingCollection(CONFIGS).to(DEVICE)
        optimizer = optim.Adam(module.parameters(), lr=0.05)
        if cached:
            module.attach(optimizer)
        for table in module.table_of.values():
            table.open_gate()[::2] = 100
        for step in range(30):
            if cached and ahead:
                module.look_ahead(ids(step + 1))
            optimizer.zero_grad()
            module(ids(step) if cached else ids(step).to(DEVICE)).square().sum().backward()
            optimizer.step()
        return {name: value.cpu() for name, value in module.state_dict().items()}

    on_card, in_host = run(False), run(True)
    for name, value in on_card.items():
        torch.testing.assert_close(in_host[name], value, rtol=1e-5, atol=1e-6)


def test_software_hotline(make_store: Callable[..., Store]) -> None:
    store = make_store()
    base = {"data": "x", "model": "dlrm", "batch_size": 64, "optimizer": {"name": "adagrad"}, "device": "cuda"}
    cached = {**base, "row_cache_bytes": 90 * 4 * 32, "hotline": True}
    plain, hotline = (train(TrainConfig.model_validate(settings), store=store) for settings in (base, cached))
    assert hotline.log_loss == pytest.approx(plain.log_loss, abs=1e-3)
