"""What kind of file is it, whatever its beginning says, and what stands of it?"""

from __future__ import annotations

import os
from itertools import chain
from typing import Final

from fastckpt import _core
from fastckpt.constants import FOOTER_SIZE, MAGIC_FOOTER, MAGIC_INDEX, MAGIC_MANIFEST, MAGIC_RECORD
from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.sniff import HEAD_SIZE, begins_object, find_other, not_a_checkpoint, sniff
from fastckpt.foreign.suffixes import TORCH_SUFFIXES
from fastckpt.io.open_source import source_of
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import read_there
from fastckpt.layout.frame import decode_footer
from fastckpt.seals.standing import Standing
from fastckpt.surveying.blueprint import FindBlueprint, nothing_alike
from fastckpt.surveying.fckpt import survey_fckpt
from fastckpt.surveying.safetensors_file import survey_safetensors
from fastckpt.surveying.sealed import find_standing, use_seal
from fastckpt.surveying.torch_legacy import is_headless, survey_torch_legacy
from fastckpt.surveying.torch_tar import survey_torch_tar
from fastckpt.surveying.torch_zip.evidence import read_directory, search_local_headers
from fastckpt.surveying.torch_zip.survey import survey_torch_zip
from fastckpt.surveying.wreck import StorageState, Wreck

_PIECE: Final = 64 * 2**20
"""Bytes that are searched for blocks of a .fckpt at once."""


def survey(
    file: Openable,
    *,
    threads: int,
    progress: Progress | None = None,
    like: str | None = None,
    find_blueprint: FindBlueprint = nothing_alike,
    standing: Standing | None = None,
) -> Wreck:
    """What stands of a file.

    Args:
        file: Its path, or the open file.
        threads: Worker threads.
        progress: Called with the bytes verified so far.
        like: A checkpoint of the same structure.
        find_blueprint: Gives a structure in place of one that is lost.
        standing: How it stands to a seal beside it; without it the seal is looked for.

    Raises:
        NotACheckpointError: Nothing but its name says that it is, or was, a checkpoint, and there is no ``like``.
        UnsupportedVersionError, UnsupportedStateError: It is one that this fastckpt cannot read.
        CheckpointIOError: It cannot be opened.
    """
    if like is not None and isinstance(file, str | os.PathLike) and os.path.isfile(file) and not os.path.getsize(file):
        return _survey_empty(os.fspath(file), find_blueprint)
    with source_of(file) as source:
        unused: list[Finding] = []
        if standing is None or standing.stale:
            standing, unused = find_standing(source, threads=threads)
        head = read_there(source, 0, HEAD_SIZE)
        kind = _kind(source, head)
        is_only_named = kind is None and like is None
        if kind is None:
            kind = _kind_by_name(source, head, like)
        if is_only_named:
            # The structure of a neighbour would make a checkpoint of anything.
            find_blueprint = nothing_alike
        if kind == "fckpt":
            wreck = survey_fckpt(source, threads=threads, progress=progress)
        elif kind == "torch-zip":
            wreck = survey_torch_zip(source, find_blueprint, threads=threads, progress=progress)
        elif kind == "torch-legacy":
            wreck = survey_torch_legacy(source, find_blueprint, threads=threads, progress=progress)
        elif kind == "torch-tar":
            wreck = survey_torch_tar(source, threads=threads, progress=progress)
        elif kind == "safetensors":
            wreck = survey_safetensors(source, like, threads=threads, progress=progress)
        else:
            raise not_a_checkpoint(head, path=source.path, size=source.size)
        if is_only_named and not wreck.entries and not wreck.unnamed:
            raise not_a_checkpoint(head, path=source.path, size=source.size)
        wreck.identity, wreck.is_inflated = source.identity, source.has_other_form
        if standing is not None:
            use_seal(wreck, standing)
        wreck.findings += unused
        if not source.unchanged():
            wreck.notes.append("the file was changed while it was read: is it still being written? Salvage it again")
    return wreck


def _kind(source: Source, head: bytes) -> str | None:
    """The kind of a file by what stands in it; None if nothing in it tells.

    A tensor can hold a checkpoint of another kind: the end counts for more.
    """
    kind = sniff(head)
    if kind != "fckpt":
        try:
            decode_footer(read_there(source, source.size - FOOTER_SIZE, FOOTER_SIZE), file_size=source.size)
            return "fckpt"
        except FastckptError:
            pass
    elif _suffix(source) in TORCH_SUFFIXES:
        directory = read_directory(source)
        if directory.stands and any(name.endswith("/data.pkl") for name in directory.entries):
            return "torch-zip"
    return (_kind_inside(source, head) or kind) if kind in (None, "tar") else kind


def _kind_inside(source: Source, head: bytes) -> str | None:
    """The kind of a file whose beginning is damaged, by what stands elsewhere."""
    # A tensor can hold a file of the other kind; and each takes reading up to all of the file.
    kinds = {"fckpt": _has_blocks, "torch-zip": _has_records}
    for kind in reversed(kinds) if _suffix(source) in TORCH_SUFFIXES else kinds:
        if kinds[kind](source):
            return kind
    other = find_other(head, size=source.size)
    if other is None or other.is_zip:
        if begins_object(head):
            return "safetensors"
        if _suffix(source) in TORCH_SUFFIXES and other is None and is_headless(source):
            return "torch-legacy"
    return None


def _kind_by_name(source: Source, head: bytes, like: str | None) -> str | None:
    """The kind that a file should be, where nothing in it tells."""
    suffix = _suffix(source)
    other = find_other(head, size=source.size)
    # A file that is recognised as something else is that, whatever its name.
    if other is not None and not other.is_zip:
        return None
    if suffix in TORCH_SUFFIXES and other is None:
        return "torch-legacy" if _is_legacy(like) else "torch-zip"
    return {".safetensors": "safetensors", ".fckpt": "fckpt"}.get(suffix)


def _suffix(source: Source) -> str:
    return os.path.splitext(source.path)[1]


def _has_blocks(source: Source) -> bool:
    magics = (MAGIC_MANIFEST, MAGIC_RECORD, MAGIC_INDEX, MAGIC_FOOTER)
    # Piece by piece, since the first one nearly always tells.
    pieces = ((start, min(start + _PIECE, source.size)) for start in range(0, source.size, _PIECE))
    return any(_core.find_blocks(source.fd, magic, *piece) for piece in pieces for magic in magics)


def _has_records(source: Source) -> bool:
    directory = read_directory(source).entries
    found = (header.name for _, header in search_local_headers(source))
    return any(name.partition("/")[2].startswith(("data.pkl", "data/")) for name in chain(directory, found))


def _is_legacy(path: str | None) -> bool:
    if path is None:
        return False
    with Source(path) as source:
        return sniff(source.head(HEAD_SIZE)) == "torch-legacy"


def _survey_empty(path: str, find_blueprint: FindBlueprint) -> Wreck:
    wreck = Wreck(path, "unknown", 0, doubt="the file is empty")
    text = "the file is empty (0 bytes): the save never began to write"
    wreck.findings.append(Finding(Kind.MISSING, text, 0, 0))
    blueprint = find_blueprint({}, wreck.notes)
    if blueprint is not None:
        wreck.structure, wreck.tree, wreck.entries = blueprint.structure, blueprint.tree, blueprint.entries
        wreck.storages = [StorageState(size) for _, size in blueprint.sizes]
        for storage in wreck.storages:
            storage.lose("the file is empty")
    return wreck
