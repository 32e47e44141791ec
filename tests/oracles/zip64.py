"""Writes an archive of any size as torch does, one that no test has the time to save."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def write_zip64(path: Path, records: list[tuple[str, bytes | int]]) -> None:
    """An archive as torch writes it, zip64 where needed. A record given as a number is a hole of that many bytes."""
    limit = 0xFFFFFFFF
    directory = b""
    with open(path, "wb") as file:
        for name, content in records:
            at = file.tell()
            size = content if isinstance(content, int) else len(content)
            crc = 0 if isinstance(content, int) else zlib.crc32(content)
            wide = b"".join(
                [struct.pack("<QQ", size, size)] * (size >= limit) + [struct.pack("<Q", at)] * (at >= limit)
            )
            local_wide = struct.pack("<HH", 1, len(wide)) + bytes(len(wide)) if wide else b""
            start = at + 30 + len(name) + len(local_wide) + 4
            padding = -start % 64
            extra = local_wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            file.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(name), len(extra)))
            file.write(name.encode() + extra)
            if isinstance(content, int):
                file.seek(content, 1)
            else:
                file.write(content)
            file.write(struct.pack("<4sI" + ("QQ" if wide else "II"), b"PK\x07\x08", crc, size, size))
            central_extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
            row = struct.pack(
                "<4s6H3I5H2I",
                *(b"PK\x01\x02", 0, 0, 0x0808, 0, 0, 0, crc, min(size, limit), min(size, limit)),
                *(len(name), len(central_extra), 0, 0, 0, 0, min(at, limit)),
            )
            directory += row + name.encode() + central_extra
        start = file.tell()
        file.write(directory)
        end = file.tell()
        count = len(records)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x31E, 45, 0, 0, count, count, len(directory), start))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, limit, limit, 0))
