"""The whole steps of a directory to an object store, while a run goes on saving them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fastckpt.errors import CheckpointIOError, FastckptError, NotACheckpointError
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.keeping.object_copies import ObjectCopies
from fastckpt.keeping.send_steps import send_steps
from fastckpt.keeping.series import FileSeries
from fastckpt.keeping.series_of import series_of
from fastckpt.nanochat.backing_up import Backup, identity
from fastckpt.remote.path import RemotePath

Identities = dict[str, "tuple[int, ...] | None"]


def watch_steps(
    source: str,
    destination: RemotePath,
    *,
    seconds: float,
    threads: int | None,
    progress: Progress | None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Backup | FastckptError]:
    """Look every so many seconds for steps that are new or have changed, and send those that are whole; for ever.

    A step that is not whole yet is looked at again when one of its files has changed.

    Args:
        source: The directory. That it has no steps yet is no error.
        destination: Where to.
        seconds: How long to wait.
        threads: Worker threads; None takes one per CPU.
        progress: Called with the bytes sent so far of the current file.
        pause: How to wait.

    Yields:
        What was done whenever there was something; or why it could not be done, which is tried again.

    Raises:
        UsageError: The directory has no names that say a step.
    """
    place = ObjectCopies(destination, threads=thread_count(threads), progress=progress)
    seen: dict[int, Identities] = {}
    while True:
        try:
            series = series_of(source, command=f"fastckpt sync {{}} {destination}")
            found = {number: _identities(series, number) for number in series.numbers}
            for number in (number for number in found if seen.get(number) != found[number]):
                yield send_steps(series, [number], place, Backup())
                seen[number] = found[number]
        except NotACheckpointError:
            pass
        except CheckpointIOError as error:
            yield error
        pause(seconds)


def _identities(series: FileSeries, number: int) -> Identities:
    return {path: identity(path) for path in series.files(number)}
