"""Where checkpoints lie: the directories that nanochat looks in, and those it looks in by mistake."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import TagFacts, read_tag
from fastckpt.errors import FastckptError
from fastckpt.io.transfer import Progress
from fastckpt.nanochat.names import parse_name
from fastckpt.nanochat.places import DEPTH, MID, OLD_SFT, PARENTS, SFT
from fastckpt.text import some

_SUFFIX: Final = "_checkpoints"
_TAKEN_FOR_MODEL: Final = re.compile(r"model_(\d+)\.pt$")
"""How nanochat's find_last_step recognises a model: by the end of its name only."""
_MOST_TAGS: Final = 500


@dataclass(slots=True)
class Places:
    """The checkpoint directories under a path.

    Attributes:
        root: The path.
        tags: Those that have steps.
        unlisted: Directories that cannot be listed, and why.
        siblings: For each directory of tags, the names of all directories in it.
    """

    root: str
    tags: list[TagFacts] = field(default_factory=list)
    unlisted: dict[str, FastckptError] = field(default_factory=dict)
    siblings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether this is what ``NANOCHAT_BASE_DIR`` names."""
        return any(os.path.basename(directory) in PARENTS for directory in self.siblings if directory != self.root)


def find_places(root: str, *, deep: bool, threads: int | None, progress: Progress | None) -> Places:
    """The checkpoints in a directory: its own, its subdirectories', or those of a base directory."""
    places = Places(root)
    if _add(places, root, deep=deep, threads=threads, progress=progress):
        return places
    inner = subdirectories(root)
    for name in [*(s for s in PARENTS if s in inner), *(n for n in inner if n.endswith(_SUFFIX) and n not in PARENTS)]:
        _add_all(places, join(root, name), deep=deep, threads=threads, progress=progress)
    if not places.siblings:
        _add_all(places, root, deep=deep, threads=threads, progress=progress)
    return places


def _add_all(places: Places, directory: str, *, deep: bool, threads: int | None, progress: Progress | None) -> None:
    names = subdirectories(directory)
    places.siblings[directory] = names
    for name in names:
        if len(places.tags) >= _MOST_TAGS:
            break
        _add(places, join(directory, name), deep=deep, threads=threads, progress=progress)


def _add(places: Places, directory: str, *, deep: bool, threads: int | None, progress: Progress | None) -> bool:
    try:
        tag = read_tag(directory, deep=deep, threads=threads, progress=progress)
    except FastckptError as error:
        places.unlisted[directory] = error
        return False
    if tag.steps:
        places.tags.append(tag)
    return bool(tag.steps)


def join(directory: str, name: str) -> str:
    """The path of something in a directory, as short as can be, and never taken for an option."""
    path = name if directory in ("", ".") else os.path.join(directory, name)
    return os.path.join(".", path) if path.startswith("-") else path


def subdirectories(directory: str) -> list[str]:
    """Names of the directories in one, in order; empty if it cannot be listed."""
    try:
        with os.scandir(directory) as listing:
            return sorted(item.name for item in listing if _is_directory(item))
    except OSError:
        return []


def _is_directory(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False  # A circle of symbolic links.


def diagnose_places(places: Places) -> Iterator[Diagnosis]:
    """What is wrong with the directories themselves."""
    for directory, error in places.unlisted.items():
        circles = [os.path.join(directory, name) for name in _circles(directory)]
        yield Diagnosis(
            "unreadable",
            "bad",
            directory,
            None,
            f"{directory}: {error.message}",
            error.next_step or "the system refuses",
            commands.remove(circles) if circles else shlex.join(["ls", "-ld", "--", directory]),
        )
    for directory, names in places.siblings.items():
        yield from _largest(directory, names, {tag.name: tag for tag in places.tags if _is_in(tag, directory)})
        yield from _old_source(directory, names)


def _is_in(tag: TagFacts, directory: str) -> bool:
    return os.path.dirname(os.path.abspath(tag.path)) == os.path.abspath(directory)


def _circles(directory: str) -> Iterator[str]:
    """Symbolic links that lead nowhere."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in sorted(names):
        path = os.path.join(directory, name)
        if os.path.islink(path) and not os.path.exists(path):
            yield name


def _largest(directory: str, names: list[str], tags: Mapping[str, TagFacts]) -> Iterator[Diagnosis]:
    """nanochat takes the directory with the largest number after its ``d``, whatever follows and whatever is in it."""
    numbers = {name: int(match[1]) for name in names if (match := DEPTH.match(name))}
    if not tags or not numbers:
        return
    largest = [name for name in names if numbers.get(name) == max(numbers.values())]
    label = os.path.basename(os.path.abspath(directory))
    for name in (name for name in largest if name not in tags):
        path = os.path.join(directory, name)
        yield Diagnosis(
            "taken-for-model",
            "bad",
            path,
            None,
            f"{label}/{name} has no checkpoint, yet nanochat would load it: no tag has a larger number",
            "without --model-tag it takes the largest number after 'd', whatever follows it in the name",
            commands.move(path, f"not_{name}"),
        )
    held = [name for name in largest if name in tags]
    if len(held) > 1:
        yield Diagnosis(
            "same-depth",
            "note",
            directory,
            None,
            f"{label}: nanochat takes any of {', '.join(held)} for the largest model",
            "of equal numbers it takes the one that the system lists first: name one with --model-tag",
        )


def _old_source(directory: str, names: list[str]) -> Iterator[Diagnosis]:
    """Directories that only older versions of nanochat use."""
    name = os.path.basename(os.path.abspath(directory))
    if not names or name not in (MID, OLD_SFT):
        return
    if name == MID:
        what = f"{name}: midtraining was removed on 2026-01-31 (1ddaad1)"
        cause = "nanochat has not looked here since then; the revision before it does"
        yield Diagnosis("old-directory", "note", directory, None, what, cause, commands.check_out("1ddaad1"))
        return
    target = os.path.join(os.path.dirname(directory), SFT)
    free = [tag for tag in names if not os.path.lexists(os.path.join(target, tag))]
    there = os.path.dirname(directory)
    moves = commands.inside(
        there, f"mkdir -p {SFT}", shlex.join(["mv", "--", *(os.path.join(name, tag) for tag in free), SFT])
    )
    what = f"{name}: nanochat used this name only from 2026-01-31 (1ddaad1) to 02-01 (eaf49a3)"
    cause = f"before and after that it looks in {SFT}" + ("" if free else ", where the same tags are already")
    yield Diagnosis("old-directory", "note", directory, None, what, cause, moves if free else None)


def diagnose_strays(tag: TagFacts) -> Iterator[Diagnosis]:
    """Files that nanochat takes for the newest model although they are none."""
    try:
        names = os.listdir(tag.path)
    except OSError:
        return
    strays = {name: int(m[1]) for name in names if (m := _TAKEN_FOR_MODEL.search(name)) and parse_name(name) is None}
    newest = max(tag.steps, default=-1)
    wrong = sorted(name for name, number in strays.items() if number > newest)
    if wrong:
        moves = commands.rename_all([(os.path.join(tag.path, name), f"{name}.bak") for name in wrong])
        yield Diagnosis(
            "taken-for-step",
            "bad",
            os.path.join(tag.path, wrong[-1]),
            None,
            f"{tag.label}: nanochat takes {some(wrong)} for its newest step",
            "it looks only at how a name ends, and then asks for a file that is not there",
            moves,
        )
