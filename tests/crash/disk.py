"""What a power cut can leave of directories, built from the log of a program's calls.

The model is that of `power_cut`, for any number of directories: what was changed in
one is on disk once an fsync of it has returned; before, any number of its latest
changes may be missing, in each directory for itself. Only that much is atomic: a
rename never loses what it moves. A file that was never synced is empty.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from crash_lab import Call

_O_CREAT = 0o100


class File(NamedTuple):
    """What a file holds, and which one it is: a link of it has the same time."""

    data: bytes
    time: int


Tree = dict[str, File]
"""Every file by its path below the root."""
Inode = int
Names = dict[str, Inode]

LOST = File(b"", 1)


class Disk:
    """A directory tree, as it was and as it became call by call.

    Args:
        root: The directory that was changed, as it is after all calls.
        before: Its content before them.
    """

    def __init__(self, root: Path, before: Tree) -> None:
        self._root = str(root)
        self._numbers = itertools.count(1)
        self._content: dict[Inode, File] = {}
        self._synced: set[Inode] = set()
        self._durable: dict[Inode, Names] = {0: {}}
        self._pending: dict[Inode, list[tuple[str, str, Inode, Inode]]] = {0: []}
        for path, data in before.items():
            directory = self._make_directories(os.path.dirname(path))
            number = next(self._numbers)
            self._content[number] = data
            self._synced.add(number)
            self._durable[directory][os.path.basename(path)] = number

    def _make_directories(self, path: str) -> Inode:
        here = 0
        for name in filter(None, path.split("/")):
            if name not in self._durable[here]:
                number = next(self._numbers)
                self._durable[here][name] = number
                self._durable[number], self._pending[number] = {}, []
            here = self._durable[here][name]
        return here

    def names(self, directory: Inode) -> Names:
        """What a program sees."""
        return self._with(directory, len(self._pending[directory]))

    def _with(self, directory: Inode, count: int, kept: set[Inode] | None = None) -> Names:
        """The names once so many of the pending changes are on disk; ``kept``: what other directories have got."""
        names = dict(self._durable[directory])
        for what, name, number, _ in self._pending[directory][:count]:
            if what == "add":
                names[name] = number
            elif what == "remove" or kept is None or number in kept:
                names.pop(name, None)
        return names

    def _find(self, path: str) -> tuple[Inode, str]:
        below = os.path.relpath(path, self._root)
        *above, name = [] if below == "." else below.split("/")
        here = 0
        for part in above:
            here = self.names(here)[part]
        return here, name

    def _change(self, what: str, path: str, number: Inode) -> None:
        directory, name = self._find(path)
        self._pending[directory].append((what, name, number, directory))

    def apply(self, call: Call) -> None:
        """Do what a call did."""
        if call.path == self._root:
            if call.name in ("fsync", "fdatasync"):
                self._sync(0)
            return
        directory, name = self._find(call.path)
        number = self.names(directory).get(name)
        if call.name == "open" and call.offset & _O_CREAT and number is None:
            self._change("add", call.path, next(self._numbers))
        elif call.name == "mkdir":
            number = next(self._numbers)
            self._durable[number], self._pending[number] = {}, []
            self._change("add", call.path, number)
        elif call.name in ("fsync", "fdatasync") and number is not None:
            self._sync(number)
        elif call.name in ("write", "ftruncate") and number is not None:
            self._synced.discard(number)
        elif call.name in ("unlink", "rmdir"):
            self._change("remove", call.path, number or 0)
        elif call.name == "link":
            assert number is not None
            self._change("add", call.second_path, number)
        elif call.name == "rename":
            assert number is not None
            self._change("add", call.second_path, number)
            self._change("move", call.path, number)

    def _sync(self, number: Inode) -> None:
        self._synced.add(number)
        if number in self._durable:
            self._durable[number] = self.names(number)
            self._pending[number] = []

    def note_contents(self, final: Disk) -> None:
        """Take the bytes of every new file from the tree that ``final``, after all calls, has become."""
        for path, number in final.files():
            if number not in self._content:
                self._content[number] = _read_file(Path(self._root, path))

    def files(self) -> Iterator[tuple[str, Inode]]:
        """Every file that a program sees, by its path."""
        yield from self._files({directory: self.names(directory) for directory in self._durable})

    def _files(self, names: dict[Inode, Names], here: Inode = 0, above: str = "") -> Iterator[tuple[str, Inode]]:
        for name, number in names[here].items():
            if number in names:
                yield from self._files(names, number, f"{above}{name}/")
            else:
                yield above + name, number

    def after_cut(self) -> Iterator[Tree]:
        """Every tree that can be on disk if the power fails now."""
        directories = list(self._durable)
        for counts in itertools.product(*(range(len(self._pending[each]) + 1) for each in directories)):
            grown = {each: self._with(each, count) for each, count in zip(directories, counts, strict=True)}
            kept = {number for names in grown.values() for number in names.values()}
            names = {each: self._with(each, count, kept) for each, count in zip(directories, counts, strict=True)}
            yield {
                path: self._content.get(number, LOST) if number in self._synced else LOST
                for path, number in self._files(names)
            }


def read_tree(root: Path) -> Tree:
    """Every file below a directory."""
    return {str(path.relative_to(root)): _read_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def _read_file(path: Path) -> File:
    return File(path.read_bytes(), path.stat().st_mtime_ns)


def write_tree(root: Path, tree: Tree) -> None:
    """Make these files, and nothing else, in a directory that is missing."""
    root.mkdir()
    for name, file in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        os.utime(path, ns=(file.time, file.time))


def trees_after_cut(calls: list[Call], root: Path, before: Tree) -> Iterator[tuple[str, Tree]]:
    """Every tree that a power cut before, between or after the calls can leave, each once, and where the cut came."""
    final = Disk(root, before)
    for call in calls:
        final.apply(call)
    disk = Disk(root, before)
    disk.note_contents(final)
    seen: set[int] = set()
    for number in range(len(calls) + 1):
        for tree in disk.after_cut():
            key = hash(tuple(sorted(tree.items())))
            if key not in seen or number == len(calls):
                seen.add(key)
                yield f"cut before call {number} of {len(calls)}", tree
        if number < len(calls):
            disk.apply(calls[number])
