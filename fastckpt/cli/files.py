"""Which checkpoint files the paths on a command line stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from typing import Final

from fastckpt.errors import NotACheckpointError
from fastckpt.foreign.sniff import HEAD_SIZE, sniff
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.nanochat.names import BEFORE, parse_hidden
from fastckpt.remote.path import Place, RemotePath
from fastckpt.seals.names import stands_beside
from fastckpt.sets.listing import Listing

_SUFFIXES: Final = tuple(suffix for suffix in FORMAT_OF if suffix != ".bin")
"""In a directory, .bin is the name of other data as well: there the content says more."""


def checkpoint_files(
    paths: Sequence[Place], *, recursive: bool, besides: Set[str] = frozenset(), may_be_empty: Set[Place] = frozenset()
) -> tuple[list[Place], bool]:
    """The files that ``paths`` stand for, and whether it is just one file that was named itself.

    A directory stands for the checkpoint files in it, in order of their names, but for those in ``besides``.

    Raises:
        NotACheckpointError: There is none in a directory that is not among those that may be empty.
    """
    if len(paths) == 1 and not is_directory_of_checkpoints(paths[0]):
        return list(paths), True
    files: list[Place] = []
    for path in paths:
        if not is_directory_of_checkpoints(path):
            files.append(path)
            continue
        found = [file for file in files_in(path, recursive=recursive) if os.fspath(file) not in besides]
        if not found and path not in may_be_empty:
            hint = None if recursive else "add -r to look into the directories inside it"
            raise NotACheckpointError("there is no checkpoint file in this directory", path=path, next_step=hint)
        files += found
    return files, False


def files_in(directory: Place, *, recursive: bool = False) -> Iterator[Place]:
    """The checkpoint files of a directory, by suffix or content, and what is kept there of steps that are saved again.

    Of a directory in a store by suffix alone: to look into each object would take a request for each.

    Sums files, and damaged ones that were healed, are left to the files that they are of.
    Other hidden ones are saves in progress.
    """
    if isinstance(directory, RemotePath):
        yield from _objects_in(Listing(directory), recursive=recursive)
        return
    inner = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            kept = parse_hidden(name)
            if kept is not None and kept[1] == BEFORE:
                # These count as much as the files that are to replace them.
                yield from files_in(path)
            else:
                inner.append(path)
        elif not name.startswith(".") and not stands_beside(name) and os.path.isfile(path) and is_checkpoint_file(path):
            yield path
    if recursive:
        for path in inner:
            if not os.path.islink(path):
                yield from files_in(path, recursive=True)


def _objects_in(listing: Listing, *, recursive: bool) -> Iterator[Place]:
    yield from (
        listing.place(name)
        for name in listing.names
        if listing.is_file(name) and not name.startswith(".") and not stands_beside(name) and name.endswith(_SUFFIXES)
    )
    for name in listing.directories if recursive else ():
        yield from _objects_in(listing.inner(name), recursive=True)


def is_checkpoint_file(path: str) -> bool:
    """Whether a file is a checkpoint by its suffix, or, under another name, by its content."""
    if path.endswith(_SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return sniff(file.read(HEAD_SIZE)) not in (None, "tar")
    except OSError:
        return False
