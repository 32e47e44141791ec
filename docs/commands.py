"""Makes docs/cli.md from the parsers of the commands, so that nothing about them is written twice.

`docs/pages.py` writes it; a test compares the page with the parsers.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final

from fastckpt.cli.parsers import COMMANDS, EXIT_CODES, Argument, arguments_of, module_of

PAGE: Final = Path(__file__).parent / "cli.md"

INTRODUCTION: Final = """# Command line

Made from the parsers by `docs/pages.py`; `fastckpt COMMAND --help` says the same, `fastckpt man` too. Each example
runs as a test.
"""

COMMON: Final = """## What holds for all

None of them executes anything in a file. torch is imported only where numbers need it: without it (it is the extra
`fastckpt[torch]`) `plot`, `run` and `demo` do not work, nor does `diff` beyond bytes and digests; each says so.

Paths may stand before, between and after the options; behind `--` nothing is an option. Data goes to stdout, everything
else to stderr; progress bars appear only on a terminal; `NO_COLOR` is honoured. With `--json` a command prints one
strict JSON object on stdout; [json.md](json.md) describes every field. What "intact", "whole", "identical" and other
verdicts promise is in [verdicts.md](verdicts.md). Codecs are explained in [recipes.md](recipes.md#smaller-files).
What is read can be a URL (`fastckpt inspect s3://bucket/state.fckpt`): see
[recipes.md](recipes.md#a-bucket-a-web-server-the-hub).

Exit codes:
"""

_IN_ALL: Final = {"--help", "--json"}


def _cell(text: str) -> str:
    """Text that can stand in a cell of a table."""
    return re.sub(r"([|*])", r"\\\1", text)


def _argument(argument: Argument) -> str:
    """A line of the table of arguments."""
    takes = "|".join(argument.choices) if argument.names and argument.choices else argument.takes
    named = ", ".join(f"`{_cell(f'{name} {takes}'.strip())}`" for name in argument.names) or f"`{argument.takes}`"
    return f"| {named} | {_cell(argument.about)} |"


def _description(text: str) -> str:
    """A docstring in Markdown: lines that are set in are commands."""
    parts = []
    for paragraph in text.split("\n\n"):
        if all(line.startswith("  ") for line in paragraph.splitlines()):
            parts.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        else:
            parts.append(paragraph.replace("*", r"\*"))
    return "\n\n".join(parts)


def _command(command: str) -> str:
    module = module_of(command)
    positional = [each for each in arguments_of(command) if not each.names]
    options = [each for each in arguments_of(command) if each.names and not _IN_ALL & set(each.names)]
    parts = [f"## {command}", _description(inspect.cleandoc(module.__doc__ or ""))]
    if positional or options:
        parts.append("\n".join(("| | |", "|---|---|", *map(_argument, (*positional, *options)))))
    parts.append("\n".join(("```sh", *module.EXAMPLES, "```")))
    return "\n\n".join(parts) + "\n"


def render() -> str:
    """The page in Markdown."""
    listed = ("| | |", "|---|---|", *(f"| [{name}](#{name}) | {_cell(about)} |" for name, about in COMMANDS.items()))
    codes = ("| | |", "|--:|---|", *(f"| {code} | {_cell(meaning)} |" for code, meaning in EXIT_CODES))
    return "\n".join((INTRODUCTION, *listed, "", COMMON, *codes, "", *map(_command, COMMANDS)))
