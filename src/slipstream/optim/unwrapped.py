"""Methods of torch's optimizers without what torch puts around them, which costs more than the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import MethodType
from typing import Any, cast

import torch


def hooked_when_watched(func: Callable[..., Any]) -> Callable[..., Any]:
    """What torch puts around ``step``, hooks and a label for its profiler, only while there are any of them.

    The label alone costs a quarter of the Python in a step. ``torch.compile`` leaves the step out of its graphs:
    kernels take addresses.
    """
    hooked: Callable[..., Any] = torch.optim.Optimizer.profile_hook_step(func)
    outside_graphs: dict[Callable[..., Any], Callable[..., Any]] = {}
    torchs = import_module("torch.optim.optimizer")
    of_all: tuple[Any, Any] = torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks

    @wraps(func)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        watched = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or any(of_all)
        profiled = torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        run = hooked if watched or profiled else func
        if "torch._dynamo" in sys.modules:  # else nothing is being compiled, and asking would load the compiler
            if run not in outside_graphs:
                outside_graphs[run] = cast(Any, torch.compiler).disable(run)
            run = outside_graphs[run]
        return run(self, *args, **kwargs)

    return step


def without_compiler(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizer without the wrapper that keeps it out of compiled graphs.

    The wrapper imports the compiler: 125 MB and a second that a training without it has no use for.
    """
    if torch.compiler.is_compiling() or not isinstance(method, MethodType):
        return method
    return MethodType(unwrapped(method.__func__, "torch._compile"), method.__self__)


def unwrapped(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """What torch's own wrapper, made in ``module``, is put around; anything else as it is: others' patches stay.

    Checked with torch 2.6 and 2.13.
    """
    own = getattr(function, "__globals__", {}).get("__name__") == module  # ``__module__`` is that of what is wrapped
    return getattr(function, "__wrapped__", function) if own else function
