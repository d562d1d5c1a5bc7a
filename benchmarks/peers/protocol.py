"""What the driver and a contestant's process say to each other: one JSON object a line, requests in, replies out.

Standard library only: a peer's interpreter has nothing of ours installed.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

PHASES = ("input", "forward", "backward", "update")
"""Of a training step. A peer that updates its tables in the backward pass has that time in ``backward``."""


class ProtocolError(ValueError):
    """A line that is no message of this protocol."""


@dataclass(frozen=True)
class Job:
    """What a contestant trains."""

    module: str
    """Module that makes it, such as ``benchmarks.peers.torchrec.peer``: has ``make(job) -> contestant``."""
    data: str
    """Folder that :mod:`benchmarks.peers.datasets` wrote."""
    train: list[int]
    """First sample to train on, and the first that is not; the first is 0."""
    test: list[int]
    """First sample to score, and the first that is not."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the contestant: model, optimizer, rates, batch size, policy."""
    threads: int = 1
    """Threads to compute with."""
    seed: int = 0
    """Seed of initial values and draws."""
    epochs: int = 1
    """Passes over the pairs, for data that is ranked."""


@dataclass(frozen=True)
class Open:
    """Make the contestant; answered by :class:`Opened`, or by :class:`Missing`."""

    job: Job


@dataclass(frozen=True)
class Opened:
    """The contestant is ready."""

    versions: dict[str, str]
    """Of the packages that do its work."""
    rss_before: int
    """Bytes resident before the contestant was made, libraries loaded."""
    anonymous_before: int
    """Those of them that are no file's."""
    rows: int
    """Rows of all its tables."""


@dataclass(frozen=True)
class Missing:
    """A package is not installed."""

    reason: str


@dataclass(frozen=True)
class Steps:
    """Train so many steps; answered by :class:`Spent`."""

    count: int


@dataclass(frozen=True)
class Spent:
    """Time of some steps."""

    samples: int
    """Samples trained on."""
    seconds: dict[str, float]
    """By phase (``PHASES``), all steps together."""


@dataclass(frozen=True)
class Fit:
    """Train on all samples once, or on pairs for the job's epochs; answered by :class:`Fitted`."""

    mode: Literal["holdout", "prequential", "ranking"]
    """holdout: predict the test samples at each mark. prequential: predict each chunk, then train on it. ranking: give
    the vectors after each epoch."""
    out: str
    """Folder for predictions."""
    marks: list[int] = field(default_factory=list)
    """holdout: numbers of trained samples at which the test samples are predicted; the last is all."""
    chunk: int = 0
    """prequential: samples predicted at a time."""


@dataclass(frozen=True)
class Point:
    """Where a training stood."""

    samples: int
    """Samples of the data that had passed."""
    seconds: float
    """Of training, predictions and writing not counted."""
    files: list[str] = field(default_factory=list)
    """holdout: scores of the test samples. ranking: users, items (rows' scores are their products, a column of ones
    against the items' bias included), or one file of ranked lists ``[U, K]`` of the users in ``users.npy`` beside it.
    """


@dataclass(frozen=True)
class Fitted:
    """A training."""

    points: list[Point]
    """In order; the last is the end."""
    scores: str = ""
    """prequential: file with the score of every sample, given before it was trained on."""
    share_of_inputs: float = 1.0
    """Inputs trained on ÷ inputs that passed."""


@dataclass(frozen=True)
class Close:
    """Nothing more comes; answered by :class:`Closed`, and the process ends."""


@dataclass(frozen=True)
class Closed:
    """The end."""

    peak_rss: int
    """Most bytes that were resident."""
    table_bytes: int
    """Bytes of tables and their optimizer state now, 0 where it cannot say."""


_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Open, Opened, Missing, Steps, Spent, Fit, Fitted, Close, Closed)
}
Message = Open | Opened | Missing | Steps | Spent | Fit | Fitted | Close | Closed


def encode(message: Message) -> str:
    """The message as a line."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}) + "\n"


def decode(line: str) -> Message:
    """The message in a line.

    Raises:
        ProtocolError: It holds none.
    """
    try:
        tree = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {line[:200]!r}") from error
    kind = tree.pop("kind", None) if isinstance(tree, dict) else None
    if kind not in _KINDS:
        raise ProtocolError(f"no message: {line[:200]!r}")
    return _build(_KINDS[kind], tree, kind)


def _build(kind: Any, tree: Any, where: str) -> Any:
    """A value of a type, checked all the way down."""
    if is_dataclass(kind):
        known = {entry.name for entry in fields(kind)}
        if not isinstance(tree, dict) or not tree.keys() <= known:
            raise ProtocolError(f"{where}: expected {', '.join(sorted(known))}")
        types_of = typing.get_type_hints(kind)
        values = {name: _build(types_of[name], value, f"{where}.{name}") for name, value in tree.items()}
        try:
            return kind(**values)
        except TypeError as error:
            raise ProtocolError(f"{where}: {error}") from error
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if tree not in arguments:
            raise ProtocolError(f"{where}: {tree!r} is none of {', '.join(map(repr, arguments))}")
        return tree
    if origin is list and isinstance(tree, list):
        return [_build(arguments[0], value, where) for value in tree]
    if origin is dict and isinstance(tree, dict):
        return {key: _build(arguments[1], value, f"{where}.{key}") for key, value in tree.items()}
    if kind is Any:
        return tree
    if kind is float and isinstance(tree, int | float) and not isinstance(tree, bool):
        return float(tree)
    if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and type(tree) is kind:
        return tree
    raise ProtocolError(f"{where}: expected {kind}, got {tree!r}")
