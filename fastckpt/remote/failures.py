"""What a store refused, in words a person can act on, and without a secret."""

from __future__ import annotations

import errno
import re
from typing import Final

from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, DamagedError
from fastckpt.remote.url import hide_secrets

_LONGEST: Final = 300
_STATUS: Final = re.compile(r"status code: (\d{3}[^:<\n]*)(?:.*?<Code>(\w+)</Code>)?", re.DOTALL)


def changed(path: str, *, offset: int | None = None) -> DamagedError:
    """The object is another one than that which was opened."""
    return DamagedError(
        "the object was replaced while it was read",
        path=path,
        offset=offset,
        next_step="read it again; nothing of two versions was put together",
    )


def missing(path: str, why: str = "") -> CheckpointNotFoundError:
    """There is no such object; or no such bucket, if that is why."""
    if "NoSuchBucket" in why:
        what, advice = "there is no such bucket", "check the name of the bucket, its region and its endpoint"
    else:
        what, advice = "no such object, or no such bucket", "check the URL; that of a directory ends with a slash"
    return CheckpointNotFoundError(f"not found: {what}", errno=errno.ENOENT, path=path, next_step=advice)


def refused(path: str, why: str) -> CheckpointIOError:
    """The store wants credentials, or others."""
    return CheckpointIOError(
        f"the store does not allow it{said(why)}",
        errno=errno.EACCES,
        path=path,
        next_step="check the credentials: in the environment (AWS_ACCESS_KEY_ID, ...), or given as storage_options",
    )


def failed(path: str, why: str, *, offset: int | None = None) -> CheckpointIOError:
    """The last of several attempts failed."""
    return CheckpointIOError(
        f"the store does not answer as it should{said(why)}",
        path=path,
        offset=offset,
        next_step="check the network and the URL, and try again",
    )


def unusable_name(path: str, why: str) -> CheckpointIOError:
    """A listing holds a name that is none: obstore lists nothing then."""
    name = why.partition("Path ")[2].partition('"')[2].partition('"')[0]
    return CheckpointIOError(
        "an object below this has a name that no URL can have: an empty part, . or .., or a control character"
        + (f": {name!r}" if name else ""),
        path=path,
        next_step="give that object another name, or put the checkpoints below another prefix",
    )


def without_ranges(path: str) -> CheckpointIOError:
    """The server gives whole objects only."""
    return CheckpointIOError(
        "the server sends no parts of a file (HTTP ranges), which reading needs",
        path=path,
        next_step="download the file, and read it from the disk",
    )


def said(why: str) -> str:
    """What a library said, as the end of a sentence: its first lines, without what may be a secret.

    Of an answer of the server only its status: what else it says can repeat the request, with a signature in it.
    """
    if (found := _STATUS.search(why)) is not None:
        return f": {found[1].strip()}" + (f" ({found[2]})" if found[2] else "")
    text = hide_secrets(why.partition("\n\n")[0].partition("<")[0])
    text = " ".join(text.split())[:_LONGEST]
    return f": {text}" if text else ""
