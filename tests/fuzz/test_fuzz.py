"""A short slice of the fuzzing, the same examples each time; ``make fuzz MINUTES=30`` goes on for longer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import NAMES, check, inputs


@pytest.mark.parametrize("name", NAMES)
def test_damaged_input_is_read_or_refused(name: str) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(name, data.draw(inputs(name)), Path(folder))

    examples()
