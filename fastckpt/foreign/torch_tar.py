"""Files of torch's first years (before 0.1.10): a tar archive of four files. None of them is unpacked.

sys_info | pickle: the object; tensors and storages in it are numbers |
tensors: how many, then for each: its number, its storage's, its class; dimensions, shape, stride and offset |
storages: how many, then for each: its number, device and class, its length in elements, its bytes; then views of them
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile, ForeignStorage, Opaque
from fastckpt.foreign.pickle_input import PickleCutError
from fastckpt.foreign.pickle_reader import PickleReader
from fastckpt.foreign.tar_members import TarMember, tar_members
from fastckpt.foreign.torch_legacy import legacy_file
from fastckpt.foreign.torch_objects import KNOWN_GLOBALS, MAX_EXTENT, Storage, StorageType, apply, bad_call
from fastckpt.foreign.torch_semantics import TorchSemantics
from fastckpt.foreign.torch_state import TorchState, read_state
from fastckpt.foreign.torch_zip import MAX_PICKLE_SIZE
from fastckpt.io.source import Source

MEMBERS: Final = ("sys_info", "pickle", "tensors", "storages")
_WINDOW: Final = 4096
_WINDOW_GROWTH: Final = 16
_LENGTH: Final = struct.Struct("<q")
_DIMENSIONS: Final = struct.Struct("<i4x")
_MAX_NDIM: Final = 64
_NUMBER_BITS: Final = 64


@dataclass(slots=True)
class TarParts:
    """What a file holds, as far as it can be read.

    Attributes:
        state: The object; None if it cannot be read.
        places: Where the storages lie, by key; of one that is cut, the place where it begins.
        end: Where the archive ends.
        problem: The first thing that is wrong with it.
    """

    state: TorchState | None = None
    places: dict[str, ForeignStorage] = field(default_factory=dict)
    end: int = 0
    problem: DamagedError | None = None

    def note(self, error: DamagedError) -> None:
        """Note something that is wrong, unless something was before."""
        self.problem = self.problem or error


def open_torch_tar(source: Source) -> ForeignFile:
    """Read the structure of a tar file of torch; no storage is read.

    Raises:
        DamagedError: The file is cut or damaged.
        UnsupportedStateError: Its pickle is too long, or holds what no state can.
    """
    parts = read_parts(source)
    state = parts.state
    if parts.problem is not None or state is None:
        raise parts.problem or DamagedError("there is no object in it")
    return legacy_file(source, state, parts.places, parts.end)


def read_parts(source: Source) -> TarParts:
    """Read what there is. Damage is in the result, never raised.

    Raises:
        UnsupportedStateError: Its pickle is too long, or holds what no state can.
    """
    parts = TarParts()
    source.bring_near()
    try:
        members, parts.end = tar_members(source, most=len(MEMBERS))
    except DamagedError as error:
        parts.note(error)
        return parts
    by_name = {member.name: member for member in members}
    missing = [name for name in MEMBERS[1:] if name not in by_name]
    if missing:
        parts.note(DamagedError(f"the tar archive of torch has no file {missing[0]!r}", offset=source.size))
        if missing != ["storages"]:
            return parts
    semantics = _Semantics(by_name["pickle"], by_name["tensors"], source.size)
    if not missing:
        _read_storages(_Stream(source, by_name["storages"], semantics), parts, semantics)
    try:
        _read_tensors(_Stream(source, by_name["tensors"], semantics), parts, semantics)
        semantics.unknown.clear()  # The classes of tensors are no objects of the state.
        parts.state = _read_object(source, by_name["pickle"], semantics)
    except DamagedError as error:
        parts.note(error)
    return parts


class _Semantics(TorchSemantics):
    """The same globals as ever; a persistent id is the number of a tensor or storage.

    Attributes:
        objects: These, by number as text: hashes of ints could be chosen to make it slow.
    """

    def __init__(self, pickle: TarMember, tensors: TarMember, limit: int) -> None:
        self.described = min(tensors.size, limit)
        super().__init__(min(pickle.size, limit) + self.described)
        self.objects: dict[str, object] = {}

    def load_persistent(self, identifier: object) -> object:
        """The tensor or storage of this number; or a class of modules, which has its source text beside it."""
        if type(identifier) is tuple and identifier:
            return identifier[0]
        found = self.objects.get(identifier if type(identifier) is str else _key(identifier))
        if found is None:
            raise bad_call("a persistent id", "no number of a tensor or storage")
        return found

    def add_storage(self, location: str, storage: Storage) -> None:
        """Note a storage of the file."""
        self.storages[storage.key] = self.objects[storage.key] = storage
        self.locations[location] = self.locations.get(location, 0) + 1


def _key(number: object) -> str:
    """The text under which a tensor or storage is found. Raises DamagedError for what is no number of one."""
    if type(number) is not int or number.bit_length() > _NUMBER_BITS:
        raise DamagedError("a tensor or storage in the tar archive has no number")
    return str(number)


class _Stream:
    """A file in the archive, read from its beginning to its end: pickles and numbers."""

    def __init__(self, source: Source, member: TarMember, semantics: _Semantics) -> None:
        self.source, self.semantics = source, semantics
        self.name, self.at = member.name, member.offset
        self.end = min(member.offset + member.size, source.size)

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > self.end - self.at:
            raise DamagedError(f"the file {self.name!r} in the tar archive is cut", offset=self.at)
        self.at += size
        return self.source.read(self.at - size, size)

    def pickle(self) -> Any:
        """The next pickle. Nothing says how long it is: ever larger pieces are tried."""
        window = _WINDOW
        while True:
            size = min(window, self.end - self.at)
            reader = PickleReader(self.source.read(self.at, size), self.semantics)
            try:
                value = reader.read()
            except PickleCutError as error:
                if size < window or window > MAX_PICKLE_SIZE:
                    raise DamagedError(f"the file {self.name!r} in the tar archive is cut", offset=self.at) from error
                window *= _WINDOW_GROWTH
            else:
                self.at += reader.at
                return value

    def count(self) -> int:
        """How many things follow."""
        value = self.pickle()
        if type(value) is not int or not 0 <= value <= self.end - self.at:
            raise DamagedError(f"the file {self.name!r} in the tar archive begins with no count", offset=self.at)
        return value

    def row(self, size: int) -> Any:
        """A pickled tuple of this size."""
        value = self.pickle()
        if type(value) is not tuple or len(value) != size:
            raise DamagedError(f"a row of the file {self.name!r} in the tar archive is not valid", offset=self.at)
        return value

    def require_end(self) -> None:
        """Raise DamagedError if something follows."""
        if self.at != self.end:
            what = f"{self.end - self.at} bytes follow the last row of the file {self.name!r} in the tar archive"
            raise DamagedError(what, offset=self.at)


def _read_storages(stream: _Stream, parts: TarParts, semantics: _Semantics) -> None:
    try:
        for _ in range(stream.count()):
            number, location, kind = stream.row(3)
            if type(location) is not str or type(kind) is not StorageType:
                raise DamagedError("a storage has no device, or a class that is not known", offset=stream.at)
            (numel,) = _LENGTH.unpack(stream.take(_LENGTH.size))
            if numel < 0:
                raise DamagedError("a storage has a negative length", offset=stream.at)
            storage = Storage(_key(number), kind, numel * kind.itemsize)
            if storage.key in parts.places:
                raise DamagedError(f"the storage {storage.key} is there twice", offset=stream.at)
            parts.places[storage.key] = ForeignStorage(storage.key, stream.at, storage.nbytes, None)
            semantics.add_storage(location, storage)
            if storage.nbytes > stream.end - stream.at:
                raise DamagedError("the file is cut inside of a storage", offset=stream.at)
            stream.at += storage.nbytes
        _read_views(stream, semantics)
        stream.require_end()
    except DamagedError as error:
        parts.note(error)


def _read_views(stream: _Stream, semantics: _Semantics) -> None:
    """The storages that are a part of another one."""
    views = stream.pickle()
    if type(views) is not list:
        raise DamagedError("the list of views of storages is none", offset=stream.at)
    for view in views:
        if type(view) is not tuple or len(view) != 4 or not all(type(part) is int for part in view):
            raise DamagedError("a view of a storage is no row of four numbers", offset=stream.at)
        number, root_number, offset, numel = view
        root = semantics.objects.get(_key(root_number))
        if type(root) is not Storage or not 0 <= offset <= offset + numel <= root.nbytes // root.type.itemsize:
            raise DamagedError("a view of a storage does not lie in it", offset=stream.at)
        semantics.objects[_key(number)] = Storage(
            root.key, root.type, root.nbytes, root.start + offset * root.type.itemsize
        )


class _Row(NamedTuple):
    """A tensor: its number, its storage's (None: it has none), the type of that, and where in it it lies."""

    number: str
    storage: str | None
    type: StorageType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes that the storage must have at least."""
        if 0 in self.shape or self.storage is None:
            return 0
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.type.itemsize


def _read_tensors(stream: _Stream, parts: TarParts, semantics: _Semantics) -> None:
    rows = [_read_row(stream) for _ in range(stream.count())]
    stream.require_end()
    _stand_in(rows, parts, semantics)
    for row in rows:
        storage = semantics.objects.get(row.storage) if row.storage is not None else None
        if row.storage is None:
            storage = Storage(f"none of {row.number}", row.type, 0)
            semantics.storages[storage.key] = storage
            parts.places[storage.key] = ForeignStorage(storage.key, stream.at, 0, None)
        semantics.objects[row.number] = apply(_TENSOR, (storage, row.offset, row.shape, row.stride))


def _read_row(stream: _Stream) -> _Row:
    number, storage, kind = stream.row(3)
    (ndim,) = _DIMENSIONS.unpack(stream.take(_DIMENSIONS.size))
    if not 0 <= ndim <= _MAX_NDIM:
        raise DamagedError("a row of the file 'tensors' in the tar archive is not valid", offset=stream.at)
    numbers = struct.unpack(f"<{2 * ndim + 1}q", stream.take(8 * (2 * ndim + 1)))
    if any(number < 0 for number in numbers):
        raise DamagedError("a tensor has a negative extent, stride or offset", offset=stream.at)
    home = None if storage is None else _key(storage)
    return _Row(_key(number), home, _storage_type(kind), numbers[:ndim], numbers[ndim:-1], numbers[-1])


def _stand_in(rows: list[_Row], parts: TarParts, semantics: _Semantics) -> None:
    """What stands for storages that are lost, so that their tensors keep names and shapes: as large as these need."""
    lost: dict[str, int] = {}
    for row in rows:
        if row.storage is not None and type(semantics.objects.get(row.storage)) is not Storage:
            lost[row.storage] = max(lost.get(row.storage, 0), row.nbytes)
    if lost and parts.problem is None:
        raise DamagedError(f"{len(lost)} storages are missing in the tar archive")
    if any(nbytes >= MAX_EXTENT for nbytes in lost.values()):
        raise DamagedError("a tensor has more bytes than 63 bits can count")
    types = {row.storage: row.type for row in rows}
    for number, nbytes in lost.items():
        semantics.add_storage("lost", Storage(number, types[number], nbytes))


def _storage_type(tensor_class: object) -> StorageType:
    """The storage class of a tensor class such as ``torch.cuda.FloatTensor``."""
    name = tensor_class.global_name if type(tensor_class) is Opaque else ""
    kind = KNOWN_GLOBALS.get(name.removesuffix("Tensor") + "Storage")
    if type(kind) is not StorageType:
        raise DamagedError(f"a tensor is of a class that is not known: {name[:80]!r}")
    return kind


def _read_object(source: Source, member: TarMember, semantics: _Semantics) -> TorchState:
    if member.size > MAX_PICKLE_SIZE:
        raise UnsupportedStateError(f"the pickle is longer than {MAX_PICKLE_SIZE} bytes")
    data = source.read(member.offset, member.size, what="pickle in the tar archive")
    state, end = read_state(data, semantics=semantics)
    if end != len(data):
        raise DamagedError(f"{len(data) - end} bytes follow the pickle", offset=member.offset + end)
    return state


_TENSOR: Final[Any] = KNOWN_GLOBALS["torch._utils._rebuild_tensor"]
