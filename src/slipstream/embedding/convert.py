"""``convert``: make the embedding modules of any model ours; ``check``: what would not work, by module name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from slipstream.embedding.collection import EmbeddingCollection
from slipstream.embedding.memory import advise_huge_pages, collapse_pages
from slipstream.embedding.modules import Embedding, EmbeddingBag, _OneTable, refuse_unsupported
from slipstream.embedding.table import Site, Table
from slipstream.errors import UnsupportedOption

_REPLACEMENT: dict[type[nn.Module], type[Embedding | EmbeddingBag]] = {
    nn.Embedding: Embedding,
    nn.EmbeddingBag: EmbeddingBag,
}

_ITSELF = "(the model itself)"

_OURS = ("site", "table", "out_dtype", "_adopt")
"""Names that our modules have and torch's have not."""


def _replacement(module: nn.Module) -> type[Embedding | EmbeddingBag] | None:
    """The class that takes the module's place: of ours, or of ours with what the module's own subclass adds."""
    if isinstance(module, _OneTable):
        return None
    for plain, ours in _REPLACEMENT.items():
        if isinstance(module, plain):
            kind = type(module)
            if _why_left(module, plain) is not None:
                return None
            return ours if kind is plain else joined_class(ours, kind)
    return None


def _why_left(module: nn.Module, plain: type[nn.Module]) -> str | None:
    """Why a module cannot be swapped for one that looks rows up in our way, and is otherwise as it was."""
    if module._parameters.get("weight") is None:
        return "is parametrized: its weight is computed, not a parameter"
    if type(module).forward is not plain.forward:
        return "is a subclass with a forward of its own"
    if "forward" in vars(module):  # Accelerate's hooks, for example
        return "has had its forward replaced (convert the model before that)"
    if taken := [name for name in _OURS if hasattr(module, name)]:
        return f"has attributes {taken}, names that the converted module needs (rename them)"
    return None


@cache
def joined_class(ours: type[Any], theirs: type[Any]) -> type[Any]:
    """A class that looks rows up as ``ours`` does and is ``theirs`` otherwise."""
    named = {"__module__": theirs.__module__, "__reduce_ex__": _reduce, "_slipstream_parts": (ours, theirs)}
    return type(theirs.__name__, (ours, theirs), named)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """For copies and saved models: joined classes have no name by which they could be found."""
    return _empty, module._slipstream_parts, module.__getstate__()


def _empty(ours: type[Any], theirs: type[Any]) -> Any:
    kind: Any = joined_class(ours, theirs)
    return kind.__new__(kind)


class Finding(NamedTuple):
    """Something that ``check`` found.

    Attributes:
        module: The module's name in the model.
        problem: What is the matter.
        severity: ``error``: ``convert`` refuses; ``note``: the module stays as it is.
    """

    module: str
    problem: str
    severity: Literal["error", "note"]


def check(model: nn.Module) -> list[Finding]:
    """What ``convert`` would refuse or leave alone, one finding a module.

    An empty list means that every embedding can be converted.
    """
    findings: list[Finding] = []
    for name, module in model.named_modules():
        if _replacement(module) is not None:
            assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
            try:
                refuse_unsupported(module)
            except UnsupportedOption as error:
                findings.append(Finding(name or _ITSELF, str(error), "error"))
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and not isinstance(module, _OneTable):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            why = _why_left(module, next(plain for plain in _REPLACEMENT if isinstance(module, plain)))
            findings.append(Finding(name or _ITSELF, f"{kind} {why}; it is left as it is", "note"))
    return findings


def convert(model: nn.Module, *, strict: bool = True) -> nn.Module:
    """Make every ``nn.Embedding`` and ``nn.EmbeddingBag`` one of ours, in place.

    Subclasses too, unless they have a ``forward`` of their own, a parametrized weight or attributes of our modules'
    names; in nested containers, under several names and with tied weights, other models' included.
    Modules and parameters stay the same objects with the same ``state_dict`` keys. So whatever holds a module (a
    dictionary of the model, a hook, another model) has the converted one, and an optimizer made before keeps its
    parameters, though only ``slipstream.optim`` can use their gradients.

    Args:
        model: Any module, an embedding too.
        strict: Raise where a module cannot be converted; otherwise leave it as it is.

    Returns:
        The model.

    Raises:
        UnsupportedOption: Names the modules that cannot be converted.
    """
    errors = [finding for finding in check(model) if finding.severity == "error"]
    if errors and strict:
        listed = "; ".join(f"{finding.module}: {finding.problem}" for finding in errors)
        raise UnsupportedOption(f"cannot convert {listed}", remedy="see slipstream.check(model), or pass strict=False")
    refused_names = {finding.module for finding in errors}
    refused = {id(module) for name, module in model.named_modules() if (name or _ITSELF) in refused_names}
    converted: list[_OneTable] = []
    for module in list(model.modules()):
        kind = _replacement(module)
        if kind is not None and id(module) not in refused:
            converted.append(_converted(module, kind))
    tables(model)  # names them
    collapse_pages([advise_huge_pages(module.weight.data) for module in converted])
    return model


def _converted(module: nn.Module, kind: type[Any]) -> _OneTable:
    before = type(module)
    ours = become(module, kind)
    try:
        ours._adopt(Site.table_of(ours.weight) or Table(ours.weight))  # one for tied weights, of any model
    except Exception as error:
        become(module, before)
        vars(module).pop("site", None)
        raise UnsupportedOption(
            f"cannot convert a {before.__qualname__}: it does not take our attributes ({error})",
            remedy="see slipstream.check(model), or leave it out of the model that is converted",
        ) from error
    return ours


def become(module: nn.Module, kind: type[Any]) -> Any:
    """The module, of another class from now on: another object in its place would leave those behind that hold it."""
    object.__setattr__(module, "__class__", kind)
    return module


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that a converted module had before, torch's for one that was made as ours; None for every other."""
    kind = type(module)
    for plain, ours in _REPLACEMENT.items():
        if isinstance(module, ours):
            parts = _joined_of(kind)
            before = parts[1] if parts else plain
            return _parametrized(kind, before) if is_parametrized(module) else before
    return None


def own_methods(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of some methods a module of ours does not have from our class; none for other modules."""
    kind = type(module)
    ours = next((ours for ours in (Embedding, EmbeddingBag, EmbeddingCollection) if issubclass(kind, ours)), None)
    if ours is None:
        return []
    parts = _joined_of(kind)
    base = joined_class(*parts) if parts else ours
    return [
        name for name in names if name in vars(module) or getattr(kind, name, None) is not getattr(base, name, None)
    ]


def _joined_of(kind: type[Any]) -> tuple[type[Any], type[Any]] | None:
    """What a class was joined of; of torch's class for a parametrized module that which it was made of."""
    return getattr(kind, "_slipstream_parts", None)


def _parametrized(kind: type[Any], base: type[Any]) -> type[Any]:
    """Torch's class of a parametrized module, which has properties for what is computed, over another base."""
    return type(kind.__name__, (base,), {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")})


def tables(model: nn.Module) -> dict[str, Table]:
    """The tables of a model by parameter name; a tied one under its first name."""
    found: dict[int, Table] = {}
    for module in model.modules():
        if isinstance(module, _OneTable):
            found.setdefault(id(module.weight), module.table)
        elif isinstance(module, EmbeddingCollection):
            for table in module.table_of.values():
                found.setdefault(id(table.weight), table)
    result: dict[str, Table] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in found:
            found[id(parameter)].name = name
            result[name] = found[id(parameter)]
    return result
