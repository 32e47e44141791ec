"""`fastckpt.seal`: a file that is to stay as it is becomes one that can be verified."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Final, TypedDict

from fastckpt.errors import (
    CheckpointNotFoundError,
    DamagedError,
    FastckptError,
    MismatchError,
    NotACheckpointError,
    UnsupportedStateError,
    UnsupportedVersionError,
    UsageError,
)
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Kind
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists, file_path, is_directory
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.seals.digests import digests_of
from fastckpt.seals.encoded import Encoded, encoded
from fastckpt.seals.names import is_sums_path, sealed_name, sums_path
from fastckpt.seals.parity import Parity, parity_asked_for, share_of
from fastckpt.seals.sums import Sums, TensorRange, read_sums, write_sums
from fastckpt.seals.tensor_ranges import tensors_in_fckpt, tensors_in_foreign
from fastckpt.stored.command_that_heals import command_that_heals
from fastckpt.stored.verify import is_whole_by_itself, verify_source
from fastckpt.text import quoted

_WITH_OWN_CHECKSUMS: Final = ("fckpt", "torch-zip")
_NOT_UNDERSTOOD: Final = (NotACheckpointError, UnsupportedStateError, UnsupportedVersionError)


class SealedFacts(TypedDict):
    path: str
    sums: str
    size: int
    sums_size: int
    sha256: str | None
    tensors: int
    parity: str | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class Sealed:
    """What `fastckpt.seal` made.

    Attributes:
        path: The file.
        sums: Its sums file.
        size: Bytes of the file.
        sums_size: Bytes of the sums file.
        sha256: SHA-256 of the file in hex, if the seal has it.
        tensors: How many tensors the seal knows the places of.
        parity: Which share of the file the seal has as parity (``"3%"``), if any.
        is_new: False if there was a seal that says just this: it was left as it is.

    Example:
        >>> fastckpt.seal("state.fckpt").tensors
        2
    """

    path: str
    sums: str
    size: int
    sums_size: int
    sha256: str | None
    tensors: int
    parity: str | None
    is_new: bool

    def as_dict(self) -> SealedFacts:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "sums": self.sums,
            "size": self.size,
            "sums_size": self.sums_size,
            "sha256": self.sha256,
            "tensors": self.tensors,
            "parity": self.parity,
            "is_new": self.is_new,
        }


def seal(
    path: str | os.PathLike[str],
    *,
    parity: str | None = None,
    sha256: bool = False,
    update: bool = False,
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sealed:
    """Write the sums file of a file beside it, ``NAME.fckpt-sums``: from then on `verify`, `load` and all else use it.

    The file can be anything, such as a ``.safetensors``, which has no checksums of its own. A checkpoint that its own
    checksums, or its structure, show to be damaged is refused: what is sealed is called intact later.

    Args:
        path: The file. It is only read.
        parity: Keep parity, too, from which `repair` heals damage: ``"3%"`` or ``"10%"`` of the file's size, which is
            also how much of it in one piece may be lost. It takes no second pass over the file, unless ``sha256`` does.
        sha256: Keep its SHA-256, too, for other tools. That takes as long as SHA-256 does on one core.
        update: Replace a seal that the file does not match any more, because it was written anew on purpose.
        durable: Return only when the sums file survives a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.

    Returns:
        What the sums file says.

    Raises:
        MismatchError: There is a seal, and the file is not as it was sealed; or that seal is damaged. See ``update``.
        DamagedError: It is a checkpoint that is damaged; or it was changed or replaced while it was read.
        UsageError: It is a directory, or a sums file itself; or there is no such parity.
        NotACheckpointError: It is no regular file.
        OutOfSpaceError, CheckpointIOError: It cannot be read, or the sums file not be written; an old one stays.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.

    Example:
        >>> fastckpt.seal("state.fckpt").sums
        'state.fckpt.fckpt-sums'
        >>> fastckpt.verify("state.fckpt").ok
        True
    """
    name = file_path(path)
    if is_sums_path(name):
        raise UsageError("this is a sums file: it has digests of its own", path=name)
    if is_directory(name):
        raise UsageError("this is a directory", path=name, next_step=f"fastckpt seal {quoted(name)} seals each file")
    wanted = parity_asked_for(parity)
    with Source(name, may_be_empty=True) as source:
        count = reading_threads(source, threads)
        old = _old_seal(name, update=update, threads=count)
        wanted = wanted or (old.parity if old is not None else None)
        made, digest = _digests(source, wanted, sha256=sha256, threads=threads, progress=progress)
        with made as (leaves, rows):
            sums = Sums(sealed_name(name), source.size, leaves, digest, parity=wanted)
            if old is not None and sums.sha256 is None and _is_of_same_bytes(old, sums):
                sums = replace(sums, sha256=old.sha256)
            if old is not None and _is_same(old, sums) and is_whole_by_itself(sums_path(name), threads=count):
                return _sealed(name, old, is_new=False)
            if old is not None and not update and not _is_of_same_bytes(old, sums):
                raise MismatchError(
                    "there is a seal, and this is not what was sealed",
                    path=name,
                    next_step=f"fastckpt seal --check {quoted(name)} says what differs; "
                    f"fastckpt seal --update {quoted(name)} if it was written anew on purpose",
                )
            sums = replace(sums, tensors=_tensors_of_whole(source, threads=count))
            source.require_unchanged(next_step="seal it when nobody writes to it")
            source.require_in_place(next_step="seal it when nobody writes to it")
            write_sums(sums, sums_path(name), How(count, durable), encoded=rows)
    return _sealed(name, sums, is_new=True)


_Digested = tuple[memoryview, Encoded | None]


def _digests(
    source: Source, parity: Parity | None, *, sha256: bool, threads: int | None, progress: Progress | None
) -> tuple[AbstractContextManager[_Digested], str | None]:
    """The leaf digests of a file, and its parity if that is wanted; and its SHA-256."""
    if parity is None:
        digests = digests_of(source, sha256=sha256, threads=threads, progress=progress)
        return nullcontext((digests.leaves, None)), digests.sha256
    digest = digests_of(source, sha256=True, threads=threads, progress=progress).sha256 if sha256 else None
    return _with_parity(source, parity, threads, progress), digest


@contextmanager
def _with_parity(source: Source, parity: Parity, threads: int | None, progress: Progress | None) -> Iterator[_Digested]:
    count = reading_threads(source, threads)
    with encoded(source, parity, beside=sums_path(source.path), threads=count, progress=progress) as rows:
        yield rows.leaves, rows


def _sealed(path: str, sums: Sums, *, is_new: bool) -> Sealed:
    beside = sums_path(path)
    size = os.path.getsize(beside) if exists(beside) else 0
    share = share_of(sums.parity) if sums.parity is not None else None
    return Sealed(path, beside, sums.size, size, sums.sha256, len(sums.tensors), share, is_new)


def _old_seal(path: str, *, update: bool, threads: int) -> Sums | None:
    """The seal that there is; None where there is none, or it cannot be used and is to be replaced."""
    beside = sums_path(path)
    if not exists(beside):
        return None
    try:
        return read_sums(beside, threads=threads)
    except CheckpointNotFoundError:
        return None
    except (DamagedError, NotACheckpointError, UnsupportedVersionError) as error:
        if update:
            return None
        raise MismatchError(f"the seal that there is cannot be used: {error}", path=path) from None


def _is_of_same_bytes(old: Sums, new: Sums) -> bool:
    return (old.name, old.size) == (new.name, new.size) and bytes(old.digests) == bytes(new.digests)


def _is_same(old: Sums, new: Sums) -> bool:
    """Whether nothing that is wanted now is lacking in a seal."""
    has_parity = new.parity is None or old.parity == new.parity
    return _is_of_same_bytes(old, new) and has_parity and (new.sha256 is None or old.sha256 == new.sha256)


def _tensors_of_whole(source: Source, *, threads: int) -> Sequence[TensorRange]:
    """Where the tensors of a checkpoint lie; of what is none, nothing.

    Raises:
        DamagedError: It is damaged already.
    """
    if not source.size:
        return ()
    try:
        kind = kind_of(source)
        if kind in _WITH_OWN_CHECKSUMS:
            _require_whole(source, threads)
        if kind == "fckpt":
            return list(tensors_in_fckpt(CheckpointFile(source)))
        if kind is None or kind == "tar":
            return ()
        foreign = open_foreign(source)
        return () if source.has_other_form else list(tensors_in_foreign(foreign))
    except _NOT_UNDERSTOOD:
        return ()
    except DamagedError as error:
        raise _refusal(source.path, error) from None


def _require_whole(source: Source, threads: int) -> None:
    wrong = [f for f in verify_source(source, threads=threads, sealed=False).findings if f.kind is not Kind.UNPROVEN]
    if wrong:
        raise DamagedError(wrong[0].message, offset=wrong[0].offset)


def _refusal(path: str, error: FastckptError) -> DamagedError:
    return DamagedError(
        f"it is damaged already, and what is sealed is called intact later: {error.message}",
        path=path,
        offset=error.offset,
        tensor=error.tensor,
        next_step=command_that_heals(path) or f"fastckpt salvage {quoted(path)}",
    )
