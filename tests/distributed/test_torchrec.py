"""TorchRec's sharded tables: checkpoints that other numbers of ranks go on from, and row gates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.embedding.table import Table
from slipstream.policies import PSSE
from slipstream.policies.base import Progress

pytest.importorskip("torchrec", reason="make env-bench installs TorchRec and FBGEMM")
pytest.importorskip("fbgemm_gpu", reason="make env-bench installs TorchRec and FBGEMM")


def alone() -> PSSE:
    """The policy after the same eight batches in one process."""
    random = torch.Generator().manual_seed(3)
    rows = {"user": 50, "item": 90}
    ids = {name: (torch.rand(640, 2, generator=random) ** 3 * count).long() for name, count in rows.items()}
    tables = {name: Table(torch.nn.Parameter(torch.empty(count, 8)), name) for name, count in rows.items()}
    policy = PSSE(0.8, warmup_steps=2, every=2)
    policy.attach(tables, seed=0)
    for step in range(8):
        policy.update_gates(Progress(step, 40 * step, None))
        for name, table in tables.items():
            policy.observe_lookups(table, ids[name][40 * step : 40 * (step + 1)])
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, str(Path(__file__).with_name("sharded.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def of(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=False)


def same(one: dict[str, Any], other: dict[str, Any], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def test_the_same_ranks_go_on_to_the_same_bits(folder: Path) -> None:
    first, again = of(folder, "begun"), of(folder, "again")
    same(first["saved"] | {"order": 0}, again["saved"] | {"order": 0})
    order = torch.cat([first["saved"]["order"], again["end"]["order"]])
    same(first["end"], again["end"] | {"order": order})


@pytest.mark.parametrize("name", ["more", "fewer"])
def test_other_numbers_of_ranks_read_the_same_and_decide_the_same(folder: Path, name: str) -> None:
    first, other = of(folder, "begun"), of(folder, name)
    same(first["saved"] | {"order": 0}, other["saved"] | {"order": 0})
    order = torch.cat([first["saved"]["order"], other["end"]["order"]])
    same(first["end"], other["end"] | {"order": order}, atol=1e-5)
    assert len(first["end"]["order"]) < 0.7 * 640
    assert torch.equal(of(folder, name, 1)["end"]["order"], other["end"]["order"])


def test_lookups_of_frozen_rows_have_a_forward_pass_alone(folder: Path) -> None:
    found = of(folder, "gated")
    torch.testing.assert_close(*found["logits"], rtol=0, atol=1e-6)
    for name in ("module.tables.embedding_bags.user.weight", "module.tables.embedding_bags.item.weight"):
        key = next(key for key in found["free"] if key.endswith(name.removeprefix("module.")))
        before, free, shut = (found[part][key] for part in ("before", "free", "shut"))
        frozen = torch.arange(len(before)) % 3 == 0
        assert torch.equal(shut[frozen], before[frozen]) and not torch.equal(free[frozen], before[frozen])
        torch.testing.assert_close(shut[~frozen], free[~frozen], rtol=0, atol=1e-6)


def test_row_policies_gate_the_shards(folder: Path) -> None:
    found = of(folder, "gated")
    assert found["psse"] == pytest.approx(alone().report()), "the cut falls among the rows of both ranks"
    gates = [gate for rank in (0, 1) for gate in of(folder, "gated", rank)["gates"].values()]
    opened = sum(int((gate == 255).sum()) for gate in gates)
    rows = sum(len(gate) for gate in gates)
    assert opened / rows == pytest.approx(found["psse"]["share_of_rows_updated"])
    skipped, lookups = found["half"]
    assert 0.4 < skipped / lookups < 0.6


def test_what_cannot_be_gated_or_read_is_refused(folder: Path) -> None:
    found = of(folder, "gated")
    assert "is pooled by mean" in found["refused"] and "PoolingType.SUM" in found["refused"]
    assert "holds no checkpoint" in found["missing"]


def test_a_checkpoint_that_one_rank_cannot_read_ends_all_ranks(folder: Path) -> None:
    said = [of(folder, "gated", rank)["missing on one"] for rank in (0, 1)]
    assert "another rank cannot read it; have all ranks see the folder" in said[0]
    assert "nothing: holds no checkpoint" in said[1]


def test_a_damaged_index_is_an_error_in_one_line(folder: Path) -> None:
    said = of(folder, "gated")["damaged"]
    assert all("its index (.metadata) is damaged (" in text and "\n" not in text for text in said), said


def test_what_a_killed_save_has_left_is_removed_by_the_next(folder: Path) -> None:
    assert of(folder, "gated")["saves"] == [".kept.partial-mine", ".other.partial-1a2b", "kept"]


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(folder: Path) -> None:
    for rank in (0, 1):
        first, second = of(folder, "gated", rank)["unwritten"]
        assert "taken: cannot be written (" in first and "below: cannot be written (" in second
    assert not list(folder.glob(".*.partial-*"))


def test_the_state_of_shards_is_not_kept_as_if_it_were_the_same(folder: Path) -> None:
    for rank in (0, 1):
        assert "other tensors on some ranks" in of(folder, "gated", rank)["own"]
    assert not (folder / "shards").exists()
