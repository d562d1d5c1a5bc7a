"""What would not fit is refused in words."""

from __future__ import annotations

import resource

import pytest
from tests.fuzz.fuzzing import memory_limited
from tests.malformed.corpus import FIXTURES

from slipstream import memory_left as module
from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.evaluation import popularity_profile
from slipstream.memory_left import check_memory_left, memory_left


def test_the_limit_of_the_process_counts() -> None:
    assert (memory_left() or 0) > 1 << 20
    with memory_limited(1 << 17):
        assert 0 < (memory_left() or 0) <= 1 << 27
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(("left", "refused"), [(10**9, True), (10**12, False), (None, False)])
def test_more_than_there_is_is_refused(left: int | None, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_left", lambda: left)
    if not refused:
        check_memory_left(2 * 10**9, "it", remedy="none")
        return
    with pytest.raises(ConfigError, match=r"it needs 2\.0 GB of memory, 1\.0 GB are left; none"):
        check_memory_left(2 * 10**9, "it", remedy="none")


def test_a_profile_of_more_rows_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_left", lambda: 100)
    with pytest.raises(ConfigError, match=r"counting the accesses of .* GB of memory"):
        popularity_profile(Store.open(FIXTURES / "store_v1"))
