"""What a file is, by its first bytes."""

from __future__ import annotations

import codecs
import re
import struct
from typing import Final, NamedTuple

from fastckpt.constants import FOOTER_SIZE, MAGIC_FOOTER, MAGIC_SUPERBLOCK
from fastckpt.errors import NotACheckpointError
from fastckpt.foreign.tar_members import names_in
from fastckpt.io.source import Source
from fastckpt.text import count_text, quoted

HEAD_SIZE: Final = 4096
"""Bytes from the beginning of a file that `sniff` wants to see."""

ZIP_LOCAL_MAGIC: Final = b"PK\x03\x04"
SAFETENSORS_MAX_HEADER: Final = 100_000_000
"""The limit the safetensors library itself sets for the JSON header, in bytes."""
_JSON_SPACE: Final = b" \t\n\r"

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""The first object in a file torch wrote before version 1.6."""
_LEGACY_MAGIC_BINARY: Final = LEGACY_MAGIC.to_bytes(10, "little")
_LEGACY_MAGIC_TEXT: Final = str(LEGACY_MAGIC).encode()

_LEGACY_SYSTEM: Final = (b"protocol_version", b"little_endian", b"type_sizes")
"""What the third object names: a file with all of them is one whose magic number is damaged."""

# The records torch writes at the top of its archive, TorchScript included.
_TORCH_RECORDS: Final = frozenset(
    (b"data.pkl", b"constants.pkl", b"version", b"byteorder", b".format_version", b".storage_alignment")
)
_TORCH_FOLDERS: Final = frozenset((b"data", b".data", b"code", b"constants", b"tensors"))

_LFS_POINTER: Final = "version https://git-lfs.github.com/spec/"
_TEXT_BEGINNINGS: Final = (_LFS_POINTER, "<", "{", "[")
"""How texts begin that are recognised although only their beginning was looked at."""
_LEAST: Final = 32
"""Bytes below which a file that is not recognised is only told how short it is: most formats cannot be told apart."""
_LEAST_TEXT: Final = 4
_PICKLE_END: Final = b"."
_QUOTED: Final = 80
"""Characters of a text that are shown of a file that is no checkpoint."""

# What people have in place of a checkpoint: the beginning, what it is, what to do.
_OTHERS: Final = (
    (b"\x1f\x8b", "this is a gzip file", "decompress it with gunzip first"),
    (b"\x28\xb5\x2f\xfd", "this is a zstd file", "decompress it with `zstd -d` first"),
    (b"\xfd7zXZ\x00", "this is an xz file", "decompress it with unxz first"),
    (b"BZh", "this is a bzip2 file", "decompress it with bunzip2 first"),
    (b"\x93NUMPY", "this is a numpy array (.npy)", "load it with numpy.load"),
    (b"\x89HDF\r\n\x1a\n", "this is an HDF5 file, as Keras writes", "load it with the library that wrote it"),
    (b"GGUF", "this is a GGUF file, as llama.cpp reads", "find the checkpoint it was converted from"),
    (MAGIC_SUPERBLOCK, "this is a fastckpt file", "open it with fastckpt.open or fastckpt.load"),
)
_TORCH_TAR_MEMBERS: Final = frozenset(("sys_info", "pickle", "storages", "tensors"))


def sniff(head: bytes) -> str | None:
    """The kind of checkpoint that begins with ``head``, the first 4096 bytes of a file.

    Returns:
        ``fckpt``, ``torch-zip``, ``torch-legacy``, ``torch-tar``, ``safetensors``, ``tar`` or
        None. Only the beginning was looked at, so the file can still be cut
        or damaged.
    """
    if head.startswith(MAGIC_SUPERBLOCK):
        return "fckpt"
    if head.startswith(ZIP_LOCAL_MAGIC):
        return "torch-zip" if _is_torch_record(_first_name(head)) else None
    if head[:1] == b"\x80" and (_LEGACY_MAGIC_BINARY in head[:32] or all(word in head for word in _LEGACY_SYSTEM)):
        return "torch-legacy"
    if head[:1] in (b"L", b"I") and head[1:].startswith(_LEGACY_MAGIC_TEXT):
        return "torch-legacy"
    if head[257:262] == b"ustar":
        return "torch-tar" if not _TORCH_TAR_MEMBERS.isdisjoint(names_in(head)) else "tar"
    if len(head) >= 9 and struct.unpack_from("<Q", head)[0] <= SAFETENSORS_MAX_HEADER:
        # The object can begin behind all that is looked at here.
        is_space = len(head) == HEAD_SIZE and not head[8:].strip(_JSON_SPACE)
        return "safetensors" if is_space or begins_object(head) else None
    return None


def begins_object(head: bytes) -> bool:
    """Whether a JSON object follows the length that a ``.safetensors`` begins with: its library passes over spaces."""
    return head[8:].lstrip(_JSON_SPACE).startswith(b"{")


_END_OF_ZIP: Final = b"PK\x05\x06"
_END_OF_ZIP_SIZE: Final = 22


def kind_of(source: Source) -> str | None:
    """The kind of checkpoint a file is: what `sniff` says or, where its beginning tells nothing, its end.

    A zip archive ends as one also when its records stand in another order, as
    after repacking, or when its beginning is destroyed. The answer is kept as
    long as the file is open, so that nothing can give two.

    Raises:
        CheckpointIOError: The beginning cannot be read, and the end does not tell.
    """
    if "kind" not in source.remembered:
        source.remembered["kind"] = _kind_by_its_bytes(source)
    kind: str | None = source.remembered["kind"]
    return kind


def _kind_by_its_bytes(source: Source) -> str | None:
    if source.far and _ends_with(source, MAGIC_FOOTER, FOOTER_SIZE):
        return "fckpt"  # What it begins with is another request.
    kind = sniff(source.head(HEAD_SIZE))
    if kind is not None:
        return kind
    if _ends_with(source, _END_OF_ZIP, _END_OF_ZIP_SIZE):
        return "torch-zip"
    if source.unread_head is not None and not _ends_with(source, MAGIC_FOOTER, FOOTER_SIZE):
        raise source.unread_head
    return None


def _ends_with(source: Source, magic: bytes, size: int) -> bool:
    """Whether the last ``size`` bytes of a file begin with ``magic``."""
    return source.size >= size and source.read(source.size - size, len(magic)) == magic


class Other(NamedTuple):
    """What a file is instead of a checkpoint.

    Attributes:
        what: In words.
        next_step: What to do.
        actual: What it begins with, where that says more.
        is_zip: Whether it is a zip archive of which nothing else is known: it can still be a damaged ``.pt``.
    """

    what: str
    next_step: str
    actual: str | None = None
    is_zip: bool = False


def not_a_checkpoint(head: bytes, *, path: str, size: int) -> NotACheckpointError:
    """The error for a file that `sniff` does not know or that is no checkpoint: what it is and what to do."""
    if size == 0:
        return NotACheckpointError(
            "the file is empty", path=path, next_step="the save or the download never wrote a byte; take another copy"
        )
    other = find_other(head, size=size)
    if other is not None:
        return NotACheckpointError(other.what, path=path, actual=other.actual, next_step=other.next_step)
    salvage = f"if it was a checkpoint: fastckpt salvage {quoted(path)} --like OTHER"
    if not any(head):
        return NotACheckpointError(
            f"the first {len(head)} bytes are zero: the file was never written, or its beginning is lost",
            path=path,
            next_step=f"take another copy; {salvage}",
        )
    return NotACheckpointError(
        "neither a .pt, .safetensors nor .fckpt file",
        path=path,
        actual=f"a file that begins with {head[:8].hex(' ')}",
        next_step=f"take another copy; {salvage}",
    )


def find_other(head: bytes, *, size: int) -> Other | None:
    """What a file of ``size`` bytes that begins with ``head`` is instead of a checkpoint; None if nothing tells."""
    for magic, what, next_step in _OTHERS:
        if head.startswith(magic):
            return Other(what, next_step)
    text = _text_in(head)
    # A pickle says itself where it ends, and a few words can be the answer of a server.
    if size < _LEAST and not head.endswith(_PICKLE_END) and (text is None or size < _LEAST_TEXT):
        what = f"it has {count_text(size, 'byte')}, too few to tell what it was"
        shown = f"a file that begins with {head[:8].hex(' ')}"
        return Other(what, "the save or the download was cut short: take another copy", shown)
    if text is not None and (size <= len(head) or text.startswith(_TEXT_BEGINNINGS)):
        return _other_text(text)
    if head.startswith(ZIP_LOCAL_MAGIC):
        if _first_name(head).endswith(b".npy"):
            return Other("this is a numpy archive (.npz)", "load it with numpy.load")
        what = "this is a zip archive, but torch did not write it"
        return Other(what, "unpack it, then name the checkpoint file in it", is_zip=True)
    if head[257:262] == b"ustar":
        return Other("this is a tar archive", "unpack it, then name a file in it")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Other(
            "this is a plain pickle, not written by torch.save",
            "if you trust it, load it with pickle and save its state with torch.save or fastckpt.save",
        )
    return None


def _text_in(head: bytes) -> str | None:
    """What ``head`` says, on one line, if it is printable text."""
    try:
        # The last character may be cut.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    line = " ".join(text.split())
    return line if line and line.isprintable() else None


def _other_text(text: str) -> Other:
    """Text in place of a checkpoint: it mostly says itself why it is there."""
    beginning = text.lower()
    what, next_step = "this is a text file", "download or copy the checkpoint again"
    if text.startswith(_LFS_POINTER):
        size = re.search(r" size (\d{1,19})(?: |$)", text)
        missing = f", whose {int(size[1]):,} bytes are missing here" if size else " that was not downloaded"
        return Other(
            f"this is a git-lfs pointer: the few lines that stand in for a large file{missing}",
            "`git lfs pull` in its repository; or, if it comes from the Hugging Face Hub, "
            "`hf download` its repository's name",
        )
    if beginning.startswith(("<!doctype html", "<html")):
        what = "this is an HTML page, often what a download link gives instead of the file"
        next_step = "open it in a browser, and download the file itself"
    elif beginning.startswith(("<?xml", "<error")):
        what = "this is XML text, often the error that a server gives instead of the file"
        next_step = "see what it says, and download the file again"
    elif text.startswith("{") and '"weight_map"' in text:
        what = "this is the index of a model in several files"
        next_step = "name the directory that it lies in"
    elif beginning.startswith(("{", "[")):
        what = "this is JSON text, such as metadata or a server's error"
        next_step = "name the .pt or .safetensors file that goes with it, or download it again"
    shown = text if len(text) <= _QUOTED else text[:_QUOTED] + "..."
    return Other(what, next_step, shown)


def _first_name(head: bytes) -> bytes:
    """The name of the first record of the zip archive that ``head`` begins with: zip puts a folder in front of it."""
    at, name = 0, b"/"
    while name.endswith(b"/") and head.startswith(ZIP_LOCAL_MAGIC, at) and at + 30 <= len(head):
        name_size, extra_size = struct.unpack_from("<HH", head, at + 26)
        name = head[at + 30 : at + 30 + name_size]
        at += 30 + name_size + extra_size
    return name


def _is_torch_record(name: bytes) -> bool:
    """Whether torch would write a record of this name as the first of an archive."""
    _, slash, inner = name.partition(b"/")
    return bool(slash) and (inner in _TORCH_RECORDS or inner.partition(b"/")[0] in _TORCH_FOLDERS)
