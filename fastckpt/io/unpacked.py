"""The folder that unpacking a ``.pt`` leaves: read as the archive it was, which a temporary file stands for.

Nothing in such a folder proves what lies there: the CRC-32s were in the archive. So the archive that is read in its
place states none, as torch writes it where it computes none, and every reader says of it what it says of those.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.findings import Finding, Kind
from fastckpt.io.os_errors import is_directory, translate_os_error, typed_os_errors
from fastckpt.io.space import check_space
from fastckpt.layout.zip_bytes import descriptor, directory_row, end_records, local_header
from fastckpt.layout.zip_layout import Place, end_of, next_place
from fastckpt.remote.path import RemotePath
from fastckpt.text import quoted

_MOST_FILES: Final = 1_000_000
"""Files in a folder that are read: no state has so many storages."""
_DEEPEST: Final = 32
"""Folders in one another that are read. The program of a TorchScript archive has one for each package of Python."""
_PIECE: Final = 2**22
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FIRST: Final = "data.pkl"
_STORAGES: Final = "data/"
_BESIDE: Final = frozenset(("__MACOSX", ".DS_Store"))
"""What unpacking leaves beside the folder on a Mac."""

_ORDER: Final = (_FIRST, ".format_version", ".storage_alignment", "byteorder", _STORAGES, "", ".data/serialization_id")
"""The order in which torch writes its records; "" stands for all others."""


class _Record(NamedTuple):
    """A file of the folder, and where it stands in the archive."""

    name: str
    place: Place
    size: int


@dataclass(slots=True)
class Unpacked:
    """A folder, and the archive that stands for it.

    Attributes:
        folder: Its path from the root.
        fd: The temporary file with the archive; whoever takes it closes it.
        size: Bytes of all its files.
        findings: That nothing proves them, and what is no file in it.
        records: What the archive holds.
    """

    folder: str
    fd: int = -1
    size: int = 0
    findings: list[Finding] = field(default_factory=list)
    records: list[_Record] = field(default_factory=list)

    @property
    def how_to_pack(self) -> str:
        """The command that makes a .pt of the folder, beside it."""
        above, name = os.path.split(self.folder)
        return f"(cd {quoted(above)} && zip -0 -r -D {quoted(name + '.pt')} {quoted(name)})"

    def state_sums(self) -> None:
        """Let the archive state the CRC-32s of what was read, for whoever keeps it."""
        _write_around(self.fd, self.records, [_crc(self.fd, record) for record in self.records])


def unpacked_folder(path: str | os.PathLike[str]) -> str | None:
    """The folder of an unpacked .pt that a path is, or that is all there is in it; None of everything else."""
    top = os.path.abspath(os.fsdecode(path))
    if _is_unpacked(top):
        return top
    try:
        with os.scandir(top) as listing:
            inner = list(islice((item for item in listing if item.name not in _BESIDE), 2))
            (only,) = inner if len(inner) == 1 else [None]
            is_folder = only is not None and only.is_dir(follow_symlinks=False)
    except OSError:
        return None
    return only.path if only is not None and is_folder and _is_unpacked(only.path) else None


def is_directory_of_checkpoints(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a directory, and not the folder of an unpacked .pt, which is one checkpoint itself.

    In a store one that ends with a slash is.

    Raises:
        CheckpointIOError: The system does not say.
    """
    if isinstance(path, RemotePath):
        return path.is_directory
    return is_directory(path) and unpacked_folder(path) is None


def _is_unpacked(folder: str) -> bool:
    """Whether a folder has two of three records of torch's archives: one of them may be lost."""
    pickle, storage, version = (os.path.join(folder, *name) for name in ((_FIRST,), ("data", "0"), ("version",)))
    return _is_file(pickle) + _is_file(storage) + _is_version(version) >= 2


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_version(path: str) -> bool:
    if not _is_file(path):
        return False
    try:
        with open(path, "rb") as file:
            return re.fullmatch(rb"\d{1,9}\n?", file.read(16)) is not None
    except OSError:
        return False


def pack(folder: str) -> Unpacked:
    """The archive that stands for a folder, as torch would write it without CRC-32s.

    Raises:
        UnsupportedStateError: It has more files than any state.
        OutOfSpaceError, CheckpointIOError: There is no room for it, or a file in it cannot be read.
        DamagedError: A file in it changed while it was read.
    """
    packed = Unpacked(folder)
    text = "the folder of an unpacked .pt: its checksums were in the archive, and nothing proves its files"
    packed.findings.append(Finding(Kind.UNPROVEN, f"{text}; to pack it: {packed.how_to_pack}", 0, 0, loss=False))
    with contextlib.ExitStack() as stack:
        with typed_os_errors(folder, doing="read the folder"):
            top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, top)
            files = list(islice(_files_below(top, packed.findings), _MOST_FILES + 1))
            there = stack.enter_context(tempfile.TemporaryFile()).fileno()
        if len(files) > _MOST_FILES:
            raise UnsupportedStateError(f"the folder has more than {_MOST_FILES} files", path=folder)
        packed.size = sum(status.st_size for _, status in files)
        check_space(there, packed.size, tempfile.gettempdir())
        name = os.path.basename(folder)
        inside = name if name and name.isprintable() else "archive"
        at = 0
        for name, status in sorted(files, key=lambda file: _rank(file[0])):
            place = next_place(at, f"{inside}/{name}", status.st_size)
            packed.records.append(_Record(f"{inside}/{name}", place, status.st_size))
            _copy(top, name, status, there, place.data, path=os.path.join(folder, name))
            at = end_of(place, status.st_size)
        try:
            _write_around(there, packed.records, [0] * len(packed.records))
            packed.fd = os.dup(there)
        except OSError as error:
            doing = f"pack the folder into a file in {tempfile.gettempdir()}"
            raise translate_os_error(error, folder, doing=doing) from error
    return packed


def _rank(name: str) -> tuple[int, int, str]:
    """Where in the archive torch writes a record: storages by their numbers."""
    if name.startswith(_STORAGES):
        return _ORDER.index(_STORAGES), len(name), name
    return _ORDER.index(name if name in _ORDER else ""), 0, name


def _files_below(
    folder: int, findings: list[Finding], *, path: str = "", depth: int = _DEEPEST
) -> Iterator[tuple[str, os.stat_result]]:
    """The files in an open folder and those below it. What is none is not followed: it is a finding."""
    with os.scandir(folder) as listing:
        items = sorted(listing, key=lambda item: item.name)
    for item in items:
        name, status = f"{path}{item.name}", item.stat(follow_symlinks=False)
        wrong = _problem(name, status.st_mode, depth)
        if item.name in _BESIDE:
            continue
        if wrong is not None:
            findings.append(Finding(Kind.INCONSISTENT, f"{ascii(name)[1:-1][:200]} {wrong}", 0, 0, loss=False))
        elif stat.S_ISREG(status.st_mode):
            yield name, status
        else:
            inner = os.open(item.name, _FOLDER, dir_fd=folder)
            try:
                yield from _files_below(inner, findings, path=f"{name}/", depth=depth - 1)
            finally:
                os.close(inner)


def _problem(name: str, mode: int, depth: int) -> str | None:
    if not name.isprintable():
        return "has a name that no record has"
    if stat.S_ISLNK(mode):
        return "is a symbolic link, which is not followed"
    if stat.S_ISDIR(mode):
        return None if depth else "lies deeper than any record"
    return None if stat.S_ISREG(mode) else "is no regular file"


def _copy(top: int, name: str, status: os.stat_result, there: int, at: int, *, path: str) -> None:
    """Copy a file below the open folder ``top`` into ``there``, to the byte ``at``."""
    with (
        typed_os_errors(path, doing=f"copy it into a file in {tempfile.gettempdir()}"),
        open(_open_below(top, name), "rb", buffering=0) as file,
    ):
        os.lseek(there, at, os.SEEK_SET)
        done = 0
        while done < status.st_size:
            count = os.sendfile(there, file.fileno(), done, status.st_size - done)
            if not count:
                break
            done += count
        now = os.fstat(file.fileno())
    if _what(now) != _what(status) or done < status.st_size:
        raise DamagedError("the file changed while it was read", path=path, next_step="read the folder again")


def _what(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _open_below(top: int, name: str) -> int:
    """Open a file below an open folder; no part of its name may have become a symbolic link."""
    *folders, last = name.split("/")
    with contextlib.ExitStack() as stack:
        folder = top
        for part in folders:
            folder = os.open(part, _FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)


def _write_around(fd: int, records: Sequence[_Record], crcs: Sequence[int]) -> None:
    """Write what stands in front of the records, behind each, and behind all of them."""
    directory = bytearray()
    at = 0
    for (name, place, size), crc in zip(records, crcs, strict=True):
        _put(fd, local_header(name, place, size), place.header)
        _put(fd, descriptor(place, size, crc), place.data + size)
        directory += directory_row(name, place, size, crc)
        at = end_of(place, size)
    _put(fd, bytes(directory) + end_records(len(records), len(directory), at), at)


def _put(fd: int, data: bytes, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def _crc(fd: int, record: _Record) -> int:
    crc = 0
    for at in range(0, record.size, _PIECE):
        crc = zlib.crc32(os.pread(fd, min(_PIECE, record.size - at), record.place.data + at), crc)
    return crc
