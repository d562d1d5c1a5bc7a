"""Blocks of code on the pages, and how a page of them is run as written, in a folder of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from slipstream.cli.entry import run as slipstream

NOT_RUN = "Not run by the tests: "
"""How the title of a block begins that cannot run; the reason follows."""
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"[|&;<>$`(){}*?~]|^\s*#")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is run here; the recipes of examples/ are run with the libraries they are for."""
        return self.language in ("python", "bash") and not self.title.startswith((NOT_RUN, "examples/"))


def blocks(page: Path) -> list[Block]:
    """All of a page, in order."""
    found = []
    for language, info, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]*)"', info)
        found.append(Block(language, title[1] if title else "", text))
    return found


def provide(folder: Path) -> None:
    """What pages take for granted: two days of ratings, their pairs, a schema, a small configuration."""
    draw = np.random.default_rng(0)
    for day, name in enumerate(("ratings", "tomorrow")):
        size = 2000 - 1000 * day
        users, items = draw.integers(0, 50 + 20 * day, size), draw.zipf(1.4, size) % 40
        stamp = np.arange(size) + 86_400 * day
        table = {"user": [f"u{user}" for user in users], "item": [f"i{item}" for item in items], "time": stamp}
        clicked = ((users + items) % 3 == 0).astype(np.int64)
        pl.DataFrame({**table, "click": clicked}).write_parquet(folder / f"{name}.parquet")
    pairs = pl.read_parquet(folder / "ratings.parquet").select("user", "item").unique(maintain_order=True)
    pairs.write_parquet(folder / "pairs.parquet")
    (folder / "schema.yaml").write_text("label: click\ntime: time\ncategorical: [user, item]\n", encoding="utf-8")
    model = "model: {name: dlrm, embedding_dim: 4, top: [8]}\nbatch_size: 64\nlog_every: 5\n"
    (folder / "config.yaml").write_text(model, encoding="utf-8")


def run_page(page: Path, folder: Path) -> None:
    """Runs the blocks of a page in order; Python ones share their names, all of them the current folder."""
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.runs and block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
        elif block.runs:
            run_shell(block.text, folder)


def run_shell(text: str, folder: Path) -> None:
    """Runs a block of shell commands; those of ours that need no shell in this process, which spares the imports."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    plain = [re.sub(r"\s+#.*$", "", line) for line in lines]
    if all(line.startswith("slipstream ") and not _SHELL.search(line) for line in plain):
        for line in plain:
            assert slipstream(shlex.split(line)[1:]) == 0, line
        return
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "slipstream").write_text(f'#!/bin/sh\nexec {sys.executable} -m slipstream "$@"\n', encoding="utf-8")
    (tools / "slipstream").chmod(0o755)
    # A here-document, and what stands before the first command of ours, go to bash alone; the rest as above.
    head, cut, rest = text.partition("\nEND\n")
    if cut and rest.strip():
        run_shell(head + cut, folder)
        run_shell(rest, folder)
        return
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(source)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
