"""Where the command ``slipstream`` starts, before anything heavy is imported."""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from slipstream.cli.streams import lasting, lead_nowhere
from slipstream.errors import Interrupted, SlipstreamError

SPIN_COUNT = "1000"
LONGEST = 1000
"""Characters of an error's line at most."""
_LESS = (
    "use smaller batches or tables (model.embedding_dim, hash_rows in prepare) or a larger machine "
    "(train --max-memory SIZE refuses what needs more before it begins)"
)
_REMOVE_CACHE = "remove the files *.nbi in NUMBA_CACHE_DIR, or else below the folder of slipstream or ~/.cache/numba"
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def bound_spin(environment: MutableMapping[str, str]) -> None:
    """Have idle threads of GNU OpenMP spin briefly, unless the user has said how they shall wait.

    With libgomp's default an idle thread of torch's pool holds its core for milliseconds, and two trainings that share
    cores starve each other. libgomp reads the setting when it is loaded, so this must come before ``import torch``.

    Args:
        environment: The process's environment, changed in place.
    """
    if not environment.get("OMP_WAIT_POLICY"):
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors instead of giving it back to the system after every step.

    Else each step's outputs and gradients of some megabytes are mapped and zeroed anew by the system, which at 128
    elements a row or with hundreds of features can take longer than everything else. Blocks above the threshold go
    back all the same. It is a setting of the whole process, so the library leaves it alone; other C libraries have no
    ``mallopt`` and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 256 << 20):
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the greatest that older versions take
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def give_kernels_a_cache(environment: MutableMapping[str, str]) -> None:
    """Have compiled kernels kept in a temporary folder of this process where Numba finds no other place.

    A container's installation may be read-only and its user without a home; Numba then refuses to compile.

    Args:
        environment: The process's environment, changed in place.
    """
    if environment.get("NUMBA_CACHE_DIR"):
        return
    package = Path(__file__).parent.parent / "kernels"
    beside = package / "__pycache__"
    own = Path(environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if os.access(beside if beside.exists() else package, os.W_OK) or os.access(_nearest(own), os.W_OK):
        return
    folder = tempfile.mkdtemp(prefix="slipstream-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment["NUMBA_CACHE_DIR"] = folder
    complain("warning: kernels are compiled anew, a minute or so: no cache can be written; set NUMBA_CACHE_DIR")


def _nearest(path: Path) -> Path:
    """The folder itself, or the one in which it could be made."""
    return next((each for each in (path, *path.parents) if each.exists()), Path("/"))


@cache
def _command() -> Callable[..., int | None]:
    """The commands as Click has them; Typer would make them anew at each call, in 0.15 s."""
    import typer.main

    from slipstream.cli.app import app

    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command; what is wrong becomes one line on standard error.

    Args:
        arguments: Those of the command line, without the program's name. ``--debug`` may stand anywhere, since one adds
            it to a command that has just failed: errors then keep their traceback.

    Returns:
        The exit status: 0 done, 1 a check of ``doctor`` failed, 2 bad input or a refusal of the system (no permission,
        no space, no memory), 128 and the number of the signal that ended it: 129 SIGHUP, 130 SIGINT (Ctrl-C), 143
        SIGTERM, its training saved.
        ``docs/reference/exit_status.md`` is for users.
    """
    import typer

    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Newer versions of Typer bring a Click of their own: the base class of its errors is reached from the one exported.
    usage_error = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])
    try:
        return _command()(args=arguments, prog_name="slipstream", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except typer.Abort as error:
        cut_off = error.__cause__ or error.__context__
        if not isinstance(cut_off, EOFError):
            return 128 + signal.SIGINT
        if debug:
            raise
        # Click takes it for an end of the keyboard's input, which no command reads.
        complain(f"a file is cut off ({cut_off}): most likely the cache of compiled kernels; {_REMOVE_CACHE}")
        return 2
    except usage_error as error:
        if debug:
            raise
        if error.format_message():  # without one, the command was given nothing and has shown its help
            complain(_usage(error))
        return 2
    except SlipstreamError as error:
        if debug:
            raise
        if not error.said_elsewhere:
            complain(str(error))
        return 128 + error.signal if isinstance(error, Interrupted) else 2
    except OSError as error:
        if debug:
            raise
        complain(f"{error.filename or 'the system'}: {error.strerror or error}; {_remedy(error)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        said = _short_of_memory(error)
        if debug or said is None:
            raise
        complain(said)
        return 2


def _warn(message: Warning | str, *_: Any) -> None:
    """A warning as one line; where in the code it arose is for ``--debug``."""
    complain(f"warning: {message}")


def complain(text: str) -> None:
    """One line on standard error; control characters of names and data do not reach the terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(line) > LONGEST:  # the end says what to do
        line = f"{line[: LONGEST - 350]} … {line[-347:]}"
    print(f"slipstream: {line}", file=sys.stderr)


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where its help is."""
    command = error.ctx.command_path if error.ctx is not None else "slipstream"
    return f"{error.format_message().rstrip('.?')}; `{command} --help` says what there is"


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "change the permissions or choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room or choose another place"
    if error.errno == errno.ENOMEM:
        return _LESS
    return "check the path"


def _short_of_memory(error: Exception) -> str | None:
    """What to say where the memory did not suffice; None: it is another error.

    torch's errors are known by what they say: most commands do not load it.
    """
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory does not suffice; use smaller batches, or tables in host memory (row_cache_bytes)"
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"the memory does not suffice; {_LESS}"
    return None


def main() -> None:
    """Run the command line and exit with its status."""
    bound_spin(os.environ)
    keep_freed_memory()
    give_kernels_a_cache(os.environ)
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), TextIOWrapper):
            setattr(sys, name, lasting(stream))
    if "--debug" not in sys.argv:
        warnings.showwarning = _warn
    status = run(sys.argv[1:])
    if status > 128:  # what has saved and said all is not to end in another way, for a signal that comes twice
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        lead_nowhere(sys.stdout.fileno())  # Python's last flush
        if status == 0:
            complain(f"standard output: {error.strerror}; {_remedy(error)}")
            status = 2
    if "slipstream.training.ranks" in sys.modules:
        _leave_at_once(status)
    sys.exit(status)


def _leave_at_once(status: int) -> None:
    """Ends a process that trained with others: what it had to write is written.

    torch now and then aborts ("terminate called without an active exception") while the interpreter takes down the
    threads of its collectives, and waits for ranks that are gone.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
