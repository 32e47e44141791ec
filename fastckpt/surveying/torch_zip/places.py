"""Where the storages of a damaged torch zip archive stand.

Several things tell a place: arithmetic (from where ``data.pkl`` ends, from
the records before and behind), a local header, the central directory. Damage
makes them contradict one another. So all places that anything tells are
collected for a storage, and the one for which most speaks is taken: a CRC-32
that matches settles it; else two neighbours that agree weigh more than any
single header, which a flipped bit makes tell another place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fastckpt.layout.zip_layout import LocalHeader, Place, descriptor_size, end_of, layouts, next_place, place_before
from fastckpt.surveying.torch_zip.evidence import Archive, descriptor_at, local_header_at, search_local_headers
from fastckpt.surveying.torch_zip.pickle import FoundPickle
from fastckpt.surveying.torch_zip.storages import Candidate, Sums, judge, look
from fastckpt.surveying.wreck import StorageState

Sizes = Sequence[tuple[str, int]]
"""Key and size of storages, in the order in which they were saved."""

# What speaks for a place, weighed. A header where its neighbour puts it is worth as much as one that has moved together
# with its descriptor; between two neighbours that agree there is no room for anything else.
_LISTED: Final = 1
"""The directory has it here. That is as written even where bytes were put in or taken out before it."""
_NAMED: Final = 2
"""A local header names it here. A flipped bit can make a header name another storage, or another place."""
_SIGNED: Final = 3
"""Its descriptor is behind it. That ties both ends: the sizes in it count from the first byte."""
_BESIDE: Final = 3
"""It follows a record whose place is certain, or is followed by one."""
_BETWEEN: Final = 5
"""Both."""

_SAMPLE: Final = 48
"""Storages looked at to tell which layout a file has."""
_PREFIX_SEARCH: Final = 2**20
"""Bytes after data.pkl in which local headers are looked for when its own is damaged."""
_ROUNDS: Final = 4
"""How often the places of storages in doubt are weighed again: each round knows more of their neighbours."""
_CLAIMS: Final = 8
"""Local headers of one storage that are looked into; stray copies of a sector hardly make more."""
_FOLLOWING: Final = 16
"""Local headers behind one that are tried as the end of its record; a checkpoint inside of a tensor has some."""


def find_storages(
    archive: Archive, sizes: Sizes, first: Mapping[str, Place], sums: Sums, *, in_order: bool
) -> tuple[list[Candidate], list[StorageState]]:
    """The places of storages, and what is left of them there.

    Args:
        archive: The file.
        sizes: The storages.
        first: Where they are by arithmetic, as far as that is known.
        sums: Reads them.
        in_order: Whether ``sizes`` has all of them, so that each follows the one before it.
    """
    base = [look(archive, key, size, first.get(key)) for key, size in sizes]
    chosen = list(base)
    states = judge(archive, chosen, sums)
    order = _layout_order(base)
    for _ in range(_ROUNDS):
        doubtful = [n for n, state in enumerate(states) if _is_doubtful(chosen[n], state)]
        # What lies beyond the end of the file is only looked for when something in it is missing too.
        if not any(_may_be_elsewhere(chosen[n], archive.source.size) for n in doubtful):
            break
        line = _Line(archive, order, chosen, doubtful) if in_order else None
        taken = _Taken(chosen, states)
        stated = _stated(archive, chosen, doubtful, taken)
        found: dict[int, list[Candidate]] = {}
        for n in doubtful:
            places = [*stated.get(n, ()), *(line.places(n) if line is not None else ())]
            found[n] = [look(archive, *sizes[n], place) for place in places if taken.has_room(place, sizes[n][1])]
        sums.read(candidate for candidates in found.values() for candidate in candidates)
        changed = False
        for n in doubtful:
            best = _best((base[n], chosen[n], *found[n]), n, line, sums)
            changed |= best.place != chosen[n].place
            chosen[n] = best
        if not changed:
            break
        states = judge(archive, chosen, sums)
    return chosen, states


def _layout_order(base: Sequence[Candidate]) -> list[int]:
    """In which order the storages follow one another: as saved, unless arithmetic or the directory says otherwise."""
    headers = [candidate.place.header for candidate in base if candidate.place is not None]
    numbers = list(range(len(base)))
    return sorted(numbers, key=lambda n: headers[n]) if len(headers) == len(base) else numbers


def _is_doubtful(candidate: Candidate, state: StorageState) -> bool:
    """Whether a storage may as well stand elsewhere: neither CRC-32 nor descriptor ties it to its place."""
    return bool(candidate.nbytes) and not state.proven and not candidate.is_signed


def _may_be_elsewhere(candidate: Candidate, size: int) -> bool:
    return candidate.place is None or candidate.place.data + candidate.nbytes <= size


def _best(candidates: Sequence[Candidate], number: int, line: _Line | None, sums: Sums) -> Candidate:
    """The one for which most speaks, of those for which as much does the first one."""

    def weight(candidate: Candidate) -> tuple[bool, int]:
        neighbours = line.weight(number, candidate) if line is not None else 0
        return sums.prove(candidate), _witnesses(candidate) + neighbours

    return max(candidates, key=weight)


def _witnesses(candidate: Candidate) -> int:
    """How much of what stands at a place speaks for it."""
    if candidate.place is None:
        return -1
    return _NAMED * candidate.named + _SIGNED * candidate.is_signed + _LISTED * candidate.listed


# --- what the neighbours say ------------------------------------------------------


class _Line:
    """Where arithmetic puts the doubtful storages, from those around them that are certain."""

    def __init__(
        self, archive: Archive, order: Sequence[int], chosen: Sequence[Candidate], doubtful: Sequence[int]
    ) -> None:
        # An empty storage has no bytes to be in doubt of; what ties it to its place is its header.
        unsure = {*doubtful, *(n for n, c in enumerate(chosen) if not c.nbytes and not c.named)}
        self._before: dict[int, Place] = {}
        self._behind: dict[int, Place] = {}
        at: int | None = None
        for n in order:
            size, place = chosen[n].nbytes, chosen[n].place
            if n in unsure and at is not None:
                place = self._before[n] = next_place(at, archive.name(chosen[n].key), size)
            elif n in unsure and n == order[0]:
                # data.pkl is before the first one: its place is as good as the pickle.
                self._before.update({n: place} if place is not None else {})
            elif n in unsure:
                place = None
            at = end_of(place, size) if place is not None else None
        after = self._record_behind(archive)
        for n in reversed(order):
            name, size, place = archive.name(chosen[n].key), chosen[n].nbytes, chosen[n].place
            if n in unsure:
                place = place_before(*after, name, size) if after is not None else None
                if place is not None:
                    self._behind[n] = place
            after = (place, name, size) if place is not None else None

    @staticmethod
    def _record_behind(archive: Archive) -> tuple[Place, str, int] | None:
        """The record that torch writes behind the last storage, if it stands where the directory puts it."""
        name = f"{archive.prefix}/version"
        entry = archive.directory.get(name)
        header = local_header_at(archive.source, entry.header) if entry is not None else None
        if entry is None or header is None or header.name != name:
            return None
        return next_place(entry.header, name, entry.size), name, entry.size

    def places(self, number: int) -> Iterator[Place]:
        """The places that the two sides give."""
        for side in (self._before, self._behind):
            if number in side:
                yield side[number]

    def weight(self, number: int, candidate: Candidate) -> int:
        """How much the neighbours speak for a place. Where both agree, nothing can be in between."""
        data = candidate.place.data if candidate.place is not None else -1
        agree = [number in side and side[number].data == data for side in (self._before, self._behind)]
        return _BETWEEN if all(agree) else _BESIDE if any(agree) else 0


# --- what headers and the directory say -------------------------------------------


class _Taken:
    """The ranges of the file in which the storages stand whose places are certain: no other one is there.

    A descriptor alone ties only the end: where bytes were put in or taken out before it, the CRC-32 does not match, and
    what seems to be the beginning can be another storage's.
    """

    def __init__(self, chosen: Sequence[Candidate], states: Sequence[StorageState]) -> None:
        self.ranges = sorted(
            (c.place.data, c.place.data + c.nbytes)
            for c, state in zip(chosen, states, strict=True)
            if c.place is not None and c.nbytes and (state.proven or (c.is_signed and not c.has_checksum()))
        )
        self._begins = [begin for begin, _ in self.ranges]

    def has_room(self, place: Place, size: int) -> bool:
        """Whether a storage of this size can be at a place."""
        at = bisect_right(self._begins, place.data) - 1
        inside = at >= 0 and place.data < self.ranges[at][1]
        reaches = at + 1 < len(self.ranges) and self._begins[at + 1] < place.data + size
        return not inside and not reaches


def _stated(
    archive: Archive, chosen: Sequence[Candidate], doubtful: Sequence[int], taken: _Taken
) -> dict[int, list[Place]]:
    """The places that local headers and the directory give for the doubtful storages."""
    numbers = {chosen[n].key: n for n in doubtful}
    found: dict[int, list[Place]] = {}
    for at, key, header in _headers_outside(archive, taken.ranges):
        if key in numbers and not header.method and header.data < archive.source.size:
            places = found.setdefault(numbers[key], [])
            if len(places) < _CLAIMS:
                places.append(Place(at, header.data, descriptor_size(at, chosen[numbers[key]].nbytes)))
    for key, number in numbers.items():
        found.setdefault(number, []).extend(_listed(archive, key, chosen[number].nbytes))
    return found


def _listed(archive: Archive, key: str, size: int) -> Iterator[Place]:
    """The places that the directory gives for a storage: by arithmetic, and as its local header says."""
    entry = archive.directory.get(archive.name(key))
    if entry is None or entry.size != size or entry.method:
        return
    by_arithmetic = next_place(entry.header, entry.name, size)
    header = local_header_at(archive.source, entry.header)
    if header is not None and archive.key_of(header.name) == key and header.data != by_arithmetic.data:
        yield Place(entry.header, header.data, by_arithmetic.descriptor)
    yield by_arithmetic


def listed_places(archive: Archive, sizes: Sizes) -> dict[str, Place]:
    """The first place of each storage that the directory gives."""
    found = ((key, next(_listed(archive, key, size), None)) for key, size in sizes)
    return {key: place for key, place in found if place is not None}


def agreed_places(archive: Archive, sizes: Sizes) -> dict[str, Place]:
    """The places of storages where the local header in place names the record that a whole directory puts there.

    Two places that agree with one another are where it stands, whatever the order of torch would be.
    """
    found = {}
    for key, size in sizes if archive.whole_directory else ():
        entry = archive.directory.get(archive.name(key))
        header = local_header_at(archive.source, entry.header) if entry is not None else None
        if entry is None or header is None or header.name != entry.name or entry.size != size:
            continue
        # The length of a header can have rotted. What is not there at all nobody would look for elsewhere.
        if header.data + size <= archive.source.size:
            found[key] = Place(entry.header, header.data, descriptor_size(entry.header, size))
    return found


def _headers_outside(archive: Archive, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, str, LocalHeader]]:
    """The local headers of storages that stand in none of these ranges."""
    at = 0
    for begin, end in (*taken, (archive.source.size, archive.source.size)):
        if at < begin:
            yield from archive.storage_headers(at, begin)
        at = max(at, end)


def announced(archive: Archive) -> dict[str, int]:
    """Key and size of every storage of which header and descriptor, or the directory, tell both.

    Also finds the top directory of the names: what most of them say.
    """
    headers = [] if archive.whole_directory else archive.search()
    names = [*archive.directory, *(header.name for _, header in headers)]
    archive.prefix = next(iter(_prefixes_in(name for name in names if "/data/" in name)), archive.prefix)
    sizes: dict[str, int] = {}
    ranges = []
    for entry in archive.directory.values():
        key = archive.key_of(entry.name)
        if key is not None and not entry.method and entry.header + entry.size < archive.source.size:
            sizes[key] = entry.size
            ranges.append((entry.header, entry.header + entry.size))
    ranges.sort()
    begins = [begin for begin, _ in ranges]
    claims: dict[str, int] = {}
    end = 0
    for number, (at, header) in enumerate(headers):
        key = archive.key_of(header.name)
        inside = bisect_right(begins, at - 1) - 1
        if key is None or key in sizes or header.method or at < end or (inside >= 0 and at < ranges[inside][1]):
            continue
        claims[key] = claims.get(key, 0) + 1
        if claims[key] > _CLAIMS:
            continue
        size = _size_of(archive, at, header, [other for other, _ in headers[number + 1 : number + 1 + _FOLLOWING]])
        if size is not None:
            sizes[key] = size
            end = header.data + size
    return dict(sorted(sizes.items(), key=lambda item: (len(item[0]), item[0])))


def _size_of(archive: Archive, at: int, header: LocalHeader, following: Iterable[int]) -> int | None:
    """The size of a record: torch has it in the descriptor in front of the next header, other programs in its own."""
    if not header.has_descriptor:
        return header.size if header.data + header.size <= archive.source.size else None
    for behind in following:
        for width in (16, 24):
            size = behind - width - header.data
            if size > 0 and descriptor_size(at, size) == width:
                descriptor = descriptor_at(archive.source, header.data + size, size, width)
                if descriptor is not None and descriptor.signed:
                    return size
    return None


# --- what data.pkl says -------------------------------------------------------------


def arithmetic_places(archive: Archive, pickle: FoundPickle, sizes: Sizes) -> dict[str, Place]:
    """The places that follow from the end of data.pkl, in the layout for which most of the headers speak.

    Also finds the top directory of the names, whose length counts.
    """
    best: dict[str, Place] = {}
    best_score = -1
    sample = [*sizes[:: max(len(sizes) // _SAMPLE, 1)], *sizes[:4]]
    known = archive.prefix
    for prefix in _prefixes(archive, pickle):
        archive.prefix = prefix
        for layout in layouts(pickle.end + 16, prefix, sizes):
            seen = [look(archive, key, size, layout[key]) for key, size in sample]
            # An empty storage has no descriptor: its header alone counts as much.
            score = sum(c.named + (c.is_signed if c.nbytes else c.named) for c in seen)
            if score > best_score:
                best, best_score, known = layout, score, prefix
            if score == 2 * len(sample):
                break
        if best_score > len(sample):
            break
    archive.prefix = known
    return best


def _prefixes(archive: Archive, pickle: FoundPickle) -> Iterator[str]:
    """What the top directory may be called: a damaged header can have it wrong."""
    yield archive.prefix
    if _prefixes_in(archive.directory)[:1] == [archive.prefix]:
        return
    near = search_local_headers(archive.source, 0, min(pickle.end + _PREFIX_SEARCH, archive.source.size))
    yield from _prefixes_in([*archive.directory, *(header.name for _, header in near)])[:3]


def _prefixes_in(names: Iterable[str]) -> list[str]:
    """The top directories of these names, the most frequent one first."""
    votes: dict[str, int] = {}
    for name in names:
        prefix = name.partition("/")[0]
        votes[prefix] = votes.get(prefix, 0) + 1
    return sorted(votes, key=lambda prefix: -votes[prefix])
