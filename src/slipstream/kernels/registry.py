"""The one place that picks a back end.

===================================  ====================================================
float32 on the CPU                   ``cpu`` (Numba)
float32, bfloat16, float16 on CUDA   ``cuda`` (Triton), where Triton is installed
everything else                      ``reference`` (plain PyTorch): slower, and said once
===================================  ====================================================

Triton is imported when a tensor on a GPU first needs it. The lookups are ``torch.library`` operators in
``embedding/operators.py``, where backward knows the tables; the update runs in ``optimizer.step()``, outside of any
compiled graph, and is a plain function.
"""

# torch's decorators of operators are typed in part only.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slipstream.errors import ConfigError
from slipstream.kernels import (
    classify,
    cpu,
    cpu_dots,
    cpu_sampling,
    cpu_triples,
    cuda_errors,
    hashing,
    inputs,
    reference,
    reference_sampling,
    reference_triples,
)
from slipstream.kernels import scout as scout_kernel
from slipstream.kernels.parallel import SlowPathWarning, threading_layer
from slipstream.kernels.reference_sampling import Sampled, Sampling
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateCounts, UpdateSettings

__all__ = [
    "backend_name",
    "check_errors",
    "count",
    "count_marked",
    "dots",
    "dots_gradients",
    "draw_rows",
    "hardest",
    "has_dots",
    "hash_lookups",
    "hash_uniform",
    "keep",
    "margins",
    "pool",
    "row_update",
    "sample_lookups",
    "scout",
    "set_check",
    "squared_norms",
    "threading_layer",
    "using",
    "write_settings",
]


@cache
def _say_slow(device: str, dtype: torch.dtype) -> None:
    warnings.warn(
        f"tables of {dtype} on {device} run on the reference kernels, which are slow; float32 on the CPU is fast, "
        "and on a GPU with Triton bfloat16 and float16 too",
        SlowPathWarning,
        stacklevel=4,
    )


_GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_forced: list[str] = []


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


def _cuda() -> ModuleType:
    return import_module("slipstream.kernels.cuda")


def _backend(tensor: Tensor) -> ModuleType:
    if _forced:
        return import_module(f"slipstream.kernels.{_forced[-1]}")
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        return cpu
    if tensor.device.type == "cuda" and tensor.dtype in _GPU_TYPES and _triton():
        return _cuda()
    _say_slow(tensor.device.type, tensor.dtype)
    return reference


def _apart(tensor: Tensor, home: ModuleType) -> ModuleType:
    """The back end of an operator whose CPU kernel has a module of its own, for any integer or float tensor."""
    if _forced:
        return home if _forced[-1] == "cpu" else import_module(f"slipstream.kernels.{_forced[-1]}")
    if tensor.device.type == "cpu":
        return home
    return _cuda() if tensor.device.type == "cuda" and _triton() else reference


@contextmanager
def using(name: str) -> Generator[None]:
    """Runs everything on one back end for a while; for tests (``cuda`` on CPU tensors needs TRITON_INTERPRET=1).

    Args:
        name: ``cpu``, ``cuda`` or ``reference``.

    Raises:
        ConfigError: There is no such back end.
    """
    if name not in ("cpu", "cuda", "reference"):
        raise ConfigError(f"no kernels named {name!r}", remedy="use cpu, cuda or reference")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def set_check(check: Literal["lazy", "always"]) -> Literal["lazy", "always"]:
    """When ids outside their table are raised on a GPU: at a later step, without waiting, or by the call that met them.

    Returns the setting before.

    See :mod:`slipstream.kernels.cuda_errors`. Kernels on the CPU always raise at once.
    """
    return cuda_errors.set_check(check)


def check_errors(device: torch.device | str | None = None) -> None:
    """Waits for a GPU (None: all that were used) and raises what went wrong there.

    Raises:
        IndexOutOfRange: An id was outside its table.
    """
    cuda_errors.raise_now(device)


def backend_name(tensor: Tensor) -> str:
    """``cpu``, ``cuda`` or ``reference``: what a table like ``tensor`` runs on."""
    return _backend(tensor).__name__.rpartition(".")[2]


def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Gather rows and sum them by bag: [B, F, D]. See :func:`slipstream.kernels.reference.pool`."""
    return _backend(weights[0]).pool(weights, lookups, out_dtype)


def row_update(
    tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
) -> UpdateCounts:
    """Gate, de-duplicate, reduce, apply the optimizer, write. See :func:`slipstream.kernels.reference.row_update`."""
    return _backend(tables[0].weight).row_update(tables, gradients, settings)


def write_settings(tables: Sequence[TableState], settings: UpdateSettings) -> None:
    """Sends a step's numbers to a GPU ahead of a graph's replay: :func:`slipstream.kernels.cuda.write_settings`."""
    _cuda().write_settings(tables, settings)


def squared_norms(tables: Sequence[TableState], gradients: Sequence[RowGradients]) -> list[float] | list[Tensor]:
    """Sum of squares of each table's gradient; on a GPU scalar tensors (float64), which nobody waits for."""
    counts = row_update(tables, gradients, UpdateSettings(Rule.NORM))
    norms = counts.device_squared_norm()
    return counts.squared_norm if norms is None else list(norms.unbind())


def count(counts: Tensor, ids: Tensor, amount: float) -> None:
    """Add ``amount`` to ``counts[id]`` for each id. See :func:`slipstream.kernels.reference.count`."""
    _backend(counts).count(counts, ids, amount)


def _hashed(keys: Tensor) -> ModuleType:
    in_kernel = keys.device.type == "cpu" and keys.dtype in (torch.int32, torch.int64)
    return inputs if in_kernel else hashing


def hash_uniform(keys: Tensor, seed: int, step: int = 0) -> Tensor:
    """A number in [0, 1) for each key. See :func:`slipstream.kernels.hashing.hash_uniform`."""
    return _hashed(keys).hash_uniform(keys, seed, step)


def draw_rows(keys: Tensor, count: int, num_rows: int, seed: int, step: int = 0) -> Tensor:
    """Rows of a table for each key. See :func:`slipstream.kernels.hashing.draw_rows`."""
    return _hashed(keys).draw_rows(keys, count, num_rows, seed, step)


def keep(
    keys: Tensor, seed: int, step: int, probability: Tensor, weights: Tensor, kept: int, decided: int
) -> tuple[Tensor, Tensor, int]:
    """Draws which inputs are kept, and weighs them. See :func:`slipstream.kernels.inputs.keep`."""
    return inputs.keep(keys, seed, step, probability, weights, kept, decided)


def has_dots(vectors: Tensor) -> bool:
    """Whether :func:`dots` and :func:`dots_gradients` take them: float32 or bfloat16 on the CPU."""
    wanted = not _forced or _forced[-1] == "cpu"
    return wanted and vectors.device.type == "cpu" and vectors.dtype in cpu_dots.DTYPES


@torch.library.custom_op("slipstream::dots", mutates_args=())
def _dots(vectors: Tensor, ahead: bool) -> Tensor:
    return cpu_dots.dots(vectors, ahead)


@_dots.register_fake
def _(vectors: Tensor, ahead: bool) -> Tensor:
    batch, count, dim = vectors.shape
    return vectors.new_empty((batch, count * (count - 1) // 2 + (dim if ahead else 0)))


@torch.library.custom_op("slipstream::dots_gradients", mutates_args=())
def _dots_gradients(vectors: Tensor, gradients: Tensor, ahead: bool) -> Tensor:
    return cpu_dots.dots_gradients(vectors, gradients, ahead)


@_dots_gradients.register_fake
def _(vectors: Tensor, gradients: Tensor, ahead: bool) -> Tensor:
    return vectors.new_empty(vectors.shape)


def dots(vectors: Tensor, ahead: bool) -> Tensor:
    """Dot products of all pairs of vectors. See :func:`has_dots`, :func:`slipstream.kernels.reference.dots`."""
    # The operator is for compiled graphs: its dispatch costs more than a small batch.
    return _dots(vectors, ahead) if torch.compiler.is_compiling() else cpu_dots.dots(vectors, ahead)


def dots_gradients(vectors: Tensor, gradients: Tensor, ahead: bool) -> Tensor:
    """Their gradients. See :func:`has_dots`, :func:`slipstream.kernels.reference.dots_gradients`."""
    made = _dots_gradients if torch.compiler.is_compiling() else cpu_dots.dots_gradients
    return made(vectors, gradients, ahead)


def _triples(tensor: Tensor) -> ModuleType:
    """Where margins are computed: by a kernel for float32 on the CPU, elsewhere by torch's operators."""
    if _forced:
        return cpu_triples if _forced[-1] == "cpu" else reference_triples
    return cpu_triples if tensor.device.type == "cpu" and tensor.dtype == torch.float32 else reference_triples


@torch.library.custom_op("slipstream::margins", mutates_args=())
def _margins(rows: Tensor) -> Tensor:
    return _triples(rows).margins(rows)


@_margins.register_fake
def _(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0])


@torch.library.custom_op("slipstream::margin_gradients", mutates_args=())
def _margin_gradients(rows: Tensor, grad: Tensor) -> Tensor:
    return _triples(rows).margin_gradients(rows, grad)


@_margin_gradients.register_fake
def _(rows: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


class _Margins(torch.autograd.Function):
    """Without the operators' dispatch, which costs more than the kernels."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _triples(rows).margins(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return _triples(rows).margin_gradients(rows, grad)


def _save_rows(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _of_rows(ctx: Any, grad: Tensor) -> Tensor:
    return _margin_gradients(*ctx.saved_tensors, grad)


_margins.register_autograd(_of_rows, setup_context=_save_rows)


def margins(rows: Tensor) -> Tensor:
    """Differences of two scores, with a gradient. See :func:`slipstream.kernels.reference_triples.margins`."""
    return _margins(rows) if torch.compiler.is_compiling() else cast(Tensor, _Margins.apply(rows))


def hardest(user_weight: Tensor, item_weight: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """The candidates that score highest. See :func:`slipstream.kernels.reference_triples.hardest`."""
    gpu = _forced[-1] == "cuda" if _forced else item_weight.device.type == "cuda" and _triton()
    home = _cuda() if gpu and item_weight.dtype in _GPU_TYPES else _triples(item_weight)
    return home.hardest(user_weight, item_weight, users, items)


def count_marked(marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """How many lookups of each input hit marked rows. See :func:`slipstream.kernels.reference.count_marked`."""
    return _apart(ids, classify).count_marked(marks, ids, bags)


def sample_lookups(lookups: Lookups, grad: Tensor, sampling: Sampling) -> Sampled:
    """Draws lookups by their gradients. See :func:`slipstream.kernels.reference_sampling.sample_lookups`."""
    on_cpu = _forced[-1] == "cpu" if _forced else grad.device.type == "cpu"
    return (cpu_sampling if on_cpu else reference_sampling).sample_lookups(lookups, grad, sampling)


def hash_lookups(ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], bits: int) -> tuple[Tensor, Tensor]:
    """Slots of the lookups of each input. See :func:`slipstream.kernels.scout.hash_lookups`."""
    return _apart(ids, scout_kernel).hash_lookups(ids, bags, bits)


def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor | None, lr: float
) -> tuple[Tensor, Tensor, float]:
    """Logistic regression on-line. See :func:`slipstream.kernels.reference.scout`."""
    return _apart(table, scout_kernel).scout(table, slots, starts, dense, labels, learn, lr)
