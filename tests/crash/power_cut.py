"""What a power cut can leave on disk, built from the log of a save's calls.

The model is the least that POSIX promises. Data and length of a file are on
disk once an fsync of it has returned; before, any part of what was written
since may be there, in any order. Names (created, renamed, removed) are on disk
once an fsync of their directory has returned; before, any number of the latest
changes may be missing. A journaling file system gives more; the protocol must
not need more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from crash_lab import Call

_DATA_CALLS = ("write", "ftruncate", "fallocate")
_NAME_CALLS = ("open", "rename", "unlink")
_O_CREAT = 0o100


class Operations(NamedTuple):
    """What one save changed, in the order of its calls.

    Attributes:
        data: Changes of the temp file, each with its place among the calls.
        names: Changes of the directory, likewise.
        file_syncs, directory_syncs: Places among the calls.
        total: How many calls there were.
    """

    data: list[tuple[int, Call]]
    names: list[tuple[int, Call]]
    file_syncs: list[int]
    directory_syncs: list[int]
    total: int


def operations(calls: list[Call], directory: str) -> Operations:
    """Sort the calls of a save by what they change."""
    found = Operations([], [], [], [], len(calls))
    for place, call in enumerate(calls):
        if call.name in _DATA_CALLS:
            found.data.append((place, call))
        elif call.name in _NAME_CALLS and (call.name != "open" or call.offset & _O_CREAT):
            found.names.append((place, call))
        elif call.name in ("fsync", "fdatasync"):
            (found.directory_syncs if call.path == directory else found.file_syncs).append(place)
    return found


def states_after_cut(
    calls: list[Call], directory: str, target: str, *, old: bytes, new: bytes, subsets: int, seed: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Every state of the target after a cut before, between or after the calls.

    Args:
        calls: From an undisturbed save.
        directory: Of the target.
        target: The target's path.
        old: Its content before.
        new: The content that the save wrote; gives the bytes of each write.
        subsets: How many random choices of surviving unsynced writes to try per
            cut, beside none, all, each prefix and each missing one.
        seed: Of the random choices.

    Yields:
        Where the cut came, and the target's content after it.
    """
    log = operations(calls, directory)
    choose = random.Random(seed)
    for cut in range(log.total + 1):
        synced = max((place for place in log.file_syncs if place < cut), default=-1)
        names_synced = max((place for place in log.directory_syncs if place < cut), default=-1)
        safe = [call for place, call in log.data if place < synced]
        loose = [call for place, call in log.data if synced < place < cut]
        sure = [call for place, call in log.names if place < names_synced]
        unsure = [call for place, call in log.names if names_synced < place < cut]
        for kept_names in range(len(unsure) + 1):
            renamed = any(c.name == "rename" and c.second_path == target for c in sure + unsure[:kept_names])
            where = f"cut before call {cut} of {log.total}, {kept_names} of {len(unsure)} unsynced names kept"
            if not renamed:
                yield where, old
                continue
            for kept in _survivors(loose, subsets, choose):
                yield f"{where}, {len(kept)} of {len(loose)} unsynced writes kept", _content(safe + kept, new)


def _survivors(loose: list[Call], subsets: int, choose: random.Random) -> Iterator[list[Call]]:
    for end in range(len(loose) + 1):
        yield loose[:end]
    for missing in range(len(loose)):
        yield loose[:missing] + loose[missing + 1 :]
    for _ in range(subsets if loose else 0):
        yield [call for call in loose if choose.random() < 0.5]


def _content(changes: list[Call], new: bytes) -> bytes:
    """The file that these changes make. Each byte is written once, so ``new`` has what was written there."""
    content = bytearray()
    for call in changes:
        end = call.offset + call.size
        if call.name == "ftruncate":
            del content[call.size :]
            end = call.size
        content.extend(bytes(max(0, end - len(content))))
        if call.name == "write":
            content[call.offset : end] = new[call.offset : end]
    return bytes(content)


def check_written_once(calls: list[Call]) -> None:
    """No two writes of a save overlap: what is on disk is never written over."""
    end = 0
    for call in sorted((call for call in calls if call.name == "write"), key=lambda call: call.offset):
        assert call.offset >= end, f"bytes from {call.offset} are written twice"
        end = call.offset + call.size
