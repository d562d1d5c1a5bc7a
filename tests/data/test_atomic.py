"""Where a file is written to that a user names: links, pipes, devices and descriptors stay what they are."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from slipstream.data.atomic import atomic_file, write_text
from slipstream.errors import OutputError


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path):
    target, link, new = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "new"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to("there/target")
    new.symlink_to("not/yet")
    with pytest.raises(KeyboardInterrupt), atomic_file(link) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    for path in (link, new):
        write_text(path, "text")
        assert path.is_symlink() and path.read_text() == "text"
    assert target.read_text() == (tmp_path / "not" / "yet").read_text() == "text"
    assert [entry.name for entry in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_stays_and_its_reader_gets_all(tmp_path, linked):
    pipe, path, read = tmp_path / "pipe", tmp_path / "pipe", []
    os.mkfifo(pipe)
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with atomic_file(path) as partial, partial.open("wb") as file:  # as a writer of parquet, which may go back in it
        file.write(b"0" * 100_000)
        file.seek(0)
        file.write(b"1")
    reader.join(10)
    assert read == [b"1" + b"0" * 99_999] and pipe.is_fifo() and path.is_symlink() == linked


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_and_one_that_is_full_is_said(tmp_path, linked):
    for name, minor in (("null", 3), ("full", 7)):  # its own: no mistake may cost the machine's
        device = path = tmp_path / name
        try:
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, minor))
            device.open("rb").close()
        except PermissionError:
            pytest.skip("may not make devices")
        if linked:
            path = tmp_path / f"link to {name}"
            path.symlink_to(name)
        if name == "null":
            write_text(path, "text")
        else:
            with pytest.raises(OutputError, match=r"full: cannot be written \(No space left on device\)"):
                write_text(path, "text")
        assert device.is_char_device() and path.is_symlink() == linked


@pytest.mark.parametrize("to", ["/dev/stdout", "/proc/self/fd/1"])
def test_what_is_printed_before_and_after_stands_around_it(tmp_path, to):
    link = tmp_path / "link"
    link.symlink_to(to)
    code = "from slipstream.data.atomic import write_text\nprint('before')\n"
    code += f"write_text({str(link)!r}, 'text\\n')\nprint('after')\n"
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n" and link.is_symlink()


def test_what_cannot_be_written_to_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, said in (("folder", "directory"), ("circle", "symbolic links"), ("socket", "a disk or a socket")):
            with pytest.raises(OutputError, match=rf"{name}: cannot be written \(.*{said}"):
                write_text(tmp_path / name, "text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["circle", "folder", "socket"]
    assert (tmp_path / "folder").is_dir() and (tmp_path / "circle").is_symlink() and (tmp_path / "socket").is_socket()
