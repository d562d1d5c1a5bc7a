"""The corpus: every way we know to hand the command line something that it must refuse, each with a name.

A case writes its files into an empty folder and says which command is given them. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path], list[str]]
FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True)
class Case:
    """Something to be refused."""

    name: str
    """Reader and damage: ``criteo/empty``."""
    build: Build
    """Writes the files below a folder; returns the arguments of the command."""
    says: tuple[str, ...] = ()
    """Texts that the line must hold: the place, as a rule."""

    def __str__(self) -> str:
        return self.name


def all_cases() -> Iterator[Case]:
    """Every case, in a fixed order."""
    from tests.malformed import configs, parquet, stored, text

    for module in (text, parquet, configs, stored):
        yield from module.cases()
