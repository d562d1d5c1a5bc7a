"""From a YAML file, flags and ``--set a.b=value`` to one validated configuration. Later ones win, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from slipstream.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)
CHOSEN_BY_NAME = ("model", "policy", "inputs", "rows")
"""Sections whose ``name`` decides which other settings they have; ``inputs`` and ``rows`` are those of a policy."""


def resolve(kind: type[Config], file: Path | None, flags: Mapping[str, Any], assignments: Iterable[str] = ()) -> Config:
    """Merge all sources of settings and validate the outcome.

    Args:
        kind: The configuration's type.
        file: A YAML file, or None.
        flags: Values of flags by dotted name; None means the flag was not given.
        assignments: Texts ``a.b=value`` with the value in YAML.

    Raises:
        ConfigError: If a source cannot be read or the outcome is not valid; names the setting.
    """
    tree = read_yaml(file) if file is not None else {}
    for key, value in flags.items():
        if value is not None:
            put(tree, key, value)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment!r} is not of the form name=value")
        try:
            put(tree, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML") from error
    return validate(kind, tree)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: If the file cannot be read or holds something else.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML ({error})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: holds a {type(tree).__name__} where settings by name are expected")
    return tree


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings; choosing another model or policy drops the settings of the one before.

    Args:
        tree: Changed in place.
        key: Dotted name.
        value: The value.

    Raises:
        ConfigError: If a part of the name but the last is a plain value.
    """
    *path, last = key.split(".")
    chooses = last == "name" and bool(path) and path[-1] in CHOSEN_BY_NAME
    if chooses:
        *path, last = path
    branch = tree
    for part in path:
        # A section may be written as its name alone: `policy: random`.
        if isinstance(branch.get(part), str) and part in CHOSEN_BY_NAME:
            branch[part] = {"name": branch[part]}
        branch = branch.setdefault(part, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{key}: {part} has no settings of its own")
    if chooses:
        chosen = branch.get(last)
        if isinstance(chosen, dict) and chosen.get("name") == value:
            return
        value = {"name": value}
    branch[last] = value


def validate(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """A configuration of ``kind``, or a :class:`ConfigError` that names each wrong setting."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        wrong = []
        for entry in error.errors(include_url=False):
            where = ".".join(str(part) for part in entry["loc"])
            wrong.append(f"{where}: {entry['msg']}" if where else entry["msg"])
        raise ConfigError("; ".join(wrong)) from error
