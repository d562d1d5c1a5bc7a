"""From a YAML file, flags and ``--set a.b=value`` to one validated configuration. Later ones win, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from slipstream import documents
from slipstream.errors import ConfigError, DataError

Config = TypeVar("Config", bound=BaseModel)
_SHOWN = 5
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
    tree = documents.read_settings(file) if file is not None else {}
    for key, value in flags.items():
        if value is not None:
            put(tree, key, value)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment[:60]!r}: no name=value", remedy="write --set optimizer.lr=0.01")
        try:
            value = documents.parse_yaml(text)
        except DataError as error:
            raise ConfigError(f"--set {assignment[:60]!r}: the value {error.message}", remedy="quote it") from error
        put(tree, key.strip(), value)
    return validate(kind, tree, file)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings; choosing another model or policy drops the settings of the one before.

    Settings that stand there without a name belong to the one that is chosen.

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
            raise ConfigError(f"{key}: {part} has no settings of its own", remedy=f"set {part} itself")
    if chooses:
        chosen = branch.get(last)
        if isinstance(chosen, dict) and chosen.setdefault("name", value) == value:
            return
        value = {"name": value}
    branch[last] = value


def validate(kind: type[Config], tree: Mapping[str, Any], file: Path | None = None) -> Config:
    """A configuration of ``kind``, or a :class:`ConfigError` that names each wrong setting and the file, if any."""
    place = "" if file is None else f"{file}: "
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        wrong = [_problem(dict(entry)) for entry in error.errors(include_url=False)]
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise ConfigError(f"{place}{', '.join(wrong[:_SHOWN])}{more}", remedy=_remedy(kind, error)) from error


def _problem(entry: Mapping[str, Any]) -> str:
    """One wrong setting in words; pydantic's own name types that no user of the command line knows."""
    where = ".".join(_as_written(entry["loc"]))
    context = entry.get("ctx", {})
    if entry["type"] == "union_tag_invalid":
        where += ".name"
    said = {
        "extra_forbidden": "there is no such setting",
        "missing": "is needed",
        "union_tag_not_found": f"its name is needed ({where}.name=…)",
        "union_tag_invalid": f"there is no {context.get('tag')!r}; choose of {context.get('expected_tags')}",
    }.get(entry["type"], entry["msg"].removeprefix("Value error, "))
    return f"{where or repr('')}: {said}" if entry["loc"] else str(said)


def _as_written(place: Sequence[str | int]) -> list[str]:
    """The parts of a setting's name, without the name of the chosen model or policy that pydantic puts among them."""
    parts = [str(part) for part in place]
    chosen = {i + 1 for i, part in enumerate(parts[:-2]) if part in CHOSEN_BY_NAME}
    return [part for i, part in enumerate(parts) if i not in chosen]


def _remedy(kind: type[BaseModel], error: ValidationError) -> str:
    known = ", ".join(kind.model_fields)
    unknown = [entry for entry in error.errors() if entry["type"] == "extra_forbidden" and len(entry["loc"]) == 1]
    if unknown:
        return f"the settings are {known}"
    absent = any(entry["type"] in ("missing", "union_tag_not_found") for entry in error.errors())
    return "add it to the command line, or to the file of --config" if absent else "correct the setting"
