"""Several files of which none stays if one cannot be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def all_or_none() -> Iterator[list[str]]:
    """A list for the paths of new files: those in it are removed if an error ends the ``with``.

    Only what this call wrote may be put into it. Of what the system does not let it remove nothing is said: the error
    that ended it matters more.
    """
    written: list[str] = []
    try:
        yield written
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
