"""Kinds of damage: each takes a good file and a source of chance, and makes the bytes of a damaged one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from goods import Good

SECTOR = 512
PAGE = 4096

ALL = ("pt", "legacy", "safetensors", "fckpt")


class Kind(NamedTuple):
    """A kind of damage: how it is made, and which formats it is made to."""

    make: Callable[[Good, random.Random], bytes]
    formats: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def kind(
    *formats: str,
) -> Callable[[Callable[[Good, random.Random], bytes]], Callable[[Good, random.Random], bytes]]:
    """Register a maker under its name."""

    def register(make: Callable[[Good, random.Random], bytes]) -> Callable[[Good, random.Random], bytes]:
        KINDS[make.__name__.replace("_", "-")] = Kind(make, formats or ALL)
        return make

    return register


def splice(raw: bytes, at: int, piece: bytes) -> bytes:
    """``raw`` with ``piece`` over what stood at ``at``; never longer than it was."""
    piece = piece[: len(raw) - at]
    return b"".join((raw[:at], piece, raw[at + len(piece) :]))


def _length(r: random.Random, most: int) -> int:
    """Some length from 1 to ``most``; short ones are as likely as long ones."""
    return min(most, max(1, int(2 ** r.uniform(0, max(most, 2).bit_length()))))


def _junk(r: random.Random, size: int) -> bytes:
    """Zeros, ones, one byte repeated, or noise."""
    how = r.randrange(4)
    if how == 3:
        return r.randbytes(size)
    return bytes((r.choice((0, 0, 0xFF, r.randrange(256))),)) * size


def _borders(good: Good) -> list[int]:
    """Where one thing ends and another begins."""
    found = {0, len(good.raw)}
    for start, end in good.regions.values():
        found |= {start, end}
    if good.format != "fckpt":
        for start, end in good.storages.values():
            found |= {start, end}
    else:
        for record in good.records:
            found |= {record.payload.offset, record.payload.end, record.end}
    return sorted(found)


def _place(good: Good, r: random.Random) -> int:
    """A place anywhere, or at a border or near it."""
    if r.random() < 0.5:
        return r.randrange(len(good.raw))
    return min(max(r.choice(_borders(good)) + r.choice((-1, 0, 0, 1, r.randrange(-20, 20))), 0), len(good.raw) - 1)


# --- cuts and tails -------------------------------------------------------------


@kind()
def cut(good: Good, r: random.Random) -> bytes:
    """The file ends anywhere."""
    return good.raw[: _place(good, r)]


@kind()
def cut_at_a_page(good: Good, r: random.Random) -> bytes:
    """The file ends at a page, as after a crash."""
    return good.raw[: _place(good, r) // PAGE * PAGE]


@kind()
def cut_at_a_border(good: Good, r: random.Random) -> bytes:
    """The file ends exactly where something ends."""
    return good.raw[: r.choice(_borders(good)[:-1])]


@kind()
def preallocated_tail(good: Good, r: random.Random) -> bytes:
    """The file has its full size, and zeros from somewhere on."""
    at = _place(good, r)
    if r.random() < 0.5:
        at = at // PAGE * PAGE
    return good.raw[:at] + bytes(len(good.raw) - at)


@kind()
def preallocated_beyond(good: Good, r: random.Random) -> bytes:
    """Zeros from somewhere on, up to a size the file never had."""
    at = _place(good, r) if r.random() < 0.7 else len(good.raw)
    return good.raw[:at] + bytes(_length(r, 100_000))


@kind()
def garbage_appended(good: Good, r: random.Random) -> bytes:
    """Something follows the whole file: noise, zeros, text, or the file once more."""
    how = r.randrange(4)
    if how == 0:
        return good.raw + good.raw[: _length(r, len(good.raw))]
    if how == 1:
        return good.raw + good.sibling
    return good.raw + _junk(r, _length(r, 70_000))


@kind("pt")
def interrupted_by_ctrl_c(good: Good, r: random.Random) -> bytes:
    """The valid zip archive that torch.save leaves; the storages at the end are missing."""
    return r.choice(good.interrupted)


# --- holes and sectors ----------------------------------------------------------


@kind()
def hole(good: Good, r: random.Random) -> bytes:
    """Zeros over any range."""
    at = _place(good, r)
    return splice(good.raw, at, bytes(_length(r, len(good.raw) // 2)))


@kind()
def hole_of_pages(good: Good, r: random.Random) -> bytes:
    """Pages that were never written."""
    at = _place(good, r) // PAGE * PAGE
    return splice(good.raw, at, bytes(PAGE * r.choice((1, 1, 2, 3, 8, 30))))


@kind()
def hole_over_one_thing(good: Good, r: random.Random) -> bytes:
    """Zeros over exactly one header, descriptor, block or storage."""
    start, end = r.choice(_things(good))
    return splice(good.raw, start, bytes(end - start))


@kind()
def hole_over_a_border(good: Good, r: random.Random) -> bytes:
    """Zeros over the end of one thing and the beginning of the next."""
    at = r.choice(_borders(good))
    start = max(at - _length(r, 600), 0)
    return splice(good.raw, start, bytes(at - start + _length(r, 600)))


@kind()
def sector_zeroed(good: Good, r: random.Random) -> bytes:
    """A sector reads as zeros."""
    size = r.choice((SECTOR, PAGE))
    return splice(good.raw, _place(good, r) // size * size, bytes(size))


@kind()
def sector_of_noise(good: Good, r: random.Random) -> bytes:
    """A sector holds anything."""
    size = r.choice((SECTOR, PAGE))
    return splice(good.raw, _place(good, r) // size * size, _junk(r, size))


@kind()
def sector_from_elsewhere(good: Good, r: random.Random) -> bytes:
    """A write that went astray: a sector of the same file stands in the place of another too."""
    size = r.choice((SECTOR, PAGE, 4 * PAGE))
    source = _place(good, r) // size * size
    return splice(good.raw, _place(good, r) // size * size, good.raw[source : source + size])


@kind()
def sector_from_a_sibling(good: Good, r: random.Random) -> bytes:
    """A sector was not overwritten: it is that of the checkpoint before, which has the same structure."""
    size = r.choice((SECTOR, PAGE, 4 * PAGE))
    at = _place(good, r) // size * size
    return splice(good.raw, at, good.sibling[at : at + size])


@kind()
def tail_of_a_sibling(good: Good, r: random.Random) -> bytes:
    """The file was overwritten in place, and from somewhere on the old one still stands."""
    at = _place(good, r)
    if r.random() < 0.5:
        at = at // PAGE * PAGE
    return good.raw[:at] + good.sibling[at:]


@kind()
def sectors_swapped(good: Good, r: random.Random) -> bytes:
    """Two sectors stand in each other's place."""
    size = r.choice((SECTOR, PAGE))
    a, b = sorted(_place(good, r) // size * size for _ in range(2))
    if b + size > len(good.raw) or b - a < size:
        return splice(good.raw, a, bytes(size))
    return splice(splice(good.raw, a, good.raw[b : b + size]), b, good.raw[a : a + size])


# --- bits and bytes -------------------------------------------------------------


@kind()
def one_bit(good: Good, r: random.Random) -> bytes:
    """One bit flipped."""
    return _flip(good.raw, [_place(good, r)], r)


@kind()
def several_bits(good: Good, r: random.Random) -> bytes:
    """A few bits flipped, anywhere."""
    return _flip(good.raw, [_place(good, r) for _ in range(r.randrange(2, 30))], r)


@kind()
def one_bit_of_structure(good: Good, r: random.Random) -> bytes:
    """One bit flipped in what is no tensor."""
    start, end = r.choice(_structure(good))
    return _flip(good.raw, [r.randrange(start, end)], r)


@kind()
def burst(good: Good, r: random.Random) -> bytes:
    """A short run of bytes is something else."""
    return splice(good.raw, _place(good, r), r.randbytes(_length(r, 64)))


@kind()
def bytes_inserted(good: Good, r: random.Random) -> bytes:
    """Bytes were put in, and all that follows stands further back."""
    at = _place(good, r)
    return good.raw[:at] + _junk(r, r.choice((1, 2, 64, PAGE, _length(r, 5000)))) + good.raw[at:]


@kind()
def bytes_removed(good: Good, r: random.Random) -> bytes:
    """Bytes were taken out, and all that follows stands further in front."""
    at = _place(good, r)
    return good.raw[:at] + good.raw[at + r.choice((1, 2, 64, PAGE, _length(r, 5000))) :]


@kind()
def line_ends_changed(good: Good, r: random.Random) -> bytes:
    """A transfer in text mode, of the whole file or of its beginning."""
    end = r.choice((len(good.raw), _place(good, r)))
    old, new = r.choice(((b"\n", b"\r\n"), (b"\r\n", b"\n"), (b"\0", b""), (b"\r", b"\n")))
    return good.raw[:end].replace(old, new) + good.raw[end:]


# --- what the format is made of ---------------------------------------------------


@kind()
def beginning_destroyed(good: Good, r: random.Random) -> bytes:
    """The first 4 KiB are lost."""
    return splice(good.raw, 0, _junk(r, r.choice((PAGE, PAGE, PAGE, 16, SECTOR, 8 * PAGE))))


@kind()
def structure_destroyed(good: Good, r: random.Random) -> bytes:
    """Any combination of headers, descriptors, directory, pickle, JSON or metadata blocks, and no tensor."""
    data = good.raw
    share = r.random()
    for start, end in _structure(good):
        if r.random() < share:
            data = _destroy(data, start, end, r)
    return data


@kind("fckpt")
def metadata_blocks_destroyed(good: Good, r: random.Random) -> bytes:
    """Every combination of the blocks, each destroyed as a whole or by one bit; sometimes mirrors inside the index."""
    names = sorted(good.regions)
    chosen = r.randrange(1, 1 << len(names))
    data = good.raw
    for bit, name in enumerate(names):
        if chosen >> bit & 1:
            data = _destroy(data, *good.regions[name], r)
    if r.random() < 0.2:
        data = _destroy(data, *r.choice(list(good.mirrors.values())), r)
    return data


@kind("fckpt")
def mirrors_destroyed(good: Good, r: random.Random) -> bytes:
    """Headers, or their mirrors, or both."""
    data = good.raw
    for number, mirror in good.mirrors.items():
        if r.random() < 0.5:
            data = _destroy(data, *good.regions[f"header {number}"], r)
        if r.random() < 0.4:
            data = _destroy(data, *mirror, r)
    if r.random() < 0.5:
        data = _destroy(data, *good.regions[r.choice(("footer", "index", "manifest", "superblock"))], r)
    return data


@kind("pt")
def directory_destroyed(good: Good, r: random.Random) -> bytes:
    """The central directory is lost, all of it or some."""
    start, end = good.regions["directory"]
    if r.random() < 0.5:
        start = r.randrange(start, end)
    return _destroy(good.raw, start, end, r)


@kind("pt", "legacy")
def headers_destroyed(good: Good, r: random.Random) -> bytes:
    """The headers in front of the storages, all or some."""
    return _destroy_some(good, "header ", r)


@kind("pt")
def descriptors_destroyed(good: Good, r: random.Random) -> bytes:
    """The descriptors behind the records, all or some; the directory as well, sometimes."""
    data = _destroy_some(good, "descriptor ", r)
    return _destroy(data, *good.regions["directory"], r) if r.random() < 0.5 else data


@kind("pt", "legacy", "safetensors")
def names_damaged(good: Good, r: random.Random) -> bytes:
    """The pickle or JSON that names the tensors: bits, bytes, or all of it."""
    start, end = good.regions[{"pt": "data data.pkl", "legacy": "pickles", "safetensors": "header"}[good.format]]
    how = r.randrange(5)
    if how == 0:
        return _destroy(good.raw, start, end, r)
    if how == 1:
        at = r.randrange(start, end)
        return splice(good.raw, at, _junk(r, min(_length(r, 300), end - at)))
    if how == 2:
        # One name, number or shape becomes another one that can be read as well.
        at = r.randrange(start, end)
        return splice(good.raw, at, bytes((r.choice(b"0123456789abcKMJ}](),:\x00\x01\x02"),)))
    return _flip(good.raw, [r.randrange(start, end) for _ in range(r.choice((1, 1, 2, 5)))], r)


@kind("safetensors")
def header_length_bomb(good: Good, r: random.Random) -> bytes:
    """The length of the header is something else, huge for the most part."""
    size = r.choice(
        (0, 1, 2**63, 2**64 - 1, 100_000_000, 99_999_999, len(good.raw), r.getrandbits(64), r.getrandbits(20))
    )
    return struct.pack("<Q", size) + good.raw[8:]


@kind()
def twice(good: Good, r: random.Random) -> bytes:
    """Two kinds of damage, one after the other."""
    names = [name for name, (_, formats) in KINDS.items() if good.format in formats and name not in _ONLY_ONCE]
    first = KINDS[r.choice(names)].make(good, r)
    wounded = Good(good.name, good.format, first or b"\0", good.tensors, regions=good.regions, records=good.records)
    wounded.storages, wounded.mirrors, wounded.sibling = good.storages, good.mirrors, good.sibling
    return KINDS[r.choice(names)].make(wounded, r)


@kind()
def nothing(good: Good, r: random.Random) -> bytes:
    """No damage: everything must come back."""
    return good.raw


_ONLY_ONCE = ("twice", "nothing", "interrupted-by-ctrl-c")


def _things(good: Good) -> list[tuple[int, int]]:
    ranges = [(start, end) for start, end in good.regions.values() if start < end]
    if good.format == "fckpt":
        return ranges + [(record.payload.offset, record.payload.end) for record in good.records]
    return ranges + [(start, end) for start, end in good.storages.values() if start < end]


def _structure(good: Good) -> list[tuple[int, int]]:
    return [(start, end) for start, end in good.regions.values() if start < end]


def _destroy(data: bytes, start: int, end: int, r: random.Random) -> bytes:
    """Zeros, noise, or a flipped bit."""
    if start >= len(data):
        return data
    end = min(end, len(data))
    if r.random() < 0.3:
        return _flip(data, [r.randrange(start, end)], r)
    return splice(data, start, _junk(r, end - start))


def _destroy_some(good: Good, prefix: str, r: random.Random) -> bytes:
    ranges = [place for name, place in good.regions.items() if name.startswith(prefix)]
    share = r.choice((0.1, 0.5, 1))
    data = good.raw
    for start, end in ranges:
        if r.random() < share:
            data = _destroy(data, start, end, r)
    return data


def _flip(data: bytes, places: list[int], r: random.Random) -> bytes:
    changed = bytearray(data)
    for at in places:
        if at < len(changed):
            changed[at] ^= 1 << r.randrange(8)
    return bytes(changed)
