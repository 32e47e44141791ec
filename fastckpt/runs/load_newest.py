"""The newest whole step of a run in a store into a state, proven as it is loaded: it does not come twice."""

from __future__ import annotations

import logging
import os

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedVersionError
from fastckpt.io.open_source import open_source
from fastckpt.keeping.object_series import ObjectSeries
from fastckpt.loading.load_into import load_into
from fastckpt.stored.open_file import open_file

_log = logging.getLogger("fastckpt")


def load_newest(series: ObjectSeries, state: object, *, threads: int | None) -> str | None:
    """Load the newest whole step into a state; its path, or None if there is none.

    Where bytes of a step turn out to be damaged while they come, the state is overwritten in part: the older one that
    is loaded over that is proven before.

    Raises:
        DamagedError: The state is overwritten in part, and no older step is whole.
        CheckpointIOError: A step that may be the newest whole one cannot be read.
        MismatchError, and what else `fastckpt.load_into` raises.
    """
    for number in reversed(series.numbers):
        place = series.place(number)
        begun = False
        try:
            with open_source(place) as source:
                open_file(source)  # Without a structure that can be read, nothing of the state is overwritten.
                begun = True
                load_into(state, source, threads=threads)
            return os.fspath(place)
        except (DamagedError, NotACheckpointError, UnsupportedVersionError) as error:
            _log.warning("%s is not whole: %s", place, error)
            if not begun:
                continue
            older = series.newest_whole(before=number)
            if older is None:
                raise
            load_into(state, older, threads=threads)
            return os.fspath(older)
    return None
