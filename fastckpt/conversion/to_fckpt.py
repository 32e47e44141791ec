"""A foreign checkpoint becomes a ``.fckpt``: streamed, checked, never unpickled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from fastckpt import _core
from fastckpt.constants import SECTION_SOURCE
from fastckpt.conversion.result import Conversion
from fastckpt.errors import DamagedError, UnsupportedStateError, errors_about
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.source_section import Segment, encode_source_section, read_source_file
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.accounting import account_for_bytes, is_formality
from fastckpt.foreign.checks import check_crcs, check_others, is_verified
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.storages import StorageReader
from fastckpt.foreign.zip_records import PACK_AGAIN
from fastckpt.io.how import How
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY
from fastckpt.layout.entries import StorageBytes
from fastckpt.layout.tree import encode_tree
from fastckpt.seals.beside import require_same_file, seal_beside
from fastckpt.stored.sealed import OpenedSealed, require_all_as_sealed
from fastckpt.stored.supply import OpenedSupply


def convert_to_fckpt(
    source: Source, destination: str | os.PathLike[str], how: How, *, codec: str, exact: bool, confirm: bool
) -> Conversion:
    """Convert one open foreign file.

    Memory is bounded by threads x chunk and the file's own structure (its
    pickle or JSON header), whatever the size of its tensors; but for a
    big-endian file, whose tensors are turned round in memory.

    With a seal beside the file each leaf is compared with that before it is written.

    Raises:
        DamagedError: A CRC or a leaf does not match or something is missing; names the tensor. With ``confirm`` (the
            source is to be deleted): a byte of it belongs to nothing that is converted, and would be lost.
        UnsupportedStateError: Without ``exact``, it holds objects that only their pickle can give back.
    """
    sums = seal_beside(source)
    if sums is not None:
        require_same_file(source, sums)
    foreign = open_foreign(source)
    if source.has_other_form and source.unpacked is None:
        exact = False
        _refuse_deflated(foreign, confirm=confirm)
    if not exact:
        _refuse_objects(foreign)
    # Storages that no tensor lies in are carried, too: something that is not understood has its bytes there.
    foreign = replace(foreign, storages=[*foreign.storages, *filter(foreign.is_storage, foreign.others)])
    if confirm:
        require_all_carried(foreign, source, exact=exact)
    sealed: OpenedSealed | None = None
    if sums is not None and source.has_other_form:
        require_all_as_sealed(source, sums)
    elif sums is not None:
        sealed = OpenedSealed(source, foreign, sums)
    sections = {}
    if exact:
        check_others(foreign, source, threads=how.threads)
        if source.unpacked is not None:
            source.unpacked.state_sums()
        segments = [Segment(s.offset, number, s.nbytes, s.unit) for number, s in enumerate(foreign.storages)]
        sections[SECTION_SOURCE] = encode_source_section(read_source_file(source, foreign.kind, segments))
    content = Content(
        tree=encode_tree(foreign.tree),
        metadata_tree=encode_tree(dict(foreign.metadata)),
        entries=foreign.entries,
        storage_sizes=[storage.nbytes for storage in foreign.storages],
        origins=[storage.offset for storage in foreign.storages],
        source=source.fd,
        source_direct=source.direct_fd,
        sections=sections,
        supply=OpenedSupply(sealed, threads=how.threads) if sealed is not None else None,
    )

    def check(crcs: Sequence[int]) -> None:
        if sealed is None:
            check_crcs(foreign, crcs)
        source.require_unchanged(next_step="convert it again")

    with errors_about(foreign.path):
        turned = _turned_round(foreign, source, how) if sealed is None else None
        write_checkpoint(
            content if turned is None else replace(content, origins=turned[0], source=MEMORY, source_direct=-1),
            destination,
            codec=codec,
            durable=how.durable,
            threads=how.threads,
            progress=how.progress,
            check_crcs=check if turned is None else None,
        )
    return Conversion(
        foreign.path,
        os.fspath(destination),
        "fckpt",
        sum(storage.nbytes for storage in foreign.storages),
        len(foreign.entries),
        sums is not None or is_verified(foreign),
        exact and source.unpacked is None,
        notes=(*_carried(foreign), *_form(source)),
    )


def _form(source: Source) -> Iterator[str]:
    """What is said of a file that was read in another form."""
    if source.unpacked is not None:
        yield _FOLDER
    elif source.has_other_form:
        yield _DEFLATED


def _refuse_deflated(foreign: ForeignFile, *, confirm: bool) -> None:
    """Raise UnsupportedStateError where a deflated file would have to come back as it is: its state alone can."""
    if confirm or foreign.opaque or foreign.program:
        raise UnsupportedStateError(
            "this .pt was packed again with compression, and only its state would come back, not these bytes",
            path=foreign.path,
            next_step=PACK_AGAIN,
        )


def _refuse_objects(foreign: ForeignFile) -> None:
    if foreign.program:
        raise UnsupportedStateError(
            f"this is a {foreign.program} archive, and its program would be lost",
            path=foreign.path,
            next_step="convert it without --no-exact",
        )
    if foreign.opaque:
        place, name = foreign.opaque[0]
        raise UnsupportedStateError(
            f"{place} is a {name}, which only the bytes between the storages can give back",
            path=foreign.path,
            next_step="convert it without --no-exact",
        )


def _carried(foreign: ForeignFile) -> Iterator[str]:
    """What is said of objects that are not understood."""
    if foreign.program:
        yield f"this is a {foreign.program} archive: its program is carried as it is, and convert gives all of it back"
    names = Counter(name for _, name in foreign.opaque)
    if names:
        shown = ", ".join(f"{name} ({count} x)" if count > 1 else name for name, count in names.most_common(_SHOWN))
        more = f" and {len(names) - _SHOWN} other kinds" if len(names) > _SHOWN else ""
        yield (
            f"carried as they are, neither imported nor run: {shown}{more}. load with keys= gives their tensors, "
            'with opaque="keep" puts a placeholder in the place of each; convert gives back the original file'
        )


def _turned_round(foreign: ForeignFile, source: Source, how: How) -> tuple[list[int], list[StorageBytes]] | None:
    """Of a big-endian file: addresses of its storages in memory, verified and little-endian, and that memory."""
    if all(storage.unit == 1 for storage in foreign.storages):
        return None
    reader = StorageReader(foreign, source, threads=how.threads, verify=True, progress=None)
    numbers = range(len(foreign.storages))
    bytes_of = reader.bring(numbers, mapped=False)
    places = [bytes_of(number) for number in numbers]
    return [_core.address(region) + start if nbytes else 0 for region, start, nbytes in places], places


def require_all_carried(foreign: ForeignFile, source: Source, *, exact: bool) -> None:
    """Raise DamagedError if deleting the file would lose what the conversion does not carry."""
    lost = [finding.message for finding in account_for_bytes(foreign, source)]
    if not exact:
        records = (record for record in foreign.others if not foreign.is_storage(record))
        others = [record for record in records if not is_formality(record) and record.key != _PICKLE]
        lost += [f"the record {record.key} would be lost" for record in others]
    if lost:
        raise DamagedError(
            f"not every byte of it is accounted for, so it cannot be deleted: {lost[0]}",
            path=foreign.path,
            next_step="convert it without --replace, and keep it",
        )


_DEFLATED: Final = "it was packed with compression: its state is converted, and comes back as torch would write it"
_FOLDER: Final = "it was the folder of an unpacked .pt: its files come back as they were, packed as one .pt"
_SHOWN: Final = 8
"""Kinds of objects that are named one by one."""
_PICKLE: Final = "data.pkl"
"""Carried as the structure of the state."""
