"""Which parity a file is healed by: that in its seal, or that inside of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from fastckpt.errors import CheckpointIOError, FastckptError, MismatchError
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.seals.beside import advice_for_another
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.inside import InsideRemains
from fastckpt.seals.names import sums_path
from fastckpt.seals.remains import SumsRemains, open_remains
from fastckpt.seals.standing import Standing
from fastckpt.stored.inside_or_whole import inside_or_whole
from fastckpt.stored.why_another import why_another
from fastckpt.text import quoted


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be healed.

    Attributes:
        source: The damaged file.
        how: With how many threads.
        progress: Called now and then with the bytes compared so far.
        as_sealed: Whether what the parity is of is wanted, also where another file stands there by now.
    """

    source: Source
    how: How
    progress: Progress | None
    as_sealed: bool


class Chosen(NamedTuple):
    """What a file is healed by.

    Attributes:
        remains: Where the parity is.
        standing: How the file stands to it.
        no_seal: Why the seal beside it is not used, if there is one and it is of another file or damaged.
    """

    remains: SumsRemains | InsideRemains
    standing: Standing
    no_seal: FastckptError | None = None


def choose_parity(wanted: Wanted, stack: ExitStack) -> Chosen:
    """The seal beside a file, if that can be used and its parity heals all; else what is inside, if that does; else
    the one that can be used. It is open as long as ``stack``.

    Raises:
        MismatchError: There is neither; or the file was written anew since.
        DamagedError: Nothing proves any more what was sealed or saved.
        CheckpointIOError: The seal, or the file, cannot be read.
    """
    source = wanted.source
    beside: Chosen | None = None
    failure: FastckptError | None = None
    if exists(sums_path(source.path)):
        try:
            beside = _of(_beside(source, stack, wanted.how), wanted)
            if _heals_all(beside):
                return beside
        except FastckptError as error:
            failure = error
    try:
        remains = inside_or_whole(source, threads=wanted.how.threads)
        inside = _of(remains, wanted) if remains is not None else None
    except FastckptError as error:
        inside, failure = None, failure or error
    if inside is not None and (beside is None or _heals_all(inside)):
        return inside._replace(no_seal=failure)
    if beside is not None:
        return beside
    raise failure or MismatchError(
        "there is no seal beside it, and no parity was found inside, so nothing tells what it was",
        path=source.path,
        next_step=f"fastckpt salvage {quoted(source.path)}, if it is a checkpoint",
    )


def _beside(source: Source, stack: ExitStack, how: How) -> SumsRemains:
    beside = sums_path(source.path)
    try:
        return stack.enter_context(open_remains(beside, threads=how.threads))
    except FastckptError as error:
        if error.path == beside and not isinstance(error, CheckpointIOError):
            error.next_step = f"fastckpt salvage {quoted(source.path)}, if it is a checkpoint"
        raise


def _heals_all(chosen: Chosen) -> bool:
    return not hopeless_leaves(chosen.remains, chosen.standing.bad_numbers)


def _of(remains: SumsRemains | InsideRemains, wanted: Wanted) -> Chosen:
    """How the file stands to this parity. Raises MismatchError if it is of another one."""
    source = wanted.source
    standing = remains.standing(source, threads=wanted.how.threads, progress=wanted.progress)
    why = "" if wanted.as_sealed else why_another(source, standing, threads=wanted.how.threads)
    if why and isinstance(remains, InsideRemains):
        raise MismatchError(
            "bytes of another save stand in it, and their own checksums prove them: the parity inside is not of them",
            path=source.path,
            next_step=f"fastckpt salvage {quoted(source.path)}; fastckpt repair {quoted(source.path)} -o OTHER writes "
            "the save that the parity is of, if enough of that is left",
        )
    if why:
        raise MismatchError(
            f"this is not the file that was sealed: {why}",
            path=source.path,
            next_step=advice_for_another(source.path, remains.sums),
        )
    if standing.stale:
        behind = max(source.size - remains.sums.size, 0)
        standing = Standing(standing.sums, standing.size, bad=standing.other, behind=behind)
    return Chosen(remains, standing)
