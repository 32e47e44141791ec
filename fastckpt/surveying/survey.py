"""What kind of file is it, whatever its beginning says, and what stands of it?"""

from __future__ import annotations

import os
from itertools import chain
from typing import Final

from fastckpt import _core
from fastckpt.constants import FOOTER_SIZE, MAGIC_FOOTER, MAGIC_INDEX, MAGIC_MANIFEST, MAGIC_RECORD
from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.sniff import HEAD_SIZE, NOT_RECOGNISED, not_a_checkpoint, sniff
from fastckpt.foreign.suffixes import TORCH_SUFFIXES
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import read_there
from fastckpt.layout.frame import decode_footer
from fastckpt.surveying.blueprint import FindBlueprint, nothing_alike
from fastckpt.surveying.fckpt import survey_fckpt
from fastckpt.surveying.safetensors_file import survey_safetensors
from fastckpt.surveying.torch_legacy import is_headless, survey_torch_legacy
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
) -> Wreck:
    """What stands of a file.

    Args:
        file: Its path, or the open file.
        threads: Worker threads.
        progress: Told of the bytes verified so far.
        like: A checkpoint of the same structure.
        find_blueprint: Gives a structure in place of one that is lost.

    Raises:
        NotACheckpointError: Nothing says that it is, or was, a checkpoint.
        UnsupportedVersionError, UnsupportedStateError: It is one that this fastckpt cannot read.
        CheckpointIOError: It cannot be opened.
    """
    if not isinstance(file, Source) and os.path.isfile(file) and os.path.getsize(file) == 0:
        return _survey_empty(os.fspath(file), find_blueprint)
    with Source.of(file) as source:
        head = read_there(source, 0, HEAD_SIZE)
        kind = _kind(source, head, like)
        if kind == "fckpt":
            wreck = survey_fckpt(source, threads=threads, progress=progress)
        elif kind == "torch-zip":
            wreck = survey_torch_zip(source, find_blueprint, threads=threads, progress=progress)
        elif kind == "torch-legacy":
            wreck = survey_torch_legacy(source, find_blueprint, threads=threads, progress=progress)
        elif kind == "safetensors":
            wreck = survey_safetensors(source, like, threads=threads, progress=progress)
        else:
            raise not_a_checkpoint(head, path=source.path, size=source.size)
        wreck.identity = source.identity
        if not source.unchanged():
            wreck.notes.append("the file was changed while it was read: is it still being written? Salvage it again")
    return wreck


def _kind(source: Source, head: bytes, like: str | None) -> str | None:
    """The kind of a file. A tensor can hold a checkpoint of another kind: the end counts for more."""
    kind = sniff(head)
    if kind != "fckpt":
        try:
            decode_footer(read_there(source, source.size - FOOTER_SIZE, FOOTER_SIZE), file_size=source.size)
            return "fckpt"
        except FastckptError:
            pass
    elif os.path.splitext(source.path)[1] in TORCH_SUFFIXES:
        directory, whole = read_directory(source)
        if whole and any(name.endswith("/data.pkl") for name in directory):
            return "torch-zip"
    return (_guess(source, head, like) or kind) if kind in (None, "tar") else kind


def _guess(source: Source, head: bytes, like: str | None) -> str | None:
    """The kind of a file whose beginning is damaged: by what stands elsewhere, then by its name."""
    suffix = os.path.splitext(source.path)[1]
    # A tensor can hold a file of the other kind; and each takes reading up to all of the file.
    kinds = {"fckpt": _has_blocks, "torch-zip": _has_records}
    for kind in reversed(kinds) if suffix in TORCH_SUFFIXES else kinds:
        if kinds[kind](source):
            return kind
    refusal = not_a_checkpoint(head, path=source.path, size=source.size)
    # A file that is recognised as something else is that, whatever its name.
    known_other = refusal.message != NOT_RECOGNISED and any(head)
    if known_other and not refusal.message.startswith("this is a zip archive"):
        return None
    if head[8:9] == b"{" or suffix == ".safetensors":
        return "safetensors"
    if suffix in TORCH_SUFFIXES and not refusal.message.startswith("this is a zip archive"):
        return "torch-legacy" if is_headless(source) or _is_legacy(like) else "torch-zip"
    return "fckpt" if suffix == ".fckpt" else None


def _has_blocks(source: Source) -> bool:
    magics = (MAGIC_MANIFEST, MAGIC_RECORD, MAGIC_INDEX, MAGIC_FOOTER)
    # Piece by piece, since the first one nearly always tells.
    pieces = ((start, min(start + _PIECE, source.size)) for start in range(0, source.size, _PIECE))
    return any(_core.find_blocks(source.fd, magic, *piece) for piece in pieces for magic in magics)


def _has_records(source: Source) -> bool:
    directory, _ = read_directory(source)
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
