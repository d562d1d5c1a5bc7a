"""Tells when Numba compiles a kernel, rather than loads it from its cache."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from numba.core import event


class _First(event.Listener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Any) -> None:
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()

    def on_end(self, event: Any) -> None:
        pass


def when_compiling(tell: Callable[[], None]) -> AbstractContextManager[Any]:
    """Calls ``tell`` once, before the first kernel that is compiled within the block; not for what the cache holds.

    Args:
        tell: Called on the thread that compiles, which waits for it.
    """
    # numba:compile passes over C functions, which most CPU kernels are; every compilation runs passes.
    return event.install_listener("numba:run_pass", _First(tell))
