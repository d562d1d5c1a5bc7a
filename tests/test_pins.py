"""constraints.txt holds the exact versions of the environment; checked against what is installed, without a network."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [
    line.split("#")[0].strip()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.split("#")[0].strip()
]
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}


def wanted() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_line_is_one_exact_version_and_none_stands_twice() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+", line) for line in LINES)
    twice = [
        name
        for name, count in Counter(canonicalize_name(line.partition("==")[0]) for line in LINES).items()
        if count > 1
    ]
    assert twice == []


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_each_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(Version(pin)), f"{pin} is not {requirement.specifier}"
    assert requirement.specifier, f"{requirement.name} has no lower bound"


def closure() -> set[str]:
    """Every package that an installation of the project with its test tools brings, as far as it is installed."""
    names = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    waiting, seen = [Requirement(text) for text in names], set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in seen or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        seen.add(name)
        waiting += [Requirement(text) for text in needs]
    return seen


def test_whatever_they_bring_is_pinned_too() -> None:
    missing = sorted(name for name in closure() - PINS.keys() if name not in ("setuptools", "slipstream-rec"))
    assert missing == []


def test_what_is_installed_is_what_is_pinned() -> None:
    found = {name: metadata.version(name) for name in closure() & PINS.keys()}
    other = {name: (version, PINS[name]) for name, version in found.items() if version.split("+")[0] != PINS[name]}
    if other:
        pytest.skip(f"another environment than that of constraints.txt: {other}")
