"""Runs tasks on a few threads and hands out their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(tasks: Iterable[Task], work: Callable[[Task], Result], threads: int) -> Iterator[Result]:
    """``work`` of every task, in the order of the tasks; at most ``threads + 1`` results wait to be taken."""
    with ThreadPoolExecutor(threads, thread_name_prefix="slipstream-prepare") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
