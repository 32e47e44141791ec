"""What must be so before a checkpoint is used: its manifest makes sense, every file is there, or all is whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.io.there import is_there
from fastckpt.sets.judge import judge
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.text import quoted, some


def require_manifest(checkpoint: CheckpointSet) -> None:
    """Raise DamagedError for what the manifest, or the names of the files, show to be wrong."""
    for problem in checkpoint.problems:
        if problem.loss:
            raise DamagedError(problem.message, path=problem.path, next_step=problem.next_step)


def require_there(checkpoint: CheckpointSet, members: Iterable[Member]) -> None:
    """Raise DamagedError, which names its tensors, for a file that is not there."""
    for member in members:
        if not is_there(member.place):
            tensors = f" with {some(member.tensors)}" if member.tensors else ""
            raise DamagedError(
                f"{member.what}{tensors} is not there",
                path=member.path,
                next_step=f"fastckpt verify {quoted(checkpoint.path)}",
            )


def require_whole(checkpoint: CheckpointSet, *, threads: int) -> None:
    """Read every byte. Raise DamagedError if the checkpoint is not whole, CheckpointIOError if it cannot be read."""
    report = judge(checkpoint, threads=threads)
    if not report.is_whole:
        kind = CheckpointIOError if report.unread else DamagedError
        command = f"fastckpt verify {quoted(checkpoint.path)}"
        raise kind("; ".join(report.reasons), path=checkpoint.path, next_step=report.next_step or command)


def require_indexed(own: Sequence[str], there: Collection[str], path: str, *, whole: bool) -> None:
    """Raise DamagedError unless a shard has the tensors that the index puts into it; with ``whole``, no others."""
    lost = [name for name in own if name not in there]
    if lost:
        raise DamagedError(f"the index puts {some(lost)} into this file, and it is not there", path=path)
    strange = sorted(set(there) - set(own)) if whole else []
    if strange:
        message = f"{some(strange)} is in this file, and the index does not put it there"
        raise DamagedError(message, path=path)
