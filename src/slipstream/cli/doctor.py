"""``slipstream doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from slipstream.cli import output


def doctor(
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for the self-check, in seconds.")] = 5.0,
) -> None:
    """Print versions and what computes, and check the kernels against the reference."""
    from slipstream import doctor as checks

    output.facts(checks.describe())
    output.say(f"kernels compiled or loaded in {checks.compile_kernels():.1f} s")
    findings = checks.self_check(seconds)
    marks = {True: ("ok  ", "green"), False: ("BAD ", "red"), None: ("note", "yellow")}
    for finding in findings:
        word, colour = marks[finding.healthy]
        output.console.print(Text.assemble((word, colour), f"  {finding.name}: {finding.detail}"), soft_wrap=True)
    if any(finding.healthy is False for finding in findings):
        raise typer.Exit(1)
