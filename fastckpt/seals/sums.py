"""What a sums file says of the file that it stands beside; SPEC.md, section 26.

It is an ordinary ``.fckpt``. What is used of it is verified before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from fastckpt import _core
from fastckpt.constants import (
    LEAF_DIGEST_SIZE,
    LEAF_SIZE,
    MAX_FILE_SIZE,
    SEAL_DIGESTS,
    SEAL_DIGESTS_COPY,
    SEAL_KEY,
    SUMS_SUFFIX,
)
from fastckpt.errors import DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.transfer import MEMORY
from fastckpt.layout.blocks import Extent, align
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.records import count_leaves
from fastckpt.layout.tree import TensorRef, encode_tree
from fastckpt.seals.encoded import Encoded
from fastckpt.seals.parity import Parity
from fastckpt.seals.proven import Place, proven_digests
from fastckpt.text import quoted

DIGEST_TENSORS: Final = ((SEAL_DIGESTS, 0), (SEAL_DIGESTS_COPY, LEAF_SIZE))
"""The tensors that all digests stand in, and the byte of each that they begin at."""

_SHA256_DIGITS: Final = 64


class TensorRange(NamedTuple):
    """Bytes of a file in which a tensor lies."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte after them."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Sums:
    """What a sums file says of a file.

    Attributes:
        name: The name of the file that was sealed, without its directory.
        size: Its bytes.
        digests: Of each leaf of it, u64 little-endian.
        sha256: SHA-256 of all of it, in hex, if that was wanted.
        tensors: Where its tensors lie, as far as that was known.
        parity: How much parity the sums file has.
        made: What was done to the file then: ``sealed``, or ``saved`` with its parity inside.
    """

    name: str
    size: int
    digests: memoryview
    sha256: str | None = None
    tensors: Sequence[TensorRange] = ()
    parity: Parity | None = None
    made: Literal["sealed", "saved"] = "sealed"

    @property
    def leaves(self) -> int:
        """How many leaves it has."""
        return count_leaves(self.size)

    def leaf_extent(self, first: int, count: int = 1) -> Extent:
        """Where leaves lie in the file."""
        begin = first * LEAF_SIZE
        return Extent(begin, min(begin + count * LEAF_SIZE, self.size) - begin)

    def leaves_around(self, begin: int, end: int) -> Extent:
        """The whole leaves that bytes ``[begin, end)`` of the file lie in."""
        first = begin // LEAF_SIZE * LEAF_SIZE
        return Extent(first, min(align(end, LEAF_SIZE), self.size) - first)

    def digests_of(self, leaves: Extent) -> memoryview:
        """The digests of whole leaves."""
        first = leaves.offset // LEAF_SIZE
        return self.digests[first * LEAF_DIGEST_SIZE : (first + count_leaves(leaves.size)) * LEAF_DIGEST_SIZE]


def write_sums(sums: Sums, path: str, how: How, *, encoded: Encoded | None = None) -> None:
    """Write a sums file, all of it or nothing; ``encoded`` is the parity that ``sums`` speaks of.

    Parity tells what is in the file, all of it where that is small: who may not read the one may not read the other.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
    """
    says: dict[str, Any] = {
        "name": sums.name,
        "size": sums.size,
        "leaf": LEAF_SIZE,
        "sha256": sums.sha256,
        "tensors": [list(row) for row in sums.tensors] or None,
    }
    tensors = {SEAL_DIGESTS: (MEMORY, _core.address(sums.digests) if len(sums.digests) else 0)}
    copy = b""
    if encoded is not None:
        says |= {"k": encoded.parity.depth, "m": encoded.parity.rows}
        tensors |= {name: (encoded.source, at) for name, at in zip(encoded.parity.names, encoded.origins, strict=True)}
        copy = bytes(LEAF_SIZE) + sums.digests
        tensors[SEAL_DIGESTS_COPY] = (MEMORY, _core.address(copy))
    shapes = tensors_of(sums)
    content = Content(
        tree=encode_tree({name: TensorRef(number) for number, name in enumerate(shapes)}),
        metadata_tree=encode_tree({SEAL_KEY: says}),
        entries=[
            Entry(name, "uint8", shape, contiguous_stride(shape), number, 0)
            for number, (name, shape) in enumerate(shapes.items())
        ],
        storage_sizes=[math.prod(shape) for shape in shapes.values()],
        origins=[tensors[name][1] for name in shapes],
        sources=[tensors[name][0] for name in shapes],
    )
    with typed_os_errors(path, doing="look who may read the file that is sealed"):
        mode = os.stat(path.removesuffix(SUMS_SUFFIX)).st_mode & 0o666 | 0o600
    write_checkpoint(content, path, codec="none", durable=how.durable, threads=how.threads, mode=mode)


def read_sums(path: str | os.PathLike[str], *, threads: int) -> Sums:
    """Read a sums file: what it says, and its digests, each proven by a leaf of the sums file itself.

    Raises:
        DamagedError: It is damaged, or is none.
        NotACheckpointError, UnsupportedVersionError: So.
        CheckpointNotFoundError: There is none.
        CheckpointIOError: It cannot be read.
    """
    try:
        with CheckpointFile(path) as file:
            sums = _decode(file, threads)
            file.source.require_unchanged(next_step="try it again")
            return sums
    except FastckptError as error:
        name = os.fspath(path)
        error.path = error.path or name
        error.next_step = f"fastckpt seal --update {quoted(name.removesuffix(SUMS_SUFFIX))}, if that is as it should be"
        raise


def _decode(file: CheckpointFile, threads: int) -> Sums:
    said = sums_said(file.manifest.metadata)
    entries = {entry.name: entry for entry in file.checked_entries()}
    shapes = tensors_of(said)
    for name, shape in shapes.items():
        entry = entries.get(name)
        if entry is None or not is_of_bytes(entry):
            raise DamagedError(f"the tensor {name!r} of this sums file is not one of bytes")
        if entry.shape != shape:
            raise DamagedError(
                f"the {name!r} of a file of {said.size} bytes have another shape", expected=shape, actual=entry.shape
            )
        if not file.record(file.manifest.storages[entry.storage].record).is_raw:
            raise DamagedError(f"the {name!r} of a sums file are never compressed")
    stored = {name: file.manifest.storages[entry.storage] for name, entry in entries.items()}
    places = [
        (Place(file.record(stored[name].record), stored[name].offset), begins)
        for name, begins in DIGEST_TENSORS
        if name in shapes
    ]
    return replace(said, digests=proven_digests(file.source, places, said.leaves * LEAF_DIGEST_SIZE, threads=threads))


def tensors_of(sums: Sums) -> dict[str, tuple[int, ...]]:
    """The tensors that its sums file has, by name, with their shapes, in order; all of them are of bytes.

    With parity one damaged leaf of a sums file, however small that is, costs each group at most one leaf of parity, and
    no digest: nothing that stands in for another shares a leaf with it.
    """
    count = sums.leaves * LEAF_DIGEST_SIZE
    shapes: dict[str, tuple[int, ...]] = {SEAL_DIGESTS: (count,)}
    if sums.parity is None:
        return shapes
    shapes[SEAL_DIGESTS_COPY] = (LEAF_SIZE + count,)
    shapes |= dict.fromkeys(sums.parity.names, (sums.parity.groups(sums.size), LEAF_SIZE))
    first, *others = list(sums.parity.names)
    order = [first, SEAL_DIGESTS, *others[:1], SEAL_DIGESTS_COPY, *others[1:]]
    return {name: shapes[name] for name in order}


def is_of_bytes(entry: Entry) -> bool:
    """Whether a tensor is all bytes of its storage, in order."""
    return entry.dtype == "uint8" and not entry.storage_offset and entry.is_contiguous


def sums_said(metadata: dict[Any, Any]) -> Sums:
    """What the metadata of a sums file says; without its digests.

    Raises:
        DamagedError: It is none.
        UnsupportedVersionError: It needs a newer fastckpt.
    """
    says = metadata.get(SEAL_KEY)
    if type(says) is not dict:
        raise DamagedError(f"this is no sums file: its metadata has no {SEAL_KEY!r}")
    leaf = _field(says, "leaf", lambda value: type(value) is int)
    if leaf != LEAF_SIZE:
        raise UnsupportedVersionError("the leaves of this seal have another size", expected=LEAF_SIZE, actual=leaf)
    name = _field(says, "name", lambda value: type(value) is str and bool(value))
    size = _field(says, "size", lambda value: type(value) is int and 0 <= value <= MAX_FILE_SIZE)
    sha256 = _field(says, "sha256", lambda value: value is None or _is_sha256(value))
    return Sums(name, size, memoryview(b""), sha256, _tensors(says.get("tensors"), size), _parity(says))


def _parity(says: dict[str, Any]) -> Parity | None:
    if says.get("k") is None and says.get("m") is None:
        return None
    parity = Parity(*(_field(says, name, lambda value: type(value) is int) for name in "km"))
    if not parity.is_possible:
        raise UnsupportedVersionError("this seal has parity of another kind", actual=repr(tuple(parity)))
    return parity


def _field(says: dict[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    value = says.get(name)
    if not fits(value):
        raise DamagedError(f"the {name!r} of this seal is none", actual=repr(value)[:80])
    return value


def _is_sha256(value: object) -> bool:
    if type(value) is str and len(value) == _SHA256_DIGITS:
        with suppress(ValueError):
            return bytes.fromhex(value).hex() == value
    return False


def _tensors(table: object, size: int) -> list[TensorRange]:
    if table is None:
        return []
    rows = []
    for row in table if type(table) is list else ():
        if type(row) is not list or [type(cell) for cell in row] != [str, int, int]:
            break
        if not (row[1] >= 0 <= row[2] and row[1] + row[2] <= size):
            raise DamagedError(f"a tensor of this seal lies outside of the file: {row[0][:80]!r}", expected=size)
        rows.append(TensorRange(*row))
    if type(table) is not list or len(rows) != len(table):
        raise DamagedError("the table of tensors of this seal is none")
    return rows
