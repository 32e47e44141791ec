"""Changes to a step that were killed on the way: see `fastckpt.nanochat.step_change` for what they leave.

A ``.part`` directory changed nothing and can go. A ``.ready`` one is committed:
some files of the step are new and some old, and nothing else about that step
means anything until the change is finished. If training saved the step anew
meanwhile, it will not be finished and can go, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Container, Iterator
from typing import Any, Final, NamedTuple

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.directories import join, subdirectories
from fastckpt.doctor.facts import TagFacts
from fastckpt.doctor.unreadable import unreadable
from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.os_errors import exists, translate_os_error
from fastckpt.io.source import read_small
from fastckpt.nanochat.names import OPTIM, parse_name
from fastckpt.nanochat.step_change import CHANGE, MAX_CHANGE_SIZE

_NAME: Final = re.compile(r"\.fckpt-step-(\d{6,18})\.(part|ready)")


class Interrupted(NamedTuple):
    """A change that no living process is at.

    Attributes:
        path: Its directory.
        step: The step.
        committed: Whether it must be finished: it is committed, and the step was not saved anew since.
        world_size: How many ranks its new files are for, if it is committed.
        unread: Why it cannot be told what it is.
    """

    path: str
    step: int
    committed: bool
    world_size: int = 0
    unread: CheckpointIOError | None = None


def find_interrupted(directory: str) -> list[Interrupted]:
    """The killed changes in a checkpoint directory."""
    found = []
    for name in subdirectories(directory):
        match = _NAME.fullmatch(name)
        path = join(directory, name)
        if match and not _is_held(path):
            step, ready = int(match[1]), match[2] == "ready"
            try:
                change = _read_change(path) if ready else {}
                committed = ready and not _saved_anew(directory, path, change)
            except CheckpointIOError as error:
                found.append(Interrupted(path, step, committed=False, unread=error))
                continue
            ranks = _new_world_size(directory, path, step, change) if committed else 0
            found.append(Interrupted(path, step, committed, ranks))
    return found


def _read_change(path: str) -> dict[str, Any]:
    """Which old files the new ones take the place of. Raises CheckpointIOError."""
    plan = os.path.join(path, CHANGE)
    try:
        change = json.loads(read_small(plan, limit=MAX_CHANGE_SIZE)) if exists(plan) else {}
    except (DamagedError, ValueError, RecursionError):
        return {}
    return change if isinstance(change, dict) else {}


def _names(change: dict[str, Any], key: str) -> list[str]:
    names = change.get(key)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list | dict) else []


def _saved_anew(directory: str, path: str, change: dict[str, Any]) -> bool:
    """Whether a file that is to be replaced is not the one that was there when the change was committed."""
    old = change.get("old")
    try:
        waiting = [name for name in os.listdir(path) if name != CHANGE]
    except OSError as error:
        raise translate_os_error(error, path, doing="list the directory") from error
    for name in (*waiting, *_names(change, "remove")):
        try:
            there = os.stat(join(directory, name))
        except (FileNotFoundError, ValueError):
            continue
        except OSError as error:
            raise translate_os_error(error, join(directory, name), doing="look at the file") from error
        if not isinstance(old, dict) or old.get(name) != [there.st_size, there.st_mtime_ns]:
            return True
    return False


def _is_held(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def diagnose_interrupted(tag: TagFacts, changes: list[Interrupted]) -> Iterator[Diagnosis]:
    """How to finish them, or clear them away."""
    for change in changes:
        if change.unread is not None:
            yield unreadable(change.unread.path or change.path, change.unread, change.step)
        elif change.committed:
            yield Diagnosis(
                "unfinished",
                "bad",
                change.path,
                change.step,
                f"fastckpt reshard was killed while the new files of step {change.step} went to their names",
                "some of its files are new and some old; all new ones are on the disk: running it again finishes it",
                commands.reshard(tag.path, change.step, change.world_size),
            )
        else:
            yield Diagnosis(
                "orphans",
                "warn",
                change.path,
                change.step,
                f"{os.path.basename(change.path)}: what a killed reshard of step {change.step} has left",
                "it changed nothing, or the step was saved anew since: nothing in it is needed",
                commands.remove_directory(change.path),
            )


def _new_world_size(directory: str, path: str, step: int, change: dict[str, Any]) -> int:
    """How many ranks the new files are for: those that still wait, and those that went to their names before them."""
    waiting = set(_ranks(path, step))
    # Ranks go from the highest down, so what is above the waiting ones, and is not to be removed, is new.
    old = set(_names(change, "remove"))
    there = {rank for rank in _ranks(directory, step, leaving_out=old) if rank > max(waiting, default=-1)}
    return max(waiting | there, default=0) + 1


def _ranks(directory: str, step: int, leaving_out: Container[str] = ()) -> Iterator[int]:
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        parsed = parse_name(name)
        wanted = parsed is not None and parsed[0].role == OPTIM and parsed[0].step == step
        if parsed is not None and wanted and name not in leaving_out:
            yield parsed[0].rank or 0
