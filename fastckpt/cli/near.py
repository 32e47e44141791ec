"""What a person may have meant who named a file that is not there."""

from __future__ import annotations

import itertools
import os
from typing import Final

from fastckpt.errors import CheckpointNotFoundError, FastckptError
from fastckpt.remote.url import is_url
from fastckpt.text import close_to, quoted, some

_MOST_LOOKED_AT: Final = 2000
"""Names of a directory that are compared: with more, the answer would keep people waiting."""


def with_near_names(error: FastckptError) -> FastckptError:
    """An error about a path that is not there, with the names that are near it as the next step; others as they are."""
    if not isinstance(error, CheckpointNotFoundError) or error.path is None or is_url(error.path):
        return error
    if not os.path.lexists(error.path):
        error.next_step = _advice(error.path) or error.next_step
    return error


def _advice(path: str) -> str | None:
    above, name = os.path.split(os.path.normpath(path))
    rest = ""
    while above and not os.path.isdir(above):
        rest = os.path.join(name, rest) if rest else name
        above, name = os.path.split(above)
    try:
        with os.scandir(above or ".") as listing:
            names = [item.name for item in itertools.islice(listing, _MOST_LOOKED_AT)]
    except OSError:
        return None
    close = close_to(name, names, 3)
    whole = [os.path.join(above, one, rest) for one in close if rest and os.path.exists(os.path.join(above, one, rest))]
    if close:
        return f"did you mean {' or '.join(map(quoted, whole or [os.path.join(above, one) for one in close]))}?"
    if rest:
        return f"there is no {name} in {above or 'this directory'}"
    # It looks into files: whoever only mistyped a command does not wait until all that is loaded.
    from fastckpt.cli.files import is_checkpoint_file

    files = sorted(one for one in names if is_checkpoint_file(os.path.join(above, one)))
    return f"{above or 'this directory'} has {some(map(quoted, files))}" if files else None
