"""What killed preparations have left, and others that are at work on the same."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from slipstream.data import stage
from slipstream.data.stage import stage_folder
from slipstream.errors import OutputError


def left(out: Path, kind: str) -> Path:
    """A folder with a file in it, as a killed preparation leaves it."""
    folder = out.with_name(f".{out.name}.{kind}-0-abc")
    folder.mkdir()
    (folder / "ids.i32").write_bytes(b"1234")
    return folder


@pytest.mark.parametrize("name", ["data", "d[1]", "a**", "wh?t"])
def test_what_killed_ones_have_left_is_removed_by_its_very_name(tmp_path: Path, name: str) -> None:
    leftovers = [left(tmp_path / name, kind) for kind in ("stage", "partial")]
    other = left(tmp_path / "d1", "partial")
    with stage_folder(tmp_path / name) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, other])
        assert not any(leftover.exists() for leftover in leftovers)


def test_of_a_link_that_is_left_what_it_leads_to_stays(tmp_path: Path) -> None:
    store = left(tmp_path / "store", "kept")
    (tmp_path / ".data.partial-1-a").symlink_to(store)
    with stage_folder(tmp_path / "data") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, store]) and (store / "ids.i32").exists()


@pytest.mark.parametrize("when", ["before it is opened", "before it is removed"])
def test_a_stage_that_its_owner_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    gone, real = left(tmp_path / "data", "stage"), os.open

    def opened(path: Path, flags: int) -> int:
        monkeypatch.setattr(os, "open", real)
        descriptor = real(path, flags) if when == "before it is removed" else None
        shutil.rmtree(gone)
        return real(path, flags) if descriptor is None else descriptor

    monkeypatch.setattr(os, "open", opened)
    with stage_folder(tmp_path / "data") as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_others_are_writing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage_folder(tmp_path / "data"):
        half = left(tmp_path / "data", "partial")
        with stage_folder(tmp_path / "data"):
            assert half.exists()
    # One that begins when the stages have been looked at.
    beside = stage._beside

    def listed(out: Path, kind: str) -> list[Path]:
        found = list(beside(out, kind))
        if kind == "stage":
            (tmp_path / ".data.partial-1-new").mkdir()
        return found

    monkeypatch.setattr(stage, "_beside", listed)
    with stage_folder(tmp_path / "data"):
        assert not half.exists() and (tmp_path / ".data.partial-1-new").exists()


def test_a_refusal_of_the_system_names_what_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"data: cannot be written \(No space left"), stage_folder(tmp_path / "data"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())
