"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

from typing import Any

import typer

from slipstream.cli.app import EPILOG, app


def page() -> str:
    """All commands, their arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line\n", f"{group.help}\n", _options(group), f"{EPILOG}\n"]
    for name, command in group.commands.items():
        parts += _command(f"slipstream {name}", command)
    return "\n".join(parts)


def _command(name: str, command: Any, level: str = "##") -> list[str]:
    """A command, or a group of them."""
    parts = [f"{level} {name}\n", f"{command.help}\n"]
    if hasattr(command, "commands"):
        for inner, one in command.commands.items():
            parts += _command(f"{name} {inner}", one, f"{level}#")
        return parts
    return [*parts, f"```text\n{_usage(name, command)}\n```\n", _options(command)]


def _usage(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    shown: list[str] = []
    for argument in arguments:
        text = argument.name.upper() + ("..." if argument.nargs == -1 else "")
        shown.append(text if argument.required else f"[{text}]")
    return " ".join([name, *shown, "[OPTIONS]"])


def _options(command: Any) -> str:
    lines = ["| | what it is | default |", "|---|---|---|"]
    for parameter in command.params:
        name = "/".join((*parameter.opts, *parameter.secondary_opts))
        shown = parameter.name.upper() if parameter.param_type_name == "argument" else name
        default = parameter.default
        plain = "" if default is None or callable(default) or default is False or default == [] else f"`{default}`"
        said = " ".join((parameter.help or "").split()).replace("|", "\\|")
        lines.append(f"| `{shown}` | {said} | {plain} |")
    return "\n".join(lines) + "\n"
