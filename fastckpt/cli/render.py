"""What a command has to say, as text or as JSON.

A command makes facts: typed dicts and dataclasses, which docs/json.md
describes. `Output.show` prints one of them as text at once, `Output.document`
prints all of them as one JSON document at the end; each does nothing when the
other is wanted, so both come from the same facts. Data goes to stdout, notes
and errors to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any, Final, NamedTuple, TypedDict, TypeVar

from fastckpt.cli.write_json import write_json
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.findings import FindingFacts
from fastckpt.remote.url import hide_secrets
from fastckpt.stored.plain import plain

T = TypeVar("T")


class ErrorFacts(TypedDict):
    type: str
    message: str
    path: str | None
    offset: int | None
    tensor: str | None
    chunk: int | None
    expected: object
    actual: object
    next: str | None


class ErrorDocument(TypedDict):
    error: ErrorFacts


_SHOWN_RANGES: Final = 20
_STYLES: Final = {"good": "32", "bad": "31", "warn": "33", "bold": "1", "dim": "2"}


class Styled(NamedTuple):
    """A line of text with a style: good, bad, warn, bold or dim."""

    text: str
    style: str


class Output:
    """Where a command says what it found.

    Args:
        as_json: Whether stdout carries a JSON document instead of text.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # A file name that is not valid text must not end the program.
                stream.reconfigure(errors="backslashreplace")

    def show(self, facts: T, lines: Callable[[T], Iterable[str | Styled]]) -> None:
        """Print ``lines(facts)``, unless JSON is wanted."""
        if not self.as_json:
            for line in lines(facts):
                _print(line, sys.stdout)

    def document(self, facts: Mapping[str, object]) -> None:
        """Print the JSON document, if JSON is wanted."""
        if self.as_json:
            write_json(facts, partial(_put, sys.stdout))
            _put(sys.stdout, "\n")

    def note(self, text: str, style: str = "") -> None:
        """One line for the person at the terminal, on stderr."""
        sys.stdout.flush()
        _print(Styled(f"fastckpt: {text}", style), sys.stderr)
        sys.stderr.flush()

    def error(self, error: FastckptError, *, kind: str | None = None) -> None:
        """The error that ended the command: on stderr, and as JSON if that is wanted."""
        for name, value in vars(error).items():
            if isinstance(value, str):  # What was typed is repeated, and may be a URL.
                setattr(error, name, hide_secrets(value))
        document: ErrorDocument = {"error": error_facts(error, kind=kind)}
        self.document(document)
        self.note(f"error: {error}", "bad")

    def flush(self) -> None:
        """Write out what is buffered. Raises OSError if nobody takes it."""
        sys.stdout.flush()

    def abandon(self) -> None:
        """Give up stdout, so that the interpreter does not complain when it flushes it at the end."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def error_facts(error: FastckptError, *, kind: str | None = None) -> ErrorFacts:
    """An error as plain values."""
    return {
        "type": kind or type(error).__name__,
        "message": error.message,
        "path": error.path,
        "offset": error.offset,
        "tensor": error.tensor,
        "chunk": error.chunk,
        "expected": error.expected,
        "actual": error.actual,
        "next": error.next_step,
    }


def _print(line: str | Styled, stream: IO[str]) -> None:
    text, style = line if isinstance(line, Styled) else (line, "")
    # Names come from files: what they hold must not steer the terminal.
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if style and _has_colour(stream):
        text = f"\033[{_STYLES[style]}m{text}\033[0m"
    _put(stream, text + "\n")


def _put(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CheckpointIOError(f"cannot write the output: {error.strerror}", errno=error.errno) from error


def _has_colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def value_text(value: Any, limit: int = 100) -> str:
    """A plain value on one line, cut to ``limit`` characters."""
    try:
        text = repr(plain(value) if isinstance(value, int) else value)
    except ValueError:  # There is a very long int in it.
        text = repr(plain(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def columns(rows: Sequence[Sequence[str]], *, indent: int = 2, right: Sequence[int] = ()) -> list[str]:
    """Rows with their cells aligned; ``right`` names the columns that end where the widest cell does."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def range_lines(findings: Sequence[FindingFacts]) -> Iterator[str]:
    """A line for each finding about bytes: where they are, and what is said of them."""
    for finding in findings[:_SHOWN_RANGES]:
        first, size = finding["offset"], finding["size"]
        yield f"  {f'bytes {first}-{first + size - 1}' if size else f'byte {first}'}  {finding['message']}"
    if len(findings) > _SHOWN_RANGES:
        yield f"  ... and {len(findings) - _SHOWN_RANGES} more findings (--json lists all)"
