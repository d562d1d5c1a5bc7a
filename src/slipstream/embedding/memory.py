"""Memory of tables: huge pages where the system offers them, files for tables larger than memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError

HUGE_FROM = 8 << 20
"""Bytes from which huge pages are asked for."""
_HUGE_PAGE = 2 << 20
_COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1 and later; mmap has no name for it


@cache
def _madvise() -> Any:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is None or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def advise_huge_pages(tensor: Tensor) -> Tensor:
    """Ask the system to back a large tensor by huge pages.

    Every lookup in a large table of small pages misses the cache of page addresses. A hint: refusal changes nothing.

    Args:
        tensor: Any CPU tensor; small ones are left alone.
    """
    madvise = _madvise()
    start, length = _huge_range(tensor)
    if madvise is not None and length > 0:
        madvise(start, length, mmap.MADV_HUGEPAGE)
    return tensor


def collapse_pages(tensors: Sequence[Tensor]) -> Thread | None:
    """Have the pages of large tensors that are already written made huge ones too (Linux 6.1 and later).

    That takes as long as copying the tensors, and pays after some hundred steps: a thread of its own does it, while
    training goes on. A hint, too; the values stay what they are throughout.

    Args:
        tensors: Any CPU tensors; small ones are left alone.

    Returns:
        The thread, which keeps the tensors until it is done; None where there is nothing to do.
    """
    large = [tensor for tensor in tensors if _huge_range(tensor)[1] > 0]
    if not large or _madvise() is None:
        return None
    thread = Thread(target=_collapse, args=(large,), name="slipstream-huge-pages", daemon=True)
    thread.start()
    return thread


def _collapse(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        start, length = _huge_range(tensor)
        _madvise()(start, length, _COLLAPSE)  # without the interpreter's lock


def _huge_range(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of the whole huge pages within a large CPU tensor; 0 bytes for any other."""
    if tensor.device.type != "cpu" or tensor.nbytes < HUGE_FROM or not tensor.is_contiguous():
        return 0, 0
    start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    return start, max((tensor.data_ptr() + tensor.nbytes - start) // _HUGE_PAGE * _HUGE_PAGE, 0)


def installed_memory() -> int:
    """Bytes of memory that the machine has; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def advise_read_around(tensor: Tensor, wanted: bool) -> Tensor:
    """Tell the system whether to read a mapped file's neighbouring pages with each page that is missing.

    It does so by itself, 128 KiB a miss or what else the disk's ``read_ahead_kb`` says: quickest into memory for a
    table that fits, and for one that does not a multiple of what its rows take, read to throw out pages in use. A hint:
    refusal changes nothing.

    Args:
        tensor: All of a mapped file.
        wanted: Whether it should.
    """
    madvise = _madvise()
    if madvise is not None:
        madvise(tensor.data_ptr(), tensor.nbytes, mmap.MADV_NORMAL if wanted else mmap.MADV_RANDOM)
    return tensor


def let_go(tensor: Tensor) -> Tensor:
    """Take a mapped file's pages out of this process; what was written to them stays in the system's cache or the file.

    For measurements that begin with nothing in memory. Where the system cannot, nothing changes.

    Args:
        tensor: All of a file mapped for writing, never memory of another kind: its contents would be lost.
    """
    madvise = _madvise()
    if madvise is not None:
        madvise(tensor.data_ptr(), tensor.nbytes, mmap.MADV_DONTNEED)
    return tensor


def empty_table(rows: int, dim: int, device: Any = None) -> Tensor:
    """Uninitialised float32 [rows, dim] on huge pages."""
    return advise_huge_pages(torch.empty(rows, dim, dtype=torch.float32, device=device))


def state_dtype(weight: Tensor) -> torch.dtype:
    """What a table's optimizer state is kept in: float32, for float64 tables float64."""
    return weight.dtype if weight.dtype == torch.float64 else torch.float32


def zeros_like_table(weight: Tensor, *, rowwise: bool = False) -> Tensor:
    """Optimizer state of a table: zeros [R, D], or [R] with ``rowwise``; float32, for float64 tables float64."""
    shape = weight.shape[:1] if rowwise else weight.shape
    return advise_huge_pages(torch.empty(shape, dtype=state_dtype(weight), device=weight.device)).zero_()


def mapped_table(path: Path | str, rows: int, dim: int, *, read_around: bool | None = None) -> Tensor:
    """A table, float32 [rows, dim], that lives in a file, made (as zeros) if it is not there.

    Writes go to the file; only pages in use take memory.

    Args:
        path: The file.
        rows: R.
        dim: D.
        read_around: Whether the system reads a missing page's neighbours with it. None: unless the table is larger
            than the machine's memory. Pass False for tables that are so only together: see :func:`advise_read_around`.

    Raises:
        ConfigError: The file has another size.
    """
    path = Path(path)
    size = rows * dim * 4
    if path.exists() and path.stat().st_size != size:
        raise ConfigError(
            f"{path} has {path.stat().st_size} bytes, a table of {rows} x {dim} float32 has {size}",
            remedy="pass the sizes that the file was made with",
        )
    table = torch.from_file(str(path), shared=True, size=rows * dim, dtype=torch.float32).view(rows, dim)
    if read_around is None:
        read_around = not 0 < installed_memory() < size
    return table if read_around else advise_read_around(table, False)
