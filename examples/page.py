"""Writes the figures and the recipes into ``docs/interop.md``: ``python -m examples.page``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "interop.md"
RECORDS = ROOT / "benchmarks" / "results"
_NAMES = {"fuxictr": "FuxiCTR", "deepctr_torch": "DeepCTR-Torch", "recbole": "RecBole", "torchrec": "TorchRec"}


def rendered(text: str) -> str:
    """The page with the figures of the records and the recipes as they are now."""
    marks = r"(<!-- interop -->\n).*?(<!-- /interop -->)"
    text = re.sub(marks, lambda m: m[1] + _table() + m[2], text, flags=re.DOTALL)
    fence = r"(^```python title=\"(examples/\w+/recipe\.py)\"\n).*?(^```$)"
    return re.sub(fence, lambda m: m[1] + _code(ROOT / m[2]) + m[3], text, flags=re.DOTALL | re.MULTILINE)


def _code(recipe: Path) -> str:
    """A recipe without the docstring of its file."""
    return recipe.read_text(encoding="utf-8").split('"""\n', 1)[1].lstrip("\n")


def _table() -> str:
    head = (
        "| library | model | metric | its own | nothing skipped | lazy | random half | its own, s | ours, s | faster |"
        "\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    lines = [_line(row) for name in _NAMES for row in _rows(RECORDS / f"interop_{name}.json")]
    return head + "".join(lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _line(row: dict[str, Any]) -> str:
    metrics = " | ".join(f"{row[kind]:.4f}" for kind in ("own", "none_dense", "lazy", "random_half"))
    times = f"{row['seconds_own']:.2f} | {row['seconds_ours']:.2f} | {row['speedup']:.1f}x"
    return f"| {_NAMES[row['library']]} | {row['model']} | {row['metric']} | {metrics} | {times} |\n"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
