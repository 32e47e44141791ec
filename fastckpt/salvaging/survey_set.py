"""What stands of a directory that is one checkpoint, as salvage asks it of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from fastckpt.errors import FastckptError, UsageError
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.remote.path import Place
from fastckpt.salvaging.set_fragments import Outline, manifest_path, outline_of
from fastckpt.salvaging.set_spool import SetSpool
from fastckpt.salvaging.set_wreck import SetWreck
from fastckpt.salvaging.shard_outline import outline_of_shards
from fastckpt.sets import dcp, own
from fastckpt.sets.judge import judge
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.recognise import recognise
from fastckpt.stored.command_that_heals import command_that_heals
from fastckpt.surveying.wreck import Wreck
from fastckpt.text import quoted


def the_one(found: Sequence[CheckpointSet], directory: Place) -> CheckpointSet | None:
    """Of what was recognised, the one checkpoint that the directory is and that can be put together; None without one.

    It can if its manifest says of which pieces each tensor is made.
    """
    is_one = len(found) == 1 and found[0].kind in (dcp.KIND, own.KIND) and found[0].path == os.fspath(directory)
    return found[0] if is_one else None


def set_in(directory: Place) -> CheckpointSet:
    """The one checkpoint that a directory is; see `the_one`.

    Raises:
        UsageError: There is none.
        CheckpointIOError: It cannot be read.
    """
    one = the_one(recognise(directory), directory)
    if one is not None:
        return one
    command = "salvage" if isinstance(directory, str) else "inspect"
    raise UsageError(
        "this is a directory of several checkpoints, or files that are salvaged one by one",
        path=directory,
        next_step=f"fastckpt {command} {quoted(os.fspath(directory))} shows what there is; then name one",
    )


def survey_set(
    checkpoint: CheckpointSet,
    destination: str | None,
    stack: ExitStack,
    *,
    like: str | None,
    threads: int,
    progress: Progress | None,
) -> tuple[Wreck, Source | None]:
    """What stands of a checkpoint of several files, and the file in which its tensors are put together.

    Args:
        checkpoint: Its files.
        destination: Where its tensors will be written: they are put together beside it. None only looks.
        stack: Closes and removes what is opened.
        like: The directory of another checkpoint of the same structure.
        threads: Worker threads.
        progress: Called with the bytes done so far.

    Raises:
        DamagedError, CheckpointNotFoundError, UnsupportedStateError: There is no manifest that can be read.
        OutOfSpaceError, CheckpointIOError: There is no room, or a file cannot be read.
    """
    repair: str | None = None
    try:
        outline = outline_of(checkpoint.kind, checkpoint.path)
    except FastckptError as error:
        repair = command_that_heals(manifest_path(checkpoint.kind, checkpoint.path))
        said = outline_of_shards(checkpoint) if checkpoint.kind == own.KIND else None
        if said is None and like is None:
            error.next_step = repair or "name another checkpoint of the same run, for the names: --like DIR"
            raise
        other = outline_of(checkpoint.kind, like) if like is not None else None
        outline = _either(said, other)
    if destination is None:
        wreck = SetWreck(checkpoint, outline, None, threads=threads, progress=progress).run()
        return _first_repair(wreck, repair), None
    beside = os.path.dirname(os.path.realpath(destination))
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=".fastckpt-", dir=beside))
    spool = stack.enter_context(SetSpool(os.path.join(directory, "tensors"), threads=threads))
    wreck = SetWreck(checkpoint, outline, spool, threads=threads, progress=progress).run()
    source = stack.enter_context(Source(spool.path))
    wreck.path, wreck.identity = source.path, source.identity
    return _first_repair(wreck, repair), source


def _first_repair(wreck: Wreck, command: str | None) -> Wreck:
    """Of all files the one without which nothing tells what the others are comes first."""
    wreck.repairs[:0] = [command] if command is not None else []
    return wreck


def _either(said: Outline | None, other: Outline | None) -> Outline:
    """What the files themselves say, nested as another checkpoint of the run is; or else all that this one says."""
    if said is None:
        assert other is not None
        other.is_other = True
        return other
    said.paths = other.paths if other is not None else {}
    return said


def around_pieces(checkpoint: CheckpointSet, threads: int) -> list[Finding]:
    """What is wrong with the files of a checkpoint of which every tensor is there."""
    report = judge(checkpoint, threads=threads)
    found = [finding for file in report.files for finding in file.findings if finding.kind is not Kind.UNPROVEN]
    return found + [Finding(Kind.INCONSISTENT, each.message, 0, 0, loss=each.loss) for each in report.problems]
