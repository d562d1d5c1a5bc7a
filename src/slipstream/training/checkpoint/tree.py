"""A state as JSON and tensors: nested dicts, lists and tuples of tensors, numbers, texts and None, and back.

JSON holds the tree, with ``{"$tensor": name}`` where a tensor stands; a tensor that stands twice is kept once. What
JSON lacks is marked alike: ``$tuple``, ``$float`` (inf, nan), and ``$items`` for dicts whose keys are not all texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from slipstream.errors import CheckpointError


def split_tree(state: Any) -> tuple[JsonValue, dict[str, Tensor]]:
    """Takes the tensors out of a state.

    Returns:
        The tree, and the tensors by the name they have in it: the path to their first place.

    Raises:
        TypeError: The state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}

    def walk(value: Any, path: str) -> JsonValue:
        match value:
            case Tensor():
                return {"$tensor": name_of(value, path)}
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"$float": str(value)}
            case Mapping():
                if all(isinstance(key, str) and not key.startswith("$") for key in value):
                    return {key: walk(entry, f"{path}/{key}") for key, entry in value.items()}
                return {"$items": [[walk(key, path), walk(entry, f"{path}/{key}")] for key, entry in value.items()]}
            case tuple():
                return {"$tuple": [walk(entry, f"{path}/{i}") for i, entry in enumerate(value)]}
            case list():
                return [walk(entry, f"{path}/{i}") for i, entry in enumerate(value)]
            case _:
                raise TypeError(f"{path}: a state cannot hold a {type(value).__name__}")

    def name_of(tensor: Tensor, path: str) -> str:
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in known:
            return known[key]
        name = path.removeprefix("/")
        while name in tensors:
            name += "'"
        tensors[name] = tensor
        known[key] = name
        return name

    return walk(state, ""), tensors


def join_tree(tree: JsonValue, tensors: Mapping[str, Tensor]) -> Any:
    """Puts the tensors back; the inverse of :func:`split_tree`.

    Raises:
        CheckpointError: The tree names a tensor that is not there.
    """
    if isinstance(tree, list):
        return [join_tree(entry, tensors) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"$tensor": str(name)}:
            if name not in tensors:
                raise CheckpointError(f"tensor {name!r} is missing")
            return tensors[name]
        case {"$float": str(text)}:
            return float(text)
        case {"$tuple": list(entries)}:
            return tuple(join_tree(entry, tensors) for entry in entries)
        case {"$items": list(pairs)}:
            return {join_tree(pair[0], tensors): join_tree(pair[1], tensors) for pair in pairs}  # type: ignore[index]
        case _:
            return {key: join_tree(entry, tensors) for key, entry in tree.items()}
