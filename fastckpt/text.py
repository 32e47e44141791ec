"""Words and numbers as people read them: sizes, durations, counts, collapsed names.

Numbered siblings that are alike stand on one line: ``transformer.h.{0..11}.attn.c_q.weight``.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Generic, TypeVar


def plain_path(path: str) -> str:
    """A path that no command takes for an option: ``./-w.pt`` for one that begins with a dash."""
    return os.path.join(os.curdir, path) if path.startswith("-") else path


def quoted(path: str) -> str:
    """A path as it is typed in a command that is printed: `plain_path`, quoted for a shell.

    What cannot be printed is written as ``$'a\\x0ab'``, which bash and zsh read: a line that is pasted names this file.
    """
    path = plain_path(path)
    if path.isprintable():
        return shlex.quote(path)
    return f"$'{''.join(map(_typed, path))}'"


def _typed(char: str) -> str:
    if char.isprintable() and char not in "\\'":
        return char
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def shown_path(path: str) -> str:
    """A path at the head of a line: as it is, but `quoted` where it would look like another one."""
    return path if path.isprintable() else quoted(path)


def size_text(count: float) -> str:
    """Bytes in decimal units with three digits: ``16.8 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {unit}"


def parse_size(text: str) -> int:
    """Bytes, from a number and a unit: ``5GB``, ``200 MB``, ``4096``; units are decimal, as `size_text` has them.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kKMGT]?)B?", text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def share_text(part: int, total: int) -> str:
    """A part of some bytes: ``8.86 of 15.7 MB``; what is not all of them never reads as if it were."""
    whole, own = size_text(total), size_text(part)
    if part == total:
        return f"all {whole}"
    if not part:
        return f"none of {whole}"
    if own == whole:
        return f"all but {size_text(total - part)} of {whole}"
    number, _, unit = own.partition(" ")
    return f"{number if whole.endswith(f' {unit}') else own} of {whole}"


def duration_text(seconds: float) -> str:
    """Seconds as a person says them: ``0.4 ms``, ``0.12 s``, ``12.3 s``, ``2 min 5 s``."""
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 0.995 else 1}f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def rate_text(count: int, seconds: float) -> str:
    """Bytes per second: ``15.2 GB/s``."""
    return f"{size_text(count / max(seconds, 1e-9))}/s"


def count_text(count: int, noun: str) -> str:
    """``1 tensor``, ``35 tensors``, ``9,437,184 parameters``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def some(words: Iterable[object], most: int = 3, noun: str = "") -> str:
    """``a, b, c and 4 more``, with a noun ``a, b, c and 4 more tensors``; empty if there are none."""
    every = list(map(str, words))
    rest = len(every) - most
    more = f" and {count_text(rest, f'more {noun}') if noun else f'{rest} more'}" if rest > 0 else ""
    return ", ".join(every[:most]) + more


def close_to(word: str, known: Iterable[str], most: int = 2) -> list[str]:
    """Of the words that there are, those that this one may have been meant for, the closest first, in any case."""
    import difflib

    lower = {one.lower(): one for one in known}
    return [lower[one] for one in difflib.get_close_matches(word.lower(), list(lower), most, 0.7)]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """``did you mean inspect?``; None if nothing is close."""
    close = close_to(word, known)
    return f"did you mean {' or '.join(close)}?" if close else None


Like = TypeVar("Like", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Collapsed(Generic[Like]):
    """Some names that differ in numbers only.

    Attributes:
        segments: The name cut at its dots; a run of numbers stands as ``{0..11}``.
        times: How many names it stands for.
        like: What they have in common.
    """

    segments: tuple[str, ...]
    times: int
    like: Like

    @property
    def name(self) -> str:
        """The segments joined again."""
        return ".".join(self.segments)


_MOST_NUMBERS: Final = 8
"""Numbers of a name that are joined with those of others; further ones in front of them stand as they are."""


def collapse(items: Iterable[tuple[str, Like]]) -> list[Collapsed[Like]]:
    """Join the names that differ in numbers only and are alike, in order of first appearance.

    Every result stands for exactly the names it spells, so some of them may
    share a pattern: layers 0 to 3 of one shape, and layer 4 of another.
    """
    groups: dict[tuple[tuple[str | None, ...], Like], list[tuple[int, ...]]] = {}
    for name, like in items:
        segments = name.split(".")
        numbered = [place for place, segment in enumerate(segments) if _is_number(segment)][-_MOST_NUMBERS:]
        pattern: list[str | None] = list(segments)
        for place in numbered:
            pattern[place] = None
        groups.setdefault((tuple(pattern), like), []).append(tuple([int(segments[place]) for place in numbered]))
    result = []
    for (joined, like), rows in groups.items():
        for runs in _products(rows):
            texts = iter([numbers_text(run) for run in runs])
            spelled = tuple([next(texts) if segment is None else segment for segment in joined])
            result.append(Collapsed(spelled, math.prod(map(len, runs)), like))
    return result


def _is_number(segment: str) -> bool:
    return segment.isascii() and segment.isdecimal() and len(segment) < 10 and str(int(segment)) == segment


def _products(rows: Sequence[tuple[int, ...]]) -> Iterator[tuple[list[int], ...]]:
    """Cut a set of rows into products: lists of numbers whose combinations are exactly these rows."""
    if not rows[0]:
        yield ()
        return
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in rows:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, rest_rows in rests.items():
        alike.setdefault(tuple(rest_rows), []).append(number)
    for shared, numbers in alike.items():
        for tail in _products(shared):
            yield (numbers, *tail)


_MOST_LISTED: Final = 8
"""Numbers with one step between them that are listed one by one."""


def numbers_text(numbers: Iterable[int]) -> str:
    """``7``, ``{0..11}``, ``{2,6,10,14}``, ``{0..9,11,27}``; of many with one step, ``{1..199 step 2}``."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return str(ordered[0])
    step = ordered[1] - ordered[0]
    if step > 1 and len(ordered) > _MOST_LISTED and all(b - a == step for a, b in pairwise(ordered)):
        return f"{{{ordered[0]}..{ordered[-1]} step {step}}}"
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = []
    for run in runs:
        texts += [f"{run[0]}..{run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    return "{" + ",".join(texts) + "}"
