"""The files of machines that keep numbers in the other byte order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_big(state: dict[str, Any], path: Path) -> None:
    """Write the file that torch.save writes for ``state`` on a big-endian machine."""
    little = path.with_suffix(".little")
    torch.save(state, little)
    reader, writer = torch._C.PyTorchFileReader(str(little)), torch._C.PyTorchFileWriter(str(path))
    units = {}
    for tensor in (t for t in state.values() if isinstance(t, torch.Tensor)):
        size = tensor.element_size() // (2 if tensor.dtype.is_complex else 1)
        whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        units[whole.numpy().tobytes()] = size
    for name in reader.get_all_records():
        raw = reader.get_record(name)
        if name == "byteorder":
            raw = b"big"
        elif name.startswith("data/"):
            unit = units[raw]
            raw = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, unit).flip(1).numpy().tobytes()
        if name not in ("version", ".data/serialization_id"):
            writer.write_record(name, raw, len(raw))
    writer.write_end_of_file()
    little.unlink()
