"""Trained models without Slipstream: plain modules, one safetensors file, ``torch.export`` and ONNX programs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_model
from torch import nn

from slipstream.data.atomic import atomic_file, by_umask
from slipstream.embedding.collection import EmbeddingCollection, PlainEmbeddingCollection
from slipstream.embedding.convert import original_class
from slipstream.errors import NotInstalled


def to_plain(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's embedding modules in place of ours, and the same ``state_dict``.

    ``Embedding`` becomes ``nn.Embedding`` (or the subclass that it was converted from), ``EmbeddingBag``
    ``nn.EmbeddingBag``, and an ``EmbeddingCollection`` a ``PlainEmbeddingCollection`` over ``nn.EmbeddingBag``, which
    has the same interface and keys. Tied weights stay tied. Gates, row state and hooks of policies stay behind;
    a bfloat16 output (``out_dtype``) becomes the tables' own type.

    Args:
        model: Any module, converted or not; it is left as it is.

    Returns:
        The copy, with memory of its own, in the same mode.
    """
    # Gradients stay behind: copies of row gradients would still belong to the model's tables.
    held = {id(parameter): parameter.grad for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    try:
        twin = copy.deepcopy(model)
    finally:
        for parameter in model.parameters():
            parameter.grad = held[id(parameter)]
    done: dict[int, nn.Module] = {}
    for parent in list(twin.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                done.setdefault(id(child), _plain(child))
                parent._modules[name] = done[id(child)]
    return _plain(twin)


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, EmbeddingCollection):
        plain = PlainEmbeddingCollection(
            [config._replace(num_embeddings=1) for config in module.configs],
            multi_hot=module.multi_hot_names,
            pooling=cast(Literal["sum", "mean"], module.pooling),
        )
        plain.configs = module.configs
        for name in module.table_of:
            bag = plain.tables[name]
            bag.num_embeddings, bag.weight = module.tables[name].weight.shape[0], module.tables[name].weight
        return plain.train(module.training)
    kind = original_class(module)
    if kind is None:
        return module
    plain_module = kind.__new__(kind)
    plain_module.__dict__.update(module.__dict__)
    del plain_module.__dict__["site"], plain_module.__dict__["out_dtype"]
    return plain_module


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
    """``torch.export`` of the plain model, in evaluation mode: runs without Slipstream.

    Args:
        model: Converted or plain.
        inputs: Example arguments of its ``forward``; tensors ``[B, ...]``, with B of 2 or more.
        dynamic_batch: Let B vary.
    """
    plain = to_plain(model).eval()
    return torch.export.export(plain, tuple(inputs), dynamic_shapes=_dynamic(inputs) if dynamic_batch else None)


def to_onnx(model: nn.Module, inputs: Sequence[Any], path: str | Path, *, dynamic_batch: bool = True) -> Path:
    """The plain model as an ONNX file for serving: embeddings and dense part, in evaluation mode.

    Args:
        model: Converted or plain.
        inputs: Example arguments of its ``forward``; tensors ``[B, ...]``, with B of 2 or more.
        path: The file, weights included (up to ONNX's 2 GB); its folder is made.
        dynamic_batch: Let B vary.

    Raises:
        NotInstalled: ``onnxscript`` is missing.
    """
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise NotInstalled("the ONNX export", "slipstream-rec[onnx]") from error
    with atomic_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of deprecated parts of torch
        program = torch.onnx.export(
            to_plain(model).eval(),
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=_dynamic(inputs) if dynamic_batch else None,
            verbose=False,
        )
        assert program is not None
        program.save(str(partial), include_initializers=True, external_data=False)
    return Path(path)


def _dynamic(inputs: Sequence[Any]) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=2)

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: batch}
        if isinstance(value, dict):
            return {key: of(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(of(entry) for entry in value) if type(value) in (tuple, list) else None
        return None

    return tuple(of(value) for value in inputs)
