"""Trained models without Slipstream: plain modules, one safetensors file, ``torch.export`` and ONNX programs."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from slipstream.data.atomic import atomic_file, by_umask
from slipstream.data.batch import Bag
from slipstream.embedding.collection import EmbeddingCollection, PlainEmbeddingCollection
from slipstream.embedding.convert import become, original_class, own_methods
from slipstream.errors import NotInstalled, UnsupportedOption


def to_plain(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's embedding modules in place of ours, and the same ``state_dict``.

    ``Embedding`` becomes ``nn.Embedding`` (or the subclass that it was converted from), ``EmbeddingBag``
    ``nn.EmbeddingBag``, and an ``EmbeddingCollection`` a ``PlainEmbeddingCollection`` over ``nn.EmbeddingBag``, which
    has the same interface and keys. Tied weights stay tied, and modules keep their hooks. Gates, row state and hooks of
    policies stay behind; a bfloat16 output (``out_dtype``) becomes the tables' own type. So does what a subclass of one
    of our classes adds, as far as it does not change the lookup.

    Args:
        model: Any module, converted or not; it is left as it is.

    Returns:
        The copy, with memory of its own, in the same mode.

    Raises:
        UnsupportedOption: Names the modules that are ours with a lookup of their own: a subclass with its own
            ``forward``, or one whose ``forward`` was replaced.
    """
    _refuse_own_lookups(model)
    # Gradients stay behind: copies of row gradients would still belong to the model's tables.
    held = {id(parameter): parameter.grad for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    try:
        twin = copy.deepcopy(model)
    finally:
        for parameter in model.parameters():
            parameter.grad = held[id(parameter)]
    for module in list(twin.modules()):
        _make_plain(module)
    return twin


_LOOKUP = ("__call__", "forward", "gather", "_pooled")
"""The methods of our modules that decide what is predicted."""


def _refuse_own_lookups(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if own := own_methods(module, _LOOKUP):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise UnsupportedOption(
                f"cannot make {name or '(the model itself)'} a plain module: {kind} has its own {', '.join(own)}",
                remedy="have a module around ours do what it does, or take back what replaced forward",
            )


def _make_plain(module: nn.Module) -> None:
    if isinstance(module, EmbeddingCollection):
        for name in module.tables:
            holder = module.tables[name]
            bag = nn.EmbeddingBag(
                *holder.weight.shape, mode=module.pooling, sparse=True, include_last_offset=True, _weight=holder.weight
            )
            bag.weight = holder.weight  # the same object, as it may be tied
            module.tables.add(name, bag.train(holder.training))
        for name in ("pooling", "out_dtype", "one_hot", "bags", "_one_hot_weights", "_multi_hot_weights", "_gathered"):
            del module.__dict__[name]
        become(module, PlainEmbeddingCollection)
    elif (kind := original_class(module)) is not None:
        become(module, kind)
        del module.__dict__["site"], module.__dict__["out_dtype"]


def save_safetensors(model: nn.Module, path: str | Path) -> Path:
    """Writes the weights of a model, tied ones once, as one safetensors file; a reader never sees half a file.

    ``safetensors.torch.load_model(to_plain(model), path)`` reads it, and so does the model itself.

    Args:
        model: Converted or plain.
        path: The file; its folder is made.
    """
    path = Path(path)
    with atomic_file(path) as partial, by_umask(partial):
        save_model(model, str(partial))
    return path


def to_program(model: nn.Module, inputs: Sequence[Any], *, dynamic_batch: bool = True) -> torch.export.ExportedProgram:
    """``torch.export`` of the plain model, in evaluation mode: loads and runs without Slipstream.

    A named tuple, which a program that is loaded elsewhere would need the class of, is a plain tuple for the program.
    One of our own models, which take ``Inputs``, is asked by ``(dense, ids, ((values, offsets), ...))``::

        torch.export.save(to_program(model, (batch.inputs,)), "model.pt2")
        program = torch.export.load("model.pt2").module()
        logits = program((dense, ids, ((values, offsets),)))    # with one multi-hot feature; () without any

    Args:
        model: Converted or plain.
        inputs: Example arguments of its ``forward``; tensors ``[B, ...]`` and bags of B samples (``Bag``), with B of 2
            or more, and with 2 or more ids in all samples together for each multi-hot feature.
        dynamic_batch: Let B (2 or more) vary, and the numbers of ids in bags (0 or more).

    Raises:
        UnsupportedOption: As :func:`to_plain`.
    """
    plain = _of_tuples(to_plain(model).eval(), inputs)
    shapes = _dynamic(inputs) if dynamic_batch else None
    return torch.export.export(plain, _untitled(tuple(inputs)), dynamic_shapes=shapes, strict=False)


def to_onnx(model: nn.Module, inputs: Sequence[Any], path: str | Path, *, dynamic_batch: bool = True) -> Path:
    """The plain model as an ONNX file for serving: embeddings and dense part, in evaluation mode.

    Args:
        model: Converted or plain.
        inputs: Example arguments of its ``forward``, as for :func:`to_program`.
        path: The file, weights included (up to ONNX's 2 GB); its folder is made.
        dynamic_batch: Let B vary, and the numbers of ids in bags.

    Raises:
        NotInstalled: ``onnxscript`` is missing.
        UnsupportedOption: As :func:`to_plain`.
    """
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise NotInstalled("the ONNX export", "slipstream-rec[onnx]") from error
    with atomic_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of deprecated parts of torch
        program = torch.onnx.export(
            _of_tuples(to_plain(model).eval(), inputs),
            _untitled(tuple(inputs)),
            dynamo=True,
            dynamic_shapes=_dynamic(inputs) if dynamic_batch else None,
            verbose=False,
        )
        assert program is not None
        program.save(str(partial), include_initializers=True, external_data=False)
    return Path(path)


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _each(of: Callable[[Any], Any], value: Any) -> Any:
    """A dictionary, tuple or list of what a function makes of the entries; a named tuple becomes a plain one."""
    if type(value) in (dict, OrderedDict):
        return type(value)((key, of(entry)) for key, entry in value.items())
    if type(value) is list:
        return [of(entry) for entry in value]
    return tuple(of(entry) for entry in value) if type(value) is tuple or _is_named(value) else value


def _untitled(value: Any) -> Any:
    """Plain tuples in place of named ones, at any depth, and copies of tensors.

    Where one tensor is two arguments of the example, torch's program would read the first for both ever after.
    """
    return value.detach().clone() if isinstance(value, torch.Tensor) else _each(_untitled, value)


def _titled(example: Any, value: Any) -> Any:
    """Named tuples where an example has them, of what :func:`_untitled` made."""
    if _is_named(example):
        return type(example)(*map(_titled, example, value))
    if type(example) in (dict, OrderedDict):
        return type(example)((key, _titled(example[key], entry)) for key, entry in value.items())
    return type(example)(map(_titled, example, value)) if type(example) in (tuple, list) else value


def _of_tuples(model: nn.Module, inputs: Sequence[Any]) -> nn.Module:
    """The model, to be called with plain tuples where the example has named ones; other hooks see the named ones."""
    model.register_forward_pre_hook(lambda _, given: _titled(tuple(inputs), given), prepend=True)
    return model


def _dynamic(inputs: Sequence[Any]) -> tuple[Any, ...]:
    batch, numbers = torch.export.Dim("batch", min=2), itertools.count()

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: batch}
        if isinstance(value, Bag):
            return {0: torch.export.Dim(f"values_{next(numbers)}", min=0)}, {0: batch + 1}
        if isinstance(value, dict):
            return {key: of(entry) for key, entry in value.items()}
        return _each(of, value) if type(value) in (tuple, list) or _is_named(value) else None

    return tuple(of(value) for value in inputs)
