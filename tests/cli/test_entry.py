from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer.main

from slipstream.cli import entry
from slipstream.cli.entry import bound_spin
from slipstream.errors import ConfigError
from slipstream.training.config import default_cache

COMMANDS = (
    "prepare",
    "train",
    "evaluate",
    "predict",
    "compare",
    "inspect",
    "profile",
    "doctor",
    "bench",
    "report",
    "watch",
)


def slipstream(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A clean slate: the test session itself has set a spin count.
    kept = {key: value for key, value in os.environ.items() if key not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    return subprocess.run(
        [sys.executable, "-m", "slipstream", *arguments],
        env={**kept, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_the_spin_is_bounded_unless_the_user_decided(before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    bound_spin(environment)
    assert environment == after


def test_nothing_heavy_is_loaded_before_the_spin_is_bounded() -> None:
    heavy = "('torch', 'numba', 'numpy')"
    code = f"import slipstream, slipstream.cli.entry, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_loads_no_torch() -> None:
    done = slipstream("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    code = "import slipstream.cli.app, sys; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == "False"


def test_help_says_what_statuses_mean_and_completion_knows_the_commands() -> None:
    for command in ([], ["watch"]):
        assert "Exit status: 0 done" in slipstream(*command, "--help").stdout
    wanted = {"COMP_WORDS": "slipstream re", "COMP_CWORD": "1", "_SLIPSTREAM_COMPLETE": "complete_bash"}
    assert slipstream(**wanted).stdout.split() == ["report"]


def test_a_watched_folder_that_is_no_run_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    done = slipstream("watch", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "is no run folder" in line


def test_the_version_is_the_packages() -> None:
    import slipstream as package

    assert slipstream("--version").stdout.strip() == f"slipstream {package.__version__}"


def test_bad_input_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = slipstream("compare", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("slipstream: ") and "no finished run" in line


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    done = slipstream("compare", str(tmp_path / "none"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "DataError" in done.stderr


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # torch's name of a GPU's
SHORT = {
    "python": (MemoryError(), "the memory does not suffice"),
    "torch": (RuntimeError(ALLOCATOR), "the memory does not suffice"),
    "GPU": (OutOfMemoryError("CUDA out of memory"), "the GPU's memory does not suffice"),
    "map": (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory; use smaller batches"),
}


@pytest.mark.parametrize(("error", "said"), SHORT.values(), ids=SHORT)
def test_a_lack_of_memory_is_one_line_and_status_2(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(**_: object) -> int:
        raise error

    monkeypatch.setattr(entry, "_command", lambda: command)
    assert entry.run(["train"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "smaller batches" in line
    with pytest.raises(type(error)):
        entry.run(["train", "--debug"])


def command_of(function: Callable[[], None]) -> Callable[..., int]:
    app = typer.Typer()
    app.command()(function)
    return typer.main.get_command(app)


def test_a_file_that_is_cut_off_is_no_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off() -> None:
        raise EOFError("Ran out of input")  # numba's, of an index that is empty

    monkeypatch.setattr(entry, "_command", lambda: command_of(cut_off))
    assert entry.run([]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("slipstream: a file is cut off (Ran out of input): most likely the cache")
    assert "*.nbi" in said


def test_ctrl_c_is_130_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_command", interrupted)
    assert entry.run(["train"]) == 130
    monkeypatch.setattr(entry, "_command", lambda: command_of(interrupted))
    assert entry.run([]) == 130


def test_who_stops_reading_costs_no_file(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.csv"
    command = [sys.executable, "-m", "slipstream", "compare", str(make_run("full")), "--html", str(page)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [*command, "--csv", str(figures)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert page.is_file() and figures.is_file()


def test_kernels_have_a_cache_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry.atexit, "register", lambda *_, **__: None)
    for given in ({"NUMBA_CACHE_DIR": "/mine"}, {}):
        environment = dict(given)
        entry.give_kernels_a_cache(environment)  # this installation can be written
        assert environment == given
    monkeypatch.setattr(entry.os, "access", lambda *_: False)
    environment = {}
    entry.give_kernels_a_cache(environment)
    folder = Path(environment["NUMBA_CACHE_DIR"])
    assert folder.is_dir() and "compiled anew" in capsys.readouterr().err
    folder.rmdir()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ConfigError, match="no home folder; set cache, or XDG_CACHE_HOME"):
        default_cache()


def test_another_runtime_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(**_: object) -> int:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(entry, "_command", lambda: command)
    with pytest.raises(RuntimeError, match="ours"):
        entry.run(["train"])


KILLED = """
import os, signal
from slipstream.cli import entry
def run(arguments):
    entry.complain("first")
    print("second")
    os.kill(os.getpid(), signal.SIGKILL)
entry.run = run
entry.main()
"""


def test_unbuffered_output_is_not_kept_back() -> None:
    done = subprocess.run([sys.executable, "-u", "-c", KILLED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("second\n", "slipstream: first\n", -signal.SIGKILL)


def test_signals_that_come_twice_do_not_change_the_status() -> None:
    ended = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "return 143").replace(
        "entry.main()", "try:\n    entry.main()\nfinally:\n    os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", ended], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (143, "slipstream: first\n")


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "slipstream", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(": No space left on device; make room or choose another place\n")


WARNING = """
import sys, warnings
from slipstream.cli import entry
entry.run = lambda arguments: warnings.warn("bf16 is slow\\nhere", UserWarning) or 0
entry.main()
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_warning_is_one_line_and_with_debug_says_where_it_arose(debug: bool) -> None:
    command = [sys.executable, "-c", WARNING, *(["--debug"] if debug else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if debug:
        assert "<string>:4: UserWarning: bf16 is slow" in done.stderr
    else:
        assert done.stderr == "slipstream: warning: bf16 is slow here\n"


def test_compare_writes_page_and_figures(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page, figures = tmp_path / "out" / "page.html", tmp_path / "figures.csv"
    runs = [str(make_run("full")), str(make_run("[b]half", "random", auc=0.7654, seconds=5.0))]
    done = slipstream("compare", *runs, "--html", str(page), "--csv", str(figures), COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert "0.7654" in done.stdout and "2.00x" in done.stdout and "[b]half" in done.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(figures.read_text(encoding="utf-8").splitlines()) == 3


def test_an_unknown_benchmark_is_named() -> None:
    done = slipstream("bench", "nothing")
    assert done.returncode == 2
    assert "No such command 'nothing'" in done.stderr and len(done.stderr.splitlines()) == 1


KEEPING = """
import ctypes, resource, statistics, torch
from slipstream.cli.entry import keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(60):  # the first ones grow the heap: how many depends on where small objects come to lie
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 << 20).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(round(statistics.median(faults)), int(ctypes.CDLL(None).mallopt(-3, 256 << 20)))
"""


def test_a_step_gets_the_pages_of_the_last_one() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    faults, takes = (int(word) for word in done.stdout.split())
    if not takes:
        pytest.skip("this C library keeps no block of 64 MB")
    assert faults < 1000  # of 16,384 pages
