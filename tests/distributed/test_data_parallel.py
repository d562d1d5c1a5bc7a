"""Two gloo processes train as one does on the joint batches, and send rows, not tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from tests.distributed import workers

from slipstream import distributed
from slipstream.errors import ConfigError
from slipstream.policies import PSSE

WORLD = 2
CASES = [
    ("SGD", "none", False),
    ("Adam", "none", False),
    ("Adagrad", "importance", False),
    ("RowwiseAdagrad", "random", False),
    ("Adam", "rows", False),
    ("SGD", "none", True),
    ("Adam", "psse", False),
    ("SGD", "guard", False),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(workers.train_and_save, (WORLD, str(folder), CASES), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_two_ranks_are_one_process_on_the_joint_batch(outcome: Path, case: tuple[str, str, bool]) -> None:
    alone = workers.trained(*case, world=1)
    for rank in range(WORLD):
        found = torch.load(outcome / f"{'-'.join(map(str, case))}-{rank}.pt")
        assert torch.equal(found["order"], alone["order"]), "the ranks decide as one process does"
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    if case[1] in ("random", "importance"):
        assert len(alone["order"]) < 0.7 * workers.SAMPLES


def test_a_rank_sends_each_touched_row_once(outcome: Path) -> None:
    for rank in range(WORLD):
        sent = torch.load(outcome / f"exchanged-{rank}.pt")
        assert sent["rows"] == 10 + rank
        assert sent["bytes"] == 24 + 11 * (8 + 8 * 4), "padded to the larger of the two, and three numbers a table"


def test_a_rank_without_lookups_gets_the_others_rows(outcome: Path) -> None:
    expected = torch.zeros(9, 2)
    expected[3] = 2 / WORLD
    for rank in range(WORLD):
        torch.testing.assert_close(torch.load(outcome / f"lone-{rank}.pt"), expected)


def test_frozen_rows_are_not_sent(outcome: Path) -> None:
    for rank in range(WORLD):
        assert torch.load(outcome / f"open-{rank}.pt")["rows"] == 1
        assert torch.load(outcome / f"all-{rank}.pt")["rows"] == 10


def test_samples_lost_or_trained_on_twice_are_found(outcome: Path) -> None:
    for rank in range(WORLD):
        twice, also, others, lost = torch.load(outcome / f"ledger-{rank}.pt")
        assert "of 4 samples some were trained on twice and others never" in twice
        assert "some were trained on twice" in also and "some were trained on twice" in others
        assert "5 were to be handed out, 4 were" in lost


def test_tied_weights_do_not_drift_apart(outcome: Path) -> None:
    assert [torch.load(outcome / f"tied-{rank}.pt") for rank in range(WORLD)] == [[[], []]] * WORLD


def test_a_process_group_of_its_own_is_refused(outcome: Path) -> None:
    assert torch.load(outcome / "group-0.pt").startswith("process_group is not supported: tables are exchanged among")


def test_without_a_process_group_the_remedy_is_named() -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        distributed.exchange(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="init_process_group"):
        distributed.over_ranks(PSSE())
