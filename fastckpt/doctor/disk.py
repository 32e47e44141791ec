"""Is there room for the next saves, and what could make more?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import TagFacts
from fastckpt.io.space import free_bytes
from fastckpt.text import count_text, size_text

FEW_SAVES: Final = 3
"""With room for fewer saves than this, it is time to make some."""
KEPT: Final = 2
"""Steps that retention keeps unless told otherwise."""
_MANY: Final = 200
"""Orphans that one command names."""

_TEMP: Final = re.compile(r"\..+\.[0-9a-f]{12}\.fckpt-tmp")
"""See `fastckpt.io.temp_file`."""


@dataclass(frozen=True, slots=True)
class Space:
    """Room for saves.

    Attributes:
        path: The directory.
        free: Bytes this user may still write there; None if the file system does not say.
        save: Bytes of one save, as the newest whole step has; None without one.
    """

    path: str
    free: int | None
    save: int | None

    @property
    def saves(self) -> int | None:
        """How many more saves fit."""
        return self.free // self.save if self.free is not None and self.save else None


def read_space(path: str, tag: TagFacts | None) -> Space:
    """The room in a directory, and what the next save needs."""
    free = None
    with contextlib.suppress(OSError):
        free = free_bytes(path)
    whole = tag.newest_whole if tag is not None else None
    return Space(path, free, whole.nbytes if whole is not None else None)


def diagnose_space(tag: TagFacts, space: Space) -> Iterator[Diagnosis]:
    """Too little room for the next saves; and steps that could go."""
    whole = [step for step in tag.examined if step.is_whole]
    spare = whole[KEPT:] if len(whole) > KEPT else []
    frees = sum(step.nbytes for step in spare)
    older = len(tag.steps) - len(tag.examined)
    more = f", and {older} that were not looked at" if older else ""
    prune = shlex.join(["fastckpt", "prune", tag.path, "--keep-last", str(KEPT)])
    if space.saves is not None and space.save is not None and space.free is not None and space.saves < FEW_SAVES:
        could = f"; {count_text(len(spare), 'older step')} could go ({size_text(frees)}){more}" if spare else ""
        if not spare and len(whole) == KEPT:
            could, prune = f"; keeping one step would free {size_text(whole[1].nbytes)}", prune[:-1] + "1"
        yield Diagnosis(
            "disk",
            "warn" if space.saves else "bad",
            tag.path,
            None,
            f"{tag.label}: room for {count_text(space.saves, 'more save') if space.saves else 'no save'} of "
            f"{size_text(space.save)}: {size_text(space.free)} free",
            f"a save that does not fit is lost; one by nanochat itself also destroys the file it replaces{could}",
            prune if spare or len(whole) == KEPT else shlex.join(["du", "-xh", "--max-depth=1", tag.path]),
        )
    elif spare:
        yield Diagnosis(
            "retention",
            "note",
            tag.path,
            None,
            f"{tag.label}: {count_text(len(spare), 'step')} older than the newest {KEPT} could go: "
            f"{size_text(frees)}{more}",
            "",
            f"{prune} --dry-run",
        )


def diagnose_orphans(directory: str, label: str) -> Iterator[Diagnosis]:
    """Temp files of saves that were killed. Those of a save that is going on are locked, and not named."""
    orphans = sorted(_orphans(directory))
    if not orphans:
        return
    size = sum(nbytes for _, nbytes in orphans)
    paths = [path for path, _ in orphans[:_MANY]]
    yield Diagnosis(
        "orphans",
        "warn",
        directory,
        None,
        f"{label}: {count_text(len(orphans), 'temp file')} of killed saves, {size_text(size)}",
        "no living process holds them; the next save of the same name would remove them too",
        commands.remove(paths),
    )


def _orphans(directory: str) -> Iterator[tuple[str, int]]:
    try:
        names: Sequence[str] = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if _TEMP.fullmatch(name):
            path = os.path.join(directory, name)
            size = _unheld_size(path)
            if size is not None:
                yield path, size


def _unheld_size(path: str) -> int | None:
    """Bytes of a temp file that no living process holds; None if one does, or it is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return status.st_size
    except OSError:
        return None
    finally:
        os.close(fd)
