"""What `fastckpt.salvage` is asked for, and the command line that asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final, NamedTuple

from fastckpt.errors import UsageError
from fastckpt.surveying.fates import Status
from fastckpt.text import plain_path

INCLUDABLE: Final = ("unverified", "partial", "damaged")
FILLS: Final = ("nan", "zeros")


class Request(NamedTuple):
    """What may come back, and from where.

    Attributes:
        like: The checkpoint that gives names.
        include: The statuses that are good enough; ``intact`` always is.
        fill: ``nan`` or ``zeros``, for missing bytes.
        backfill: The checkpoint from which the rest is taken.
    """

    like: str | None
    include: frozenset[Status]
    fill: str
    backfill: str | None

    def command(self, path: str, destination: str) -> str:
        """The command line that asks for this."""
        words = ["fastckpt", "salvage", plain_path(path), "-o", plain_path(destination)]
        include = [name for name in INCLUDABLE if Status(name) in self.include]
        words += ["--like", plain_path(self.like)] if self.like is not None else []
        words += ["--include", ",".join(include)] if include else []
        words += ["--fill", self.fill] if self.fill != "nan" else []
        words += ["--backfill", plain_path(self.backfill)] if self.backfill is not None else []
        return shlex.join(words)


def make_request(*, like: str | None, include: Iterable[str], fill: str, backfill: str | None) -> Request:
    """A request. Raises UsageError if a name in ``include``, or ``fill``, is unknown."""
    statuses = {Status.INTACT}
    for name in include:
        if name not in INCLUDABLE:
            raise UsageError(f"cannot include {name!r}; what can be included: {', '.join(INCLUDABLE)}")
        statuses.add(Status(name))
    if fill not in FILLS:
        raise UsageError(f"unknown fill {fill!r}; it is one of {', '.join(FILLS)}")
    return Request(like, frozenset(statuses), fill, backfill)
