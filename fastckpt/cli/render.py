"""What a command has to say, as text or as JSON.

A command makes facts: plain dicts. `Output.show` prints one of them as text
at once, `Output.document` prints all of them as one JSON document at the end;
each does nothing when the other is wanted, so both come from the same facts.
Data goes to stdout, notes and errors to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Final, NamedTuple

from fastckpt.errors import CheckpointIOError, FastckptError

Facts = dict[str, Any]

_STYLES: Final = {"good": "32", "bad": "31", "warn": "33", "bold": "1", "dim": "2"}
_MAX_DECIMAL_BITS: Final = 8192
"""Python refuses to print larger ints in decimal."""


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

    def show(self, facts: Facts, lines: Callable[[Facts], Iterable[str | Styled]]) -> None:
        """Print ``lines(facts)``, unless JSON is wanted."""
        if not self.as_json:
            for line in lines(facts):
                _print(line, sys.stdout)

    def document(self, facts: Facts) -> None:
        """Print the JSON document, if JSON is wanted."""
        if self.as_json:
            _write(json.dumps(plain(facts), indent=2, allow_nan=False), sys.stdout)

    def note(self, text: str, style: str = "") -> None:
        """One line for the person at the terminal, on stderr."""
        sys.stdout.flush()
        _print(Styled(f"fastckpt: {text}", style), sys.stderr)
        sys.stderr.flush()

    def error(self, error: FastckptError, *, kind: str | None = None) -> None:
        """The error that ended the command: on stderr, and as JSON if that is wanted."""
        self.document({"error": error_facts(error, kind=kind)})
        self.note(f"error: {error}", "bad")

    def flush(self) -> None:
        """Write out what is buffered. Raises OSError if nobody takes it."""
        sys.stdout.flush()

    def abandon(self) -> None:
        """Give up stdout, so that the interpreter does not complain when it flushes it at the end."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def error_facts(error: FastckptError, *, kind: str | None = None) -> Facts:
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
    _write(text, stream)


def _write(line: str, stream: IO[str]) -> None:
    try:
        stream.write(line + "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CheckpointIOError(f"cannot write the output: {error.strerror}", errno=error.errno) from error


def _has_colour(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain(value: Any) -> Any:
    """The same in types JSON has: numbers that are not finite become text, bytes hexadecimal text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MAX_DECIMAL_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def value_text(value: Any, limit: int = 100) -> str:
    """A plain value on one line, cut to ``limit`` characters."""
    text = repr(plain(value) if isinstance(value, int) else value)
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
