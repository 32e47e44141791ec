"""What the system does not let be read: nothing is known about it, and nothing is said about it but that."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.errors import CheckpointIOError


def unreadable(path: str, error: CheckpointIOError, step: int | None) -> Diagnosis:
    """The diagnosis of a file, and what would let it be read."""
    cause, command = error.next_step or "the system refuses", shlex.join(["ls", "-l", "--", path])
    if error.errno in (errno.EACCES, errno.EPERM):
        cause, command = "it belongs to another user, or its mode forbids it", shlex.join(["chmod", "u+r", path])
    elif error.errno == errno.ELOOP:
        command = commands.remove([path])
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        command = "ulimit -n 65536"
    elif error.errno == errno.EIO or error.offset is not None:
        cause = "the disk reports an error: copy what can be read before it gets worse"
        command = shlex.join(["fastckpt", "salvage", path])
    what = f"{os.path.basename(path)}: {error.message}"
    return Diagnosis("unreadable", "bad", path, step, what, cause, command)


def diagnose_unreadable(step: StepFacts) -> Iterator[Diagnosis]:
    """The files of a step that cannot be read. What else could be said of the step depends on them."""
    found = [(file.path, file.error) for file in step.files]
    found += [(step.meta.path, step.meta.unread)] if step.meta is not None else []
    told = [unreadable(path, error, step.number) for path, error in found if isinstance(error, CheckpointIOError)]
    yield from told
    if not told and step.state.unread:
        what = f"whether step {step.number} is complete cannot be told: {'; '.join(step.state.reasons)}"
        cause = "the system refused to read it once, and then read it: run this again"
        command = shlex.join(["fastckpt", "doctor", step.directory, "--step", str(step.number)])
        yield Diagnosis("unreadable", "bad", step.directory, step.number, what, cause, command)
