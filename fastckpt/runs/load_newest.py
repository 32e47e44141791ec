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

    A set of shards is proven before it is loaded. Where bytes of another step turn out to be damaged while they come,
    the state is overwritten in part: the older one that is loaded over that is proven before.

    Raises:
        DamagedError: The state is overwritten in part, and no older step is whole.
        CheckpointIOError: A step that may be the newest whole one cannot be read.
        MismatchError, and what else `fastckpt.load_into` raises.
    """
    for number in reversed(series.numbers):
        place = series.place(number)
        if place.is_directory:
            return _load_proven(series, state, before=number + 1, threads=threads)
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
            older = _load_proven(series, state, before=number, threads=threads)
            if older is None:
                raise
            return older
    return None


def _load_proven(series: ObjectSeries, state: object, *, before: int, threads: int | None) -> str | None:
    """Load the newest step before one that is whole, all of which is read first."""
    newest = series.newest_whole(before=before)
    if newest is not None:
        load_into(state, newest, threads=threads)
    return None if newest is None else os.fspath(newest)
