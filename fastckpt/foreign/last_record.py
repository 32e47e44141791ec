"""Was torch's last record, which is made of all others, made of those that stand in a whole archive?

An archive whose records agree with its directory can still be of two saves, if a program put them together; and its
storages can have changed names. The last record tells. But a program that writes a record anew leaves it as it was. So
it accuses nobody, it only takes away the proof that all is of one save. Where data.pkl alone is another one, as after a
path in it was changed, all storages are still those of one save, each under its own name.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from fastckpt.foreign.serialization_id import first_of, hash_of_crcs, hash_of_names

ID_RECORD: Final = ".data/serialization_id"
ID_SIZE: Final = 40
CONTRADICTED: Final = (
    "torch's last record was made of other records than these: some were changed since, or they are of two saves"
)
_MAX_WORK: Final = 30_000
"""Steps of `first_of`: enough for some 300 records."""
_STORAGE: Final = re.compile(r"data/\d{1,18}")


class Row(Protocol):
    """What the directory says of a record."""

    @property
    def name(self) -> str: ...
    @property
    def header(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def crc(self) -> int: ...


def is_contradicted(rows: Iterable[Row], read: Callable[[Row], bytes]) -> bool:
    """Whether the last record of an archive says that others than the names and CRC-32s of its directory were saved.

    False where data.pkl alone is another one, if there are not more records than `_MAX_WORK` is enough for. Also where
    it cannot be asked: it is not there or rotted, or another program made it, by rules that are not known here.

    Args:
        rows: The directory.
        read: Gives the bytes of a record.
    """
    ordered = sorted(rows, key=lambda row: row.header)
    for number, last in enumerate(ordered):
        folder, _, name = last.name.partition("/")
        if name == ID_RECORD and last.size == ID_SIZE and last.crc:
            digits = read(last)
            before = [row for row in ordered[:number] if row.name.startswith(f"{folder}/")]
            if zlib.crc32(digits) == last.crc and _is_of_others(digits, before, len(folder) + 1):
                return True
    return False


def _is_of_others(digits: bytes, rows: Sequence[Row], start: int) -> bool:
    orders = list(_orders([(row.name[start:], row.crc if row.size else None) for row in rows]))
    stated = [[crc for _, crc in order if crc is not None] for order in orders]
    if any(digits[20:] == hash_of_crcs(crcs) for crcs in stated):
        return False
    # The names have to be right before the CRC-32s can be wrong: it is made as torch makes it here.
    if not any(digits[:20] == hash_of_names(name for name, _ in order) for order in orders):
        return False
    pickled = bool(rows) and rows[0].name[start:] == "data.pkl"
    return not pickled or all(first_of(digits[20:], crcs[1:], work=_MAX_WORK) is None for crcs in stated)


def _orders(records: list[tuple[str, int | None]]) -> Iterator[list[tuple[str, int | None]]]:
    """The records as torch writes them: storages by their numbers or, in older versions, by these as text.

    By name and not as they stand: where two have each other's name, that is how it shows.
    """
    slots = [number for number, (name, _) in enumerate(records) if _STORAGE.fullmatch(name)]
    by_text = sorted(records[slot] for slot in slots)
    by_number = sorted(by_text, key=lambda record: len(record[0]))
    for storages in (by_number, by_text) if by_number != by_text else (by_text,):
        order = list(records)
        for slot, storage in zip(slots, storages, strict=True):
            order[slot] = storage
        yield order
