"""Runs a compiled worker on torch's own OpenMP threads.

torch and Numba would each keep a pool of threads, and pools that spin while they wait ruin each other as soon as the
cores are shared (DESIGN, last trial).
So there is one pool: workers are C functions compiled by Numba, started by the ``GOMP_parallel`` of the OpenMP
library that torch has loaded (GNU's, and LLVM's and
Intel's, which offer the same entry). Where there is none, Python threads run the workers, and that is said once.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

_LIBRARIES = ("libgomp", "libiomp5", "libomp")


class SlowPathWarning(UserWarning):
    """A slower path is in use; said once."""


def spin_is_bounded() -> bool:
    """Whether the environment keeps OpenMP's waiting threads from spinning for long."""
    return "GOMP_SPINCOUNT" in os.environ or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"


def _loaded_openmp() -> list[str]:
    """Paths of the OpenMP libraries that this process has loaded, torch's first."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
    except OSError:
        return []
    found = [path for path in paths if os.path.basename(path).startswith(_LIBRARIES)]
    return sorted(found, key=lambda path: (os.path.dirname(torch.__file__) not in path, path))


@cache
def _gomp_parallel() -> Callable[..., None] | None:
    torch.get_num_threads()
    for path in _loaded_openmp():
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            if os.path.basename(path).startswith("libgomp") and not spin_is_bounded():
                warnings.warn(
                    "OpenMP's threads spin while they wait, which makes trainings that share cores many times slower; "
                    "set GOMP_SPINCOUNT=1000 before torch is imported",
                    SlowPathWarning,
                    stacklevel=2,
                )
            return function
    warnings.warn(
        "no OpenMP library of torch's was found: kernels run on Python threads, which start more slowly",
        SlowPathWarning,
        stacklevel=2,
    )
    return None


@cache
def _python_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="slipstream")


def threading_layer() -> str:
    """What runs the kernels' threads: the OpenMP library's file name, or ``python``."""
    return os.path.basename(_loaded_openmp()[0]) if _gomp_parallel() is not None else "python"


def run(worker: int, arguments: np.ndarray, threads: int) -> None:
    """Call a worker ``void (*)(void *)`` on each of ``threads`` threads with the same arguments, and wait for all.

    The interpreter lock is free meanwhile. Workers share their work by an atomic counter in ``arguments``.

    Args:
        worker: Address of the C function.
        arguments: The record that it is given; kept alive by the caller.
        threads: Number of threads, the calling one included.
    """
    address = arguments.ctypes.data
    if threads == 1:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(worker)(address)
        return
    parallel = _gomp_parallel()
    if parallel is not None:
        parallel(worker, address, threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(worker)
    for future in [_python_threads().submit(call, address) for _ in range(threads)]:
        future.result()
