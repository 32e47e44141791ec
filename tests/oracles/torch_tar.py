"""Files as torch wrote them before 0.1.10: a tar archive. torch still reads them, and has not written any for years."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import torch


def save_tar(state: Any, path: Path, *, views: list[tuple[int, int, int, int]] | None = None, pax: bool = True) -> None:
    """Write a state of plain tensors and storages.

    Args:
        state: The state.
        path: The file.
        views: Rows that make a storage of a part of another one: number, number of the whole, offset and length.
        pax: With the times of the files as Python 3 writes them, in headers of their own.
    """
    numbers: dict[int, int] = {}
    tensors: dict[int, torch.Tensor] = {}
    storages: dict[int, Any] = {}

    def number_of(key: int) -> int:
        return numbers.setdefault(key, 10**9 + len(numbers))

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                tensors[number_of(id(value))] = value
                return str(number_of(id(value)))
            if isinstance(value, torch.storage.TypedStorage):
                number = number_of(value._untyped_storage._cdata)
                storages[number] = value
                return str(number)
            return None

    parts: dict[str, bytes] = {"sys_info": pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)}
    out = io.BytesIO()
    Pickler(out, 2).dump(state)
    parts["pickle"] = out.getvalue()
    out = io.BytesIO()
    out.write(pickle.dumps(len(tensors), 2))
    for number, tensor in tensors.items():
        storage = tensor.storage()
        key = number_of(storage._untyped_storage._cdata)
        storages[key] = storage
        out.write(_row(number, key, f"{_NAMES[tensor.dtype]}Tensor"))
        rank = tensor.dim()
        out.write(struct.pack("<q", rank))
        out.write(struct.pack(f"<{2 * rank + 1}q", *tensor.shape, *tensor.stride(), tensor.storage_offset()))
    parts["tensors"] = out.getvalue()
    out = io.BytesIO()
    out.write(pickle.dumps(len(storages), 2))
    for number, storage in storages.items():
        out.write(_row(number, "cpu", f"{_NAMES[storage.dtype]}Storage"))
        raw = bytes(torch.tensor([], dtype=torch.uint8).set_(storage._untyped_storage).numpy())
        out.write(struct.pack("<q", len(storage)) + raw)
    out.write(pickle.dumps(views or [], 2))
    parts["storages"] = out.getvalue()
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(raw), 1.5 if pax else 1  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(raw))


_NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
}


def _row(number: int, other: int | str, kind: str) -> bytes:
    """The pickle of a number, a number or text, and a class of torch that may be gone by now: named, not looked up."""
    text = other.encode() if isinstance(other, str) else b""
    value = b"X" + struct.pack("<I", len(text)) + text if isinstance(other, str) else b"J" + struct.pack("<i", other)
    return b"\x80\x02J" + struct.pack("<i", number) + value + b"ctorch\n" + kind.encode() + b"\n\x87q\x00."
