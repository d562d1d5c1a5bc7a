"""The reference of all settings, from the typed configurations and the text under each of their fields."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from slipstream.data.prepare import PrepareOptions
from slipstream.data.schema import MultiHot, Schema
from slipstream.models import ModelConfig
from slipstream.policies import PolicyConfig
from slipstream.training.config import CheckpointConfig, OptimizerConfig, RankingConfig, ScheduleConfig, TrainConfig

HEAD = """# Configuration

Every setting of `slipstream train`, `profile` and `inspect --learning-curve`, as a YAML file takes it (`--config`), and
`--set` by its dotted name: `--set optimizer.lr=0.01`. Flags win over the file, `--set` wins over flags. A run folder's
`config.yaml` holds all of them, defaults included.
"""


def page() -> str:
    """All settings."""
    parts = [HEAD, _section("Training", TrainConfig, "")]
    for name, kind in (
        ("optimizer", OptimizerConfig),
        ("schedule", ScheduleConfig),
        ("ranking", RankingConfig),
        ("checkpoint", CheckpointConfig),
        ("prepare", PrepareOptions),
    ):
        parts.append(_section(f"{name}", kind, f"{name}."))
    for section, union in (("model", ModelConfig), ("policy", PolicyConfig)):
        for kind in get_args(get_args(union)[0]):
            name = kind.model_fields["name"].default
            parts.append(_section(f"{section}: {name}", kind, f"{section}."))
    parts += [
        "## Schema of a CSV or Parquet file\n\nA file of its own, for `slipstream prepare --schema` and the setting "
        "`columns`.\n",
        _table(Schema, ""),
        "Of a column under `multi_hot`:\n",
        _table(MultiHot, ""),
    ]
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel], prefix: str) -> str:
    said = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return f"## {title}\n\n{_plain(said)}\n\n{_table(kind, prefix)}"


def _table(kind: type[BaseModel], prefix: str) -> str:
    texts = field_texts(kind)
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            shown = "see below"
        elif default is PydanticUndefined:
            shown = "needed"
        else:
            shown = f"`{default}`"
        lines.append(f"| `{prefix}{name}` | {shown} | {_plain(texts.get(name, ''))} |")
    return "\n".join(lines) + "\n"


def field_texts(kind: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a model, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _plain(text: str) -> str:
    """Docstring text as Markdown, within a table's cell."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`").replace("|", "\\|")
