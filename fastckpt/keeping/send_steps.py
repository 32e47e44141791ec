"""The whole steps of a directory, verified, to an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fastckpt.errors import DamagedError, MismatchError
from fastckpt.io.source import Source
from fastckpt.keeping.object_copies import ObjectCopies
from fastckpt.keeping.series import FileSeries
from fastckpt.nanochat.backing_up import Backup, CopiedFile, LeftOut, check_same, identity


def send_steps(series: FileSeries, numbers: Sequence[int], place: ObjectCopies, result: Backup) -> Backup:
    """Send steps, the oldest first; a step that is there already is left as it is.

    Args:
        series: The steps.
        numbers: Which of them.
        place: Where to.
        result: What is done is added here.

    Raises:
        CheckpointIOError: What was sent before is whole and stays. Sent again, the rest follows.
    """
    for number in numbers:
        done = _send(series, number, place)
        if isinstance(done, LeftOut):
            result.left_out.append(done)
            continue
        result.steps[number] = done
        if series.lacks_optimizer(number):
            result.no_optimizer.append(number)
    return result


def _send(series: FileSeries, number: int, place: ObjectCopies) -> list[CopiedFile] | LeftOut:
    try:
        wanted = series.to_copy(number)
    except MismatchError as error:
        return LeftOut(number, damaged=False, reasons=(str(error),))
    before = {path: identity(path) for path in wanted.values()}
    look = series.look(number, verify=True)
    if not look.whole:
        damaged = not look.unread and series.look(number, verify=False).whole
        return LeftOut(number, damaged, look.reasons, look.unread)
    try:
        with contextlib.ExitStack() as stack:
            # All are opened before the first is sent, so that what is sent is what was verified.
            files = {name: stack.enter_context(Source(path, may_be_empty=True)) for name, path in wanted.items()}
            check_same(files.values(), before)
            there = {name for name, file in files.items() if place.is_there(file, name)}
            for name, file in files.items():
                if name not in there:
                    place.send(file, name)
            return [
                CopiedFile(file.path, place.path(name), file.size, "already there" if name in there else "sent")
                for name, file in files.items()
            ]
    except (DamagedError, MismatchError) as error:
        return LeftOut.because(number, error)
