"""Writes `docs/commands.md`, the reference of the command line, from the commands themselves."""

import inspect
from pathlib import Path
from typing import Any

import typer.main

from numwatch.cli.app import app

PAGE = Path(__file__).with_name("commands.md")
_HEAD = """# The commands

Written by `docs/write_commands.py` from the commands' own help. Each takes `--help`.
Bad input gives one line on standard error and exit code 2.
"""


def page() -> str:
    """Returns the text of the page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([_HEAD, *(_section(name, one) for name, one in group.commands.items())])


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = " ".join(_placeholder(one) for one in arguments)
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    rows = [
        f"| {_names(one)} | {' '.join((one.help or '').split())} | {_default(one)} |"
        for one in (*arguments, *options)
    ]
    table = "\n".join(["| | | default |", "| --- | --- | --- |", *rows])
    usage = " ".join(word for word in ("numwatch", name, words, "[OPTIONS]") if word)
    return f"## numwatch {name}\n\n```text\n{usage}\n```\n\n{text}\n\n{table}\n"


def _placeholder(argument: Any) -> str:
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required or parameter.default in (None, False, "", (), []):
        return ""
    return f"`{parameter.default}`" if isinstance(parameter.default, str | int | float) else ""


if __name__ == "__main__":
    PAGE.write_text(page())
