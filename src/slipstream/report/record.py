"""A measurement as data: what was run, where, on what, and what came out. Kept under ``benchmarks/results``."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream import documents
from slipstream.data.atomic import write_text
from slipstream.errors import DataError
from slipstream.report.machine import Machine, commit, describe_machine, versions


def command_line() -> str:
    """The command that started this process, without the folders of its program: ``slipstream bench step --quick``."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


class Record(BaseModel):
    """One benchmark's outcome."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Name of the benchmark."""
    date: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""
    command: str = Field(default_factory=command_line)
    """The command that makes this record again."""
    machine: Machine = Field(default_factory=describe_machine)
    versions: dict[str, str] = Field(default_factory=versions)
    commit: str | None = Field(default_factory=commit)
    dataset: str = ""
    """Name and fingerprint of the data, or how it was generated."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """Everything a reader must know to judge the figures: batch size, dimensions, threads, peers, ``--quick``."""
    ratios: dict[str, float] = Field(default_factory=dict)
    """Ours against each peer; above 1 is faster."""
    quality: dict[str, float] = Field(default_factory=dict)
    """AUC and the like, measured in the same run."""
    rows: list[dict[str, Any]] = Field(default_factory=list)
    """The measurements behind the ratios, with p20/p50/p80 in seconds."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Single trainings, where a benchmark makes many (frontier)."""

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON; a reader never sees half a file.

        Args:
            path: The file; its folder is created.
        """
        path = Path(path)
        write_text(path, self.model_dump_json(indent=2) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record.

        Raises:
            DataError: If the file is not there, or holds something else.
        """
        if not Path(path).exists():
            raise DataError("no such record", file=path, remedy="name a file that `slipstream bench --json` wrote")
        tree = documents.read_json(path)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            reason = f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            remedy = "name a file that `slipstream bench --json` wrote"
            raise DataError(f"not a benchmark record ({reason})", file=path, remedy=remedy) from error
