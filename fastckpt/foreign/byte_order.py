"""Files of big-endian machines: the bytes of each number are turned round on the way in.

A torch zip says in its record ``byteorder`` how the machine that wrote it keeps numbers, and its storages are as they
were there. Legacy files are little-endian whoever wrote them: torch turned the bytes round when it saved.
"""

from __future__ import annotations

from array import array
from typing import Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.torch_state import TorchState
from fastckpt.io.source import Source
from fastckpt.layout.dtypes import BY_NAME

BIG: Final = b"big"
LITTLE: Final = b"little"
_CODES: Final = {2: "H", 4: "I", 8: "Q"}
_STEP: Final = 2**20


def unit_of(dtype: str) -> int:
    """Bytes of the numbers that elements of this type are made of: a complex one is two."""
    size = BY_NAME[dtype].itemsize
    return size // 2 if dtype.startswith("complex") else size


def units_in(state: TorchState) -> dict[str, int]:
    """Bytes of the numbers in each storage, by its key.

    A storage without a type of its own has that of the tensors in it.

    Raises:
        UnsupportedStateError: They have numbers of several sizes.
    """
    units = {
        key: storage.type.itemsize if storage.type.dtype is None else unit_of(storage.type.dtype)
        for key, storage in state.all_storages.items()
    }
    found: dict[str, int] = {}
    for entry in state.entries:
        storage = state.storages[entry.storage]
        if storage.type.global_name != "torch.UntypedStorage":
            continue
        if found.setdefault(storage.key, unit_of(entry.dtype)) != unit_of(entry.dtype):
            raise UnsupportedStateError(
                f"{entry.name} lies in big-endian bytes that another tensor sees as numbers of another size",
                tensor=entry.name,
                next_step="load it with torch on the machine that wrote it, and save a copy of this tensor",
            )
    return units | found


def turn_round(memory: memoryview, unit: int) -> None:
    """Reverse the bytes of each whole number in ``memory``, in place."""
    if unit not in _CODES:
        return
    end = memory.nbytes // unit * unit
    for at in range(0, end, _STEP):
        numbers = array(_CODES[unit])
        numbers.frombytes(memory[at : min(at + _STEP, end)])
        numbers.byteswap()
        memory[at : min(at + _STEP, end)] = memoryview(numbers).cast("B")


def turn_round_at(address: int, nbytes: int, unit: int) -> None:
    """`turn_round` for what begins at an address."""
    import ctypes  # Here, not above: it would slow the start of every command.

    if unit in _CODES and nbytes:
        turn_round(memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B"), unit)


def read_numbers(source: Source, offset: int, nbytes: int, unit: int, start: int, end: int) -> bytearray | memoryview:
    """The bytes ``[start, end)`` of a storage of ``nbytes`` at ``offset``, little-endian, in memory of their own."""
    first, last = start - start % unit, min(end + -end % unit, nbytes)
    raw = bytearray(source.read(offset + first, last - first))
    turn_round(memoryview(raw), unit)
    return raw if (first, last) == (start, end) else memoryview(raw)[start - first : end - first]
