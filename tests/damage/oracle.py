"""What must, may and must not be said about each tensor of a damaged file.

It knows the good file, its map, and the damaged bytes; it never reads a damaged file. The rules:

* ``intact`` is required where the bytes of a tensor, one witness for them, and one copy of the structure stand where
  they were. A witness is a directory entry with its CRC-32, or where no entry says otherwise a descriptor together with
  the header that names the record (.pt), or a record header or its mirror with the leaf digests (.fckpt). legacy .pt
  and .safetensors have none.
* ``intact`` is forbidden where a byte of the tensor, or of what its checksum covers, changed; and wherever the format
  has no witness. Whatever is called intact has to be equal to the original, bit for bit, under its own name.
* ``unverified`` is required where the bytes stand and the format has no witness; it is forbidden where a witness that
  stands says otherwise, and where bytes are missing.
* Where a whole tensor and its witness are those of an older save (a sector that was not overwritten), nothing in the
  file can tell; ``intact`` is allowed then, and the mix has to be noticed.
* Where the directory is not whole and torch's last record stands, made of other records than those that stand, the
  file is a mix of two saves: a witness counts only for its own place, and nothing tells which tensors are of which
  save. Then ``unverified`` is as good as ``intact``.
* Numbers of several bytes are proven only where something tells their byte order: the record ``byteorder``, its
  descriptor, its entry in the directory, the place of the first storage, or the digits at the end, made of all of it.
* Between these there is latitude, for example for bytes that stand while all their witnesses are destroyed:
  ``unverified``, or ``damaged`` if what is left of a witness says so.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise

import xxhash
from goods import Facts, Good

from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK, MAGIC_RECORD, MAGIC_SUPERBLOCK
from fastckpt.layout.records import Record

INTACT, UNVERIFIED, DAMAGED, PARTIAL, LOST = "intact", "unverified", "damaged", "partial", "lost"
ANY = frozenset((INTACT, UNVERIFIED, DAMAGED, PARTIAL, LOST))
BROKEN = frozenset((DAMAGED, PARTIAL, LOST))
_ONE_BYTE = ("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2")
SHORT = 64
"""Fewer bytes than these are not recognised by themselves."""


@dataclass(frozen=True)
class Verdict:
    """What may be said about one tensor.

    Attributes:
        allowed: Statuses.
        now: Its bytes as they stand in the damaged file, if it is known that they are looked for there and nowhere
            else, and all of them are there: what ``unverified`` has to come back as.
        place: Where these begin.
        good_rows: Runs of rows that are proven; None where that does not apply.
    """

    allowed: frozenset[str]
    now: bytes | None = None
    place: int | None = None
    good_rows: tuple[tuple[int, int], ...] | None = None

    @property
    def required(self) -> bool:
        """Whether it has to be intact."""
        return self.allowed == {INTACT}


@dataclass
class Expected:
    """What may be said about a file.

    Attributes:
        structure: Whether names, dtypes and shapes are known: all must be listed, and no other.
        may_refuse: Whether a typed error is as good as a report.
        verdicts: By flat name.
        named: Tensors that have to come back once a file of the same structure gives their names.
        one_save: Whether the end of the file is whole and names all records: then nothing of another save is intact.
    """

    structure: bool
    may_refuse: bool
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    one_save: bool = False


class Oracle:
    """The expectation for one damaged file."""

    def __init__(self, good: Good, damaged: bytes) -> None:
        self.good = good
        self.damaged = damaged

    def same(self, place: tuple[int, int]) -> bool:
        """Whether a range is there and as it was."""
        start, end = place
        return end <= len(self.damaged) and self.damaged[start:end] == self.good.raw[start:end]

    def region(self, name: str) -> bool:
        """Whether a region is as it was; one that the file never had is not."""
        place = self.good.regions.get(name)
        return place is not None and self.same(place)

    def expect(self) -> Expected:
        """What may be said."""
        return {
            "pt": self._torch_zip,
            "legacy": self._torch_legacy,
            "safetensors": self._safetensors,
            "fckpt": self._fckpt,
        }[self.good.format]()

    def stale(self, place: tuple[int, int]) -> bool:
        """Whether a range is as in the sibling."""
        start, end = place
        return end <= len(self.damaged) and self.damaged[start:end] == self.good.sibling[start:end]

    def _elsewhere(self, place: tuple[int, int], *, one_save: bool) -> bool:
        """Whether a storage stands in another place, with the descriptor or the directory entry that proves it."""
        start, end = place
        for raw in (self.good.raw,) if one_save else (self.good.raw, self.good.sibling):
            if raw[start : end + 16] in self.damaged:
                return True
            # The directory has the CRC-32 of bytes wherever they are. A few bytes alone stand anywhere by chance.
            storage = raw[start:end]
            listed = struct.pack("<I", zlib.crc32(storage)) in self.damaged
            if listed and len(storage) >= SHORT and storage in self.damaged:
                return True
        return False

    def _blank_end(self, place: tuple[int, int]) -> bool:
        """Whether a range ends in zeros, as what was never written does."""
        return not any(self.damaged[max(place[1] - 4, place[0]) : place[1]])

    def _now(self, facts: Facts) -> tuple[bytes | None, int | None]:
        """The bytes that stand in the place of a tensor, in a format without encoding."""
        first = self.good.storages[facts.storage][0]
        start, end = first + facts.span[0], first + facts.span[1]
        if end > len(self.damaged) or not facts.plain:
            return None, None
        return self.damaged[start:end], start

    # --- .pt ----------------------------------------------------------------------

    def _torch_zip(self) -> Expected:
        good = self.good
        directory = self.region("directory") and len(self.damaged) == len(good.raw)
        pickle = self.region("data data.pkl")
        found = self.region("header data.pkl") or directory
        behind = self.region("descriptor data.pkl") and self.region("header data.pkl")
        proven = good.crcs and (directory or (behind and not self._contradicted("data.pkl", "data data.pkl")))
        structure = pickle and found and (proven or not good.crcs)
        expected = Expected(structure, may_refuse=not structure, one_save=directory and good.crcs)
        order_stands, order_lost = self._byte_order(directory=directory)
        for name, facts in good.tensors.items():
            storage = good.storages[facts.storage]
            descriptor = self.region(f"descriptor {facts.storage}")
            is_number = bool(facts.values) and facts.dtype not in _ONE_BYTE
            if not structure:
                expected.verdicts[name] = Verdict(ANY - {INTACT} if order_lost and is_number else ANY)
                headed = self.region(f"header {facts.storage}") and len(self.damaged) == len(good.raw)
                # The records of a checkpoint that a tensor holds are told from these by nothing but luck.
                plain = good.crcs and bool(facts.values) and "inner" not in good.name
                # An entry of the directory with another CRC-32 says that it is none of this save, or rotted itself.
                agreed = not self._contradicted(facts.storage, f"data {facts.storage}")
                if headed and descriptor and plain and agreed and self.same(storage):
                    expected.named.add(name)
                continue
            now, place = self._now(facts)
            allowed: frozenset[str]
            if facts.span[0] == facts.span[1]:
                allowed = frozenset((INTACT, UNVERIFIED))
            elif self.same(storage):
                allowed = self._stands(facts.storage, descriptor=descriptor, directory=directory)
            else:
                allowed = self._changed(facts, witness=good.crcs and (descriptor or directory))
                stale = self.stale(storage) and not directory
                if good.crcs and (stale or self._elsewhere(storage, one_save=directory)):
                    allowed |= {INTACT}
            if INTACT in allowed and is_number and not order_stands:
                allowed = (allowed | {UNVERIFIED}) - ({INTACT} if order_lost else set())
            expected.verdicts[name] = Verdict(allowed, now, place)
        return expected

    def _byte_order(self, *, directory: bool) -> tuple[bool, bool]:
        """Whether what tells the byte order of a .pt stands, and whether all that could tell it is lost."""
        record = self.good.raw[slice(*self.good.regions["data byteorder"])]
        # An entry of the directory has the CRC-32 as well, as a descriptor does.
        crc = struct.pack("<I", zlib.crc32(record))
        first = min(self.good.storages, key=lambda key: self.good.storages[key])
        place = self.region(f"header {first}")
        named = self.region("header byteorder") and (
            self.region("data byteorder") or (self.good.crcs and self.region("descriptor byteorder"))
        )
        stands = directory or named or (place and self.region("data data.pkl") and self.region("header data.pkl"))
        lost = b"byteorder" not in self.damaged and crc not in self.damaged and not place
        return stands, lost and not self.region("data .data/serialization_id")

    def _contradicted(self, record: str, region: str) -> bool:
        """Whether a directory entry of a record of a .pt states another CRC-32 than that of its bytes."""
        start = self.good.regions[f"header {record}"][0]
        size = int.from_bytes(self.good.raw[start + 26 : start + 28], "little")
        name = self.good.raw[start + 30 : start + 30 + size]
        first, last = self.good.regions[region] if region in self.good.regions else self.good.storages[record]
        crc = struct.pack("<I", zlib.crc32(self.good.raw[first:last]))
        at = self.damaged.find(name)
        while at >= 0:
            entry = self.damaged[max(at - 46, 0) : at]
            if entry.startswith(b"PK\x01\x02") and entry[16:20] != crc:
                return True
            at = self.damaged.find(name, at + 1)
        return False

    def _last_record_disagrees(self) -> bool:
        """Whether torch's last record stands, and behind some record another CRC-32 than the one it was made of."""
        places = [self.good.regions[f"{what} .data/serialization_id"] for what in ("data", "descriptor")]
        others = [place for name, place in self.good.regions.items() if name.startswith("descriptor ")]
        for raw in (self.good.raw, self.good.sibling):
            if all(self.damaged[start:end] == raw[start:end] for start, end in places):
                found = [(self.damaged[start:end], raw[start:end]) for start, end in others]
                # Signature and sizes as they were: not that the descriptor rotted, but that it states another sum.
                return any(a[:4] + a[8:] == b[:4] + b[8:] and a != b for a, b in found)
        return False

    def _stands(self, key: str, *, descriptor: bool, directory: bool) -> frozenset[str]:
        """Statuses of a tensor whose storage is as it was."""
        storage = self.good.storages[key]
        if self.good.crcs and directory:
            return frozenset((INTACT,))
        if self.good.crcs and descriptor:
            if self._contradicted(key, f"data {key}"):
                return frozenset((INTACT, DAMAGED))
            mixed = {UNVERIFIED} if self._last_record_disagrees() else set()
            return frozenset((INTACT,) if self.region(f"header {key}") else (INTACT, UNVERIFIED, LOST)) | mixed
        if descriptor and directory:
            return frozenset((UNVERIFIED,))
        # What is left of its witnesses may say otherwise, also where a CRC of 0 (not computed) is now another number.
        allowed = frozenset((INTACT, UNVERIFIED, DAMAGED) if self.good.crcs else (UNVERIFIED, DAMAGED))
        # Zeros that were saved look like a hole if what follows them is gone.
        return allowed | BROKEN if self._blank_end(storage) and not descriptor else allowed

    def _changed(self, facts: Facts, *, witness: bool) -> frozenset[str]:
        """Statuses of a tensor whose storage is not what it was."""
        first = self.good.storages[facts.storage][0]
        start, end = first + facts.span[0], first + facts.span[1]
        if end > len(self.damaged):
            # Unless bytes were taken out before it, and it stands further in front.
            moved = self.good.raw[start:end] in self.damaged or self._is_headed_elsewhere(facts.storage)
            return BROKEN | {UNVERIFIED} if moved else BROKEN
        if witness and not self.same((start, end)):
            return BROKEN
        return BROKEN | {UNVERIFIED}

    def _is_headed_elsewhere(self, storage: str) -> bool:
        """Whether a storage of a .pt without CRC-32s has its header in another place, with room for its bytes.

        They may have been changed as well: then nothing in the file can tell.
        """
        if self.good.format != "pt" or self.good.crcs:
            return False
        first, last = self.good.regions[f"header {storage}"]
        start, end = self.good.storages[storage]
        at = self.damaged.find(self.good.raw[first:last])
        return at >= 0 and at + (last - first) + (end - start) <= len(self.damaged)

    # --- formats without checksums ---------------------------------------------------

    def _torch_legacy(self) -> Expected:
        return self._unproven(self.region("pickles"), "header ")

    def _safetensors(self) -> Expected:
        return self._unproven(self.region("length") and self.region("header"), None)

    def _unproven(self, structure: bool, header: str | None) -> Expected:
        expected = Expected(structure, may_refuse=not structure)
        for name, facts in self.good.tensors.items():
            now, place = self._now(facts)
            allowed = ANY - {INTACT}
            if facts.span[0] == facts.span[1]:
                allowed = frozenset((INTACT, UNVERIFIED)) if structure else ANY
            elif structure:
                first = self.good.storages[facts.storage][0]
                witnessed = header is None or self.region(f"{header}{facts.storage}")
                if self.same((first + facts.span[0], first + facts.span[1])):
                    allowed = frozenset((UNVERIFIED,))
                    if not witnessed or not self.same(self.good.storages[facts.storage]):
                        allowed |= {DAMAGED}
                else:
                    allowed = self._changed(facts, witness=False)
            expected.verdicts[name] = Verdict(allowed, now if structure else None, place if structure else None)
        return expected

    # --- .fckpt -----------------------------------------------------------------------

    def _fckpt(self) -> Expected:
        good = self.good
        manifest = self.region("manifest") or self.region("manifest copy")
        footer = self.region("footer") and len(self.damaged) == len(good.raw)
        index = self.region("index")
        known = {
            record.number: self.region(f"header {record.number}")
            or (self.same(good.mirrors[record.number]) and (footer or index))
            for record in good.records
        }
        if good.name == "fckpt/inner" and not (self.region("superblock") or self.region("manifest") or footer):
            # The manifest of the file that is inside of a tensor may be taken for this one's.
            manifest = False
        anything = self.damaged[:8] == MAGIC_SUPERBLOCK or any(known.values())
        one_save = footer and (index or self.region("directory"))
        expected = Expected(manifest, may_refuse=not anything, one_save=one_save)
        good_leaves = {record.number: self._good_leaves(record) for record in good.records}
        mixed = any(self._is_stale(record) for record in good.records)
        there = sorted(number for number, is_known in known.items() if is_known)
        cut_off = not one_save and any(after - before > 2 for before, after in pairwise(there))
        for name, facts in good.tensors.items():
            number = good.home[facts.storage]
            record = good.records[number]
            base = good.storages[facts.storage][0]
            start, end = base + facts.span[0], base + facts.span[1]
            whole = all(good_leaves[number][start // LEAF_SIZE : -(-end // LEAF_SIZE)])
            rows = None
            if start == end:
                allowed = frozenset((INTACT, UNVERIFIED)) if manifest or known[number] else ANY
            elif known[number]:
                # A leaf may be shared with a neighbour: then nothing is known about bytes that did not change.
                allowed = frozenset((INTACT,)) if whole else BROKEN | self._untouched(record, start, end)
                rows = None if whole else self._good_rows(facts, start, good_leaves[number])
            else:
                allowed = ANY if whole else ANY - {INTACT}
            if whole and cut_off and known[number]:
                # Each header names the two before it: behind three lost ones nothing shows whose a record is.
                allowed |= {UNVERIFIED}
            if mixed:
                # The header of an older save stands in the file: its tensors are proven too, if they are there.
                rows = None
                if not all(good_leaves[number]) and not one_save:
                    # Only one of the two saves can be given back of a record that has bytes of both.
                    allowed |= BROKEN | {INTACT}
            if (mixed and not footer) or self._other_end(footer):
                # Another end names the records of the other save; without an end, the larger part counts.
                allowed |= BROKEN | {UNVERIFIED, LOST}
            place = record.payload.offset + start if record.is_raw and facts.plain else None
            if not whole and self._has_moved(record):
                # Digests prove it there as well.
                allowed, place, rows = allowed | BROKEN | {INTACT}, None, None
            expected.verdicts[name] = Verdict(allowed, None, place, rows)
        return expected

    def _has_moved(self, record: Record) -> bool:
        """Whether a record stands elsewhere than it was: its header and the beginning of it, or all its bytes."""
        start, end = self.good.regions[f"header {record.number}"]
        beginning = self.good.raw[start : end + 16]
        payload = (record.payload.offset, record.payload.end)
        moved = not self.same(payload) and self.good.raw[slice(*payload)] in self.damaged
        return moved or (not self.same((start, end)) and beginning in self.damaged)

    def _other_end(self, footer: bool) -> bool:
        """Whether the file ends in the whole footer of another save."""
        end = self.damaged[-4096:]
        return not footer and end[:8] == b"FCKPTEND" and xxhash.xxh3_128_digest(end[:-16]) == end[-16:]

    def _is_stale(self, record: Record) -> bool:
        """Whether a whole header of another save stands in place or in the index."""
        places = (self.good.regions[f"header {record.number}"], self.good.mirrors[record.number])
        blocks = [self.damaged[start:end] for start, end in places if not self.same((start, end))]
        return any(block[:8] == MAGIC_RECORD and xxhash.xxh3_128_digest(block[:-16]) == block[-16:] for block in blocks)

    def _untouched(self, record: Record, start: int, end: int) -> frozenset[str]:
        place = (record.payload.offset + start, record.payload.offset + end)
        return frozenset((UNVERIFIED,)) if record.is_raw and self.same(place) else frozenset()

    def _good_leaves(self, record: Record) -> list[bool]:
        leaves: list[bool] = []
        for number, row in enumerate(record.chunks):
            extent = record.chunk_extent(number)
            count = len(record.chunk_leaves(number)) // 8
            if row.codec:
                leaves += [self.same((extent.offset, extent.end))] * count
                continue
            for leaf in range(count):
                at = extent.offset + leaf * LEAF_SIZE
                leaves.append(self.same((at, min(at + LEAF_SIZE, extent.end))))
        assert len(leaves) <= LEAVES_PER_CHUNK * len(record.chunks)
        return leaves

    def _good_rows(self, facts: Facts, start: int, leaves: list[bool]) -> tuple[tuple[int, int], ...] | None:
        if not facts.plain or not facts.shape:
            return None
        count, step = facts.shape[0], len(facts.values) // facts.shape[0]
        runs = []
        at = 0
        for leaf in range(start // LEAF_SIZE, -(-(start + len(facts.values)) // LEAF_SIZE)):
            if leaves[leaf]:
                continue
            first = max((leaf * LEAF_SIZE - start) // step, 0)
            if first > at:
                runs.append((at, first))
            at = max(at, min(-(-((leaf + 1) * LEAF_SIZE - start) // step), count))
        if at < count:
            runs.append((at, count))
        return tuple(runs)
