"""Print the manual page of fastckpt, for man and groff. It is made from what the commands take."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Final, TypedDict

import fastckpt
from fastckpt.cli.parsers import COMMANDS, EXIT_CODES, arguments_of, module_of, parser_of
from fastckpt.cli.render import Output

EXAMPLES: Final = (
    "fastckpt man >~/.local/share/man/man1/fastckpt.1",
    "fastckpt man | man -l -",
)


class ManDocument(TypedDict):
    page: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``fastckpt man`` takes no arguments."""


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the page."""
    facts: ManDocument = {"page": "\n".join(_page())}
    out.show(facts, lambda facts: facts["page"].splitlines())
    out.document(facts)
    return 0


def _page() -> Iterator[str]:
    yield f'.TH FASTCKPT 1 "" "fastckpt {fastckpt.__version__}"'
    yield from (".SH NAME", r"fastckpt \- checkpoints that load fast and prove every byte")
    yield from (".SH SYNOPSIS", r".B fastckpt", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIPATHS\fR]")
    yield ".SH COMMANDS"
    for command in COMMANDS:
        yield from _command(command)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", str(code), _text(meaning))
    yield from (".SH ENVIRONMENT", ".TP", "NO_COLOR", "No colours, also on a terminal.")
    yield from (".TP", "NANOCHAT_BASE_DIR", r"Where nanochat keeps its checkpoints; without it ~/.cache/nanochat.")


def _command(command: str) -> Iterator[str]:
    parser = parser_of(command)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield from (f".SS {_text(command)}", ".nh", f".B {_text(usage)}", ".hy")
    for paragraph in inspect.cleandoc(module_of(command).__doc__ or "").split("\n\n"):
        yield ".PP"
        # Lines that are set in are commands.
        indented = any(line.startswith(" ") for line in paragraph.splitlines())
        yield from (".nf",) if indented else ()
        yield from map(_text, paragraph.splitlines())
        yield from (".fi",) if indented else ()
    for argument in arguments_of(command):
        takes = f" \\fI{_text(argument.takes)}\\fR" if argument.takes else ""
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in argument.names)
        yield from (".TP", f"{names}{takes}".strip(), _text(argument.about))
    yield from (".PP", "Examples:", ".nf", *(_text(f"  {line}") for line in module_of(command).EXAMPLES), ".fi")


def _text(text: str) -> str:
    """Text in which nothing is taken for a command of roff."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped[:1] in (".", "'") else escaped
