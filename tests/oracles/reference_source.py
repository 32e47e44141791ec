"""The foreign file that a source section gives back (``SPEC.md``, section 13.1), written from the text alone."""

from __future__ import annotations

import struct
from pathlib import Path

import zstandard
from reference_reader import SOURCE, payload, read, sealed
from reference_tree import Unsupported, need


def restored(path: Path) -> bytes:
    """The bytes of the file that this one was converted from."""
    file, data = read(path), path.read_bytes()
    (at,) = [offset for kind, _, offset, _, _ in file.sections if kind == 4]
    block = sealed(data, at, SOURCE)
    kind, codec, size, count, literal_size, stored_size = struct.unpack_from("<2I4Q", block, 16)
    need(kind in (1, 2, 3) and codec in (0, 1), "unknown kind or codec", Unsupported)
    literals = block[56 + 24 * count :][:stored_size]
    if codec == 1:
        literals = zstandard.ZstdDecompressor().decompress(literals, max_output_size=literal_size)
    need(len(literals) == literal_size, "the literals have another size")
    storages = {}
    for record in file.records:
        raw, _ = payload(data, record)
        storages.update({storage: bytes(raw[begin : begin + nbytes]) for storage, begin, nbytes in record.storages})
    result, used, names = b"", 0, set()
    for number in range(count):
        offset, storage, unit, nbytes = struct.unpack_from("<Q2IQ", block, 56 + 24 * number)
        between = offset - len(result)
        need(between >= 0 and storage not in names, "segments overlap, or one names the storage of another")
        need(unit in (0, 2, 4, 8), "unknown unit", Unsupported)
        memory = storages[storage]
        need(len(memory) == nbytes > 0, "a segment has another size than its storage")
        whole = nbytes // unit * unit if unit else 0
        turned = b"".join(memory[n : n + unit][::-1] for n in range(0, whole, unit or 1))
        result += literals[used : used + between] + turned + memory[whole:]
        used += between
        names.add(storage)
    result += literals[used:]
    need(len(result) == size, "the foreign file has another size")
    return result
