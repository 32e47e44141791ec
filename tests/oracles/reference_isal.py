"""ISA-L, where the system has it (Debian: libisal2): another library's parity, as the oracle of ours."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_NAME: Final = ctypes.util.find_library("isal")
_LIBRARY: Final = ctypes.CDLL(_NAME) if _NAME is not None else None
WHY_NOT: Final = "" if _LIBRARY is not None else "libisal is not installed (Debian: apt install libisal2)"
_TABLE_BYTES: Final = 32
"""What `ec_init_tables` makes of each coefficient."""


def encode(leaves: Bytes, rows: int) -> Bytes:
    """The parity [rows, size] of leaves [count, size], by the matrix of ``gf_gen_rs_matrix``."""
    assert _LIBRARY is not None
    count, size = leaves.shape
    matrix = np.zeros((count + rows, count), np.uint8)
    _LIBRARY.gf_gen_rs_matrix(_address(matrix), count + rows, count)
    np.testing.assert_array_equal(matrix[:count], np.eye(count, dtype=np.uint8))
    tables = np.zeros(_TABLE_BYTES * count * rows, np.uint8)
    _LIBRARY.ec_init_tables(count, rows, _address(matrix[count:]), _address(tables))
    source = np.ascontiguousarray(leaves)
    parity = np.zeros((rows, size), np.uint8)
    _LIBRARY.ec_encode_data(size, count, rows, _address(tables), _pointers(source), _pointers(parity))
    return parity


def _address(array: Bytes) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(array: Bytes) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(array))(*(row.ctypes.data for row in array))
