"""Which records of a damaged file are of one save: SPEC.md, section 16.4.

A copy of one save over another that was cut short leaves records of both in
one file, each of them whole. A record names the headers of the two before it;
so records follow one another, or do not.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastckpt.layout.records import Record


def records_of_one_save(records: Mapping[int, Record]) -> set[int]:
    """Numbers of the records that are shown to be of one save: of several such groups, the one with most bytes.

    Records of version 1 do not say what came before them; they count as one group.
    """
    groups: list[set[int]] = []
    for number, record in sorted(records.items()):
        if groups and _follows(record, records):
            groups[-1].add(number)
        else:
            # Two saves can begin alike. What came before the record that is lost or foreign is then of both.
            common = _named(record, records, 2) and {n for n in groups[-1] if n <= number - 2}
            groups.append({number} | (common or set()))
    return max(groups, key=lambda group: sum(records[number].raw_size for number in group), default=set())


def belongs(record: Record, one_save: set[int], records: Mapping[int, Record]) -> bool:
    """Whether another header for the place of a record is linked to records of a save."""
    after = records.get(record.number + 1)
    if record.links is None:
        return True
    if record.number + 1 in one_save and after is not None and after.links is not None:
        return after.links.previous == record.digest
    return record.number - 1 in one_save and _named(record, records, 1)


def _follows(record: Record, records: Mapping[int, Record]) -> bool:
    if record.links is None:
        return True
    return _named(record, records, 1 if record.number - 1 in records else 2)


def _named(record: Record, records: Mapping[int, Record], back: int) -> bool:
    """Whether a record names the header of the one that stands ``back`` places before it."""
    other = records.get(record.number - back)
    return other is not None and record.links is not None and record.links[back - 1] == other.digest
