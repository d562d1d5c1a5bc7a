"""The cut by agreement, by hand and against a sort; gates set from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import ConfigError
from slipstream.kernels.signal import SAMPLE
from slipstream.staleness.saturation import ripe_count, saturation_cut, set_gates


def signal(codes: list[int], counts: list[int]) -> torch.Tensor:
    return (torch.tensor(codes, dtype=torch.int32) * 256 + torch.tensor(counts, dtype=torch.int32)).to(torch.uint16)


def test_lowest_codes_are_shut_and_the_last_in_part() -> None:
    signals = [signal([10, 255, 3], [9, 9, 9]), signal([10, 7], [9, 2])]
    scores = [torch.tensor([2.0, 5.0, 1.0]), torch.tensor([2.0, 10.0])]
    cut = saturation_cut(signals, scores, 3 / 20, ripe=9, probe=0)  # 1 of code 3, then 2 of the 4 of code 10
    assert cut.gates[3] == 0 and cut.gates[10] == 128 and cut.gates[255] == 255 and cut.gates[7] == 255
    assert cut.gated_share == pytest.approx(5 / 20) and cut.skipped_share == pytest.approx(3 / 20)
    gate = torch.tensor([255, 0, 255], dtype=torch.uint8)
    assert set_gates(gate, signals[0], cut, 9) == (2, 1)
    assert gate.tolist() == [128, 255, 0]
    gate = torch.tensor([255, 255], dtype=torch.uint8)
    assert set_gates(gate, signals[1], cut, 9) == (1, 0)  # the second row is not ripe
    assert gate.tolist() == [128, 255]


def test_updates_of_probes_are_made_up_for() -> None:
    cut = saturation_cut([signal([1, 2], [5, 5])], [torch.ones(2)], 0.5, ripe=1, probe=64)
    assert cut.gates[1] == 64 and cut.gates[2] == 192  # 3/4 and 1/4 skipped: one of the two
    assert cut.skipped_share == pytest.approx(0.5, abs=0.002)


def test_nothing_known_or_nothing_to_skip_leaves_all_open() -> None:
    for scores, skip in ((torch.zeros(2), 0.5), (torch.ones(2), 0.0)):
        cut = saturation_cut([signal([1, 2], [5, 5])], [scores], skip, ripe=1, probe=0)
        assert (cut.gates == 255).all() and cut.skipped_share == 0


@given(
    rows=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 1000)), min_size=1, max_size=60),
    skip=st.floats(0, 0.99),
    ripe=st.integers(1, 255),
    probe=st.integers(0, 254),
)
def test_the_share_is_met_as_far_as_ripe_rows_go(
    rows: list[tuple[int, int, int]], skip: float, ripe: int, probe: int
) -> None:
    codes, counts, mass = (np.array(part) for part in zip(*rows, strict=True))
    half = len(rows) // 2
    signals = signal(codes.tolist(), counts.tolist())
    scores = torch.tensor(mass, dtype=torch.float32)
    cut = saturation_cut([signals[:half], signals[half:]], [scores[:half], scores[half:]], skip, ripe=ripe, probe=probe)
    gate = torch.full((len(rows),), 255, dtype=torch.uint8)
    shut, thawed = set_gates(gate, signals, cut, ripe)
    found = gate.numpy()
    assert thawed == 0 and shut == (found != 255).sum()
    assert (found[counts < ripe] == 255).all() and (found >= probe).all()
    total = mass.sum()
    if total == 0:
        assert shut == 0
        return
    p = np.where(found == 255, 1.0, found / 256)
    skipped = float(((1 - p) * mass).sum() / total)
    possible = (1 - probe / 256) * mass[counts >= ripe].sum() / total
    assert skipped == pytest.approx(cut.skipped_share, abs=1e-6)
    assert skipped == pytest.approx(min(skip, possible), abs=0.006)
    ripe_rows = [(c, g) for c, n, m, g in zip(codes, counts, mass, found, strict=True) if n >= ripe and m > 0]
    assert [g for _, g in sorted(ripe_rows)] == sorted(g for _, g in ripe_rows)  # a lower code is never more open


def test_ripe_count() -> None:
    assert [ripe_count(n) for n in (1, SAMPLE, SAMPLE + 1, 32)] == [1, 1, 2, 7]
    for wrong in (0, 10**6):
        with pytest.raises(ConfigError, match=r"min_updates must be in \[1, 40160\]"):
            ripe_count(wrong)
