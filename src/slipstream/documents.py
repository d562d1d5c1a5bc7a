"""Small files that come from outside, YAML and JSON: read whole, within bounds, into plain values.

What is read here may have been written by anybody. So nothing in it can construct an object (no tags), stand for more
than it is (aliases count as what they repeat), nest deeper than code may recurse, or hold text that cannot be printed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from slipstream.errors import ConfigError, DataError

MAX_YAML_BYTES = 1 << 20
MAX_JSON_BYTES = 32 << 20
MAX_DEPTH = 64
"""Lists and mappings within each other."""
MAX_VALUES = 100_000
"""Values of a YAML document, those that aliases repeat counted each time."""

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML = "tag:yaml.org,2002:"


class _Loader(_Safe):
    """Scalars as YAML 1.2 has them: 010 is not 8, 20:00 is not 1200, and a column may be called ``on`` or ``no``."""


_NUMBERS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+", "-+0123456789"),
    # As in YAML 1.1, with a point: a folder may be called 1e5, and numbers are taken from texts where they are wanted.
    "float": (
        r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(_YAML) not in _NUMBERS]
    for first, known in _Safe.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_YAML + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_bytes(path: str | Path, most: int) -> bytes:
    """The contents of a regular file of at most ``most`` bytes.

    Raises:
        DataError: It is missing, no regular file, larger, or may not be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError("is not a regular file", file=path, remedy="name a file")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read ({reason})", file=path, remedy="check the path and its permissions") from error
    if len(data) > most:
        raise DataError(f"has more than {most:,} bytes", file=path, remedy="check that it is the right file")
    return data


def read_text(path: str | Path, most: int) -> str:
    """The same as text, UTF-8 with or without a byte-order mark.

    Raises:
        DataError: As :func:`read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8", file=path, line=line, remedy="save it as UTF-8") from error


def read_yaml(path: str | Path) -> Any:
    """The one document of a YAML file as plain values; None when it is empty.

    Raises:
        DataError: As :func:`read_text` and :func:`parse_yaml`.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), file=path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings by name; empty when the file is.

    Raises:
        ConfigError: It cannot be read, is not YAML, or holds something else.
    """
    try:
        tree = read_yaml(path)
    except DataError as error:
        raise ConfigError(error.message, remedy=error.remedy) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        what = f"{path}: holds a {type(tree).__name__} where settings by name are expected"
        raise ConfigError(what, remedy="write one setting a line, as name: value")
    return tree


def parse_yaml(text: str, *, file: str | Path | None = None) -> Any:
    """YAML as plain values.

    Args:
        text: One document.
        file: Where it comes from, for messages.

    Raises:
        DataError: It is not YAML, holds a tag, a key twice or text that cannot be printed, is nested too deeply, or
            its aliases stand for too many values.
    """
    remedy = "correct the line"
    try:
        _check_events(text, file)
        tree = yaml.load(text, _Loader)
    except DataError:  # of ours; it is a ValueError too
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise DataError(
            f"is not YAML: {error.problem or error.context}", file=file, line=line, remedy=remedy
        ) from error
    except yaml.YAMLError as error:
        raise DataError(f"is not YAML: {str(error).splitlines()[0]}", file=file, remedy=remedy) from error
    except (ValueError, OverflowError) as error:
        # What looks like a number or a date and is none: 2020-13-45, 0x_, an integer of 5,000 digits.
        raise DataError(f"holds a value that is none: {error}", file=file, remedy="put it in quotes") from error
    check_texts(tree, file)
    return tree


def _check_events(text: str, file: str | Path | None) -> None:
    """Walks the document without building it; nothing here recurses."""
    # One entry a level: its anchor and the keys of a mapping; the values in it so far; whether a key comes next.
    stack: list[tuple[str | None, set[str] | None]] = []
    sizes: list[int] = [0]
    anchors: dict[str, int] = {}
    is_key: list[bool] = [False]
    documents = 0

    def refuse(what: str, event: Any, remedy: str) -> DataError:
        return DataError(what, file=file, line=event.start_mark.line + 1, remedy=remedy)

    def done(anchor: str | None, size: int) -> None:
        if anchor is not None:
            anchors[anchor] = size
        sizes[-1] += size
        is_key[-1] = not is_key[-1]

    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise refuse("holds a second document", event, "keep one document in a file")
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":  # "!" is what quotes leave
            raise refuse(f"tag {tag!r} is not allowed", event, "write the plain value")
        if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    raise refuse(f"alias {event.anchor!r} stands for nothing before it", event, "write the value")
                done(None, anchors[event.anchor])
            else:
                keys = stack[-1][1] if stack else None
                if keys is not None and is_key[-1]:
                    if event.value in keys and event.value != "<<":
                        raise refuse(f"{event.value!r} stands twice", event, "keep one of them")
                    keys.add(event.value)
                done(event.anchor, 1)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            mapping = isinstance(event, yaml.MappingStartEvent)
            if stack and stack[-1][1] is not None and is_key[-1]:
                raise refuse("a list or mapping is no name of a setting", event, "give it a name")
            stack.append((event.anchor, set() if mapping else None))
            sizes.append(1)
            is_key.append(mapping)
            if len(stack) > MAX_DEPTH:
                raise refuse(f"is nested more than {MAX_DEPTH} deep", event, "flatten it")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, _ = stack.pop()
            is_key.pop()
            done(anchor, sizes.pop())
        if sizes[-1] > MAX_VALUES:
            raise refuse(f"stands for more than {MAX_VALUES:,} values", event, "write less, and without aliases")


def read_json(path: str | Path) -> Any:
    """A JSON file as plain values.

    Raises:
        DataError: As :func:`read_text`, or it is not JSON, or holds a number or text that cannot be used.
    """
    text = read_text(path, MAX_JSON_BYTES)
    try:
        tree = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        remedy = "check that it is the right file"
        raise DataError(f"is not JSON: {error.msg}", file=path, line=error.lineno, remedy=remedy) from error
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", file=path, remedy="check that it is the right file") from error
    except RecursionError as error:
        raise DataError("is nested too deeply", file=path, remedy="check that it is the right file") from error
    check_texts(tree, path)
    return tree


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_texts(tree: Any, file: str | Path | None) -> None:
    """No NUL and no half of a surrogate pair: neither can be a path, and the second cannot be written.

    Args:
        tree: Nested dicts and lists.
        file: For the error.

    Raises:
        DataError: There is one.
    """
    waiting, seen = [tree], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise DataError(f"holds text that cannot be used: {value[:40]!a}", file=file, remedy="correct it")
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
