"""SPEC.md's worked example and ten-line reader are real: both are taken from its text and checked.

``python tests/layout/test_spec_example.py`` rewrites the listing in SPEC.md
after a deliberate change of the format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastckpt.constants import (
    FOOTER_SIZE,
    MAGIC_RECORD,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
)
from fastckpt.layout.blocks import Extent, align, block_digest
from fastckpt.layout.directory import encode_directory
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, encode_entry_table
from fastckpt.layout.frame import (
    Footer,
    Section,
    decode_footer,
    decode_index,
    decode_superblock,
    encode_footer,
    encode_index,
    encode_superblock,
    root_digest,
)
from fastckpt.layout.manifest import decode_manifest, encode_manifest
from fastckpt.layout.plan import plan_records
from fastckpt.layout.records import NO_LINKS, decode_record_header, encode_record_header, raw_chunk_table
from fastckpt.layout.tree import TensorRef, decode_tree, encode_tree

SPEC = Path(__file__).parents[2] / "fastckpt" / "SPEC.md"
BEGIN, END = "<!-- worked example: begin -->\n", "<!-- worked example: end -->\n"
VALUES = (1.0, -2.0, 0.5, 3.0)


def refuse(value: object, path: object) -> object:
    raise TypeError(f"{path}: {type(value)}")


def leaf_digests(raw: bytes) -> bytes:
    """The slow, plain way."""
    import xxhash

    leaves = (raw[at : at + 16384].ljust(16384, b"\0") for at in range(0, len(raw), 16384))
    return b"".join(struct.pack("<Q", xxhash.xxh3_64_intdigest(leaf)) for leaf in leaves)


def example_file() -> bytes:
    """The file of ``{"w": float32 tensor of 4 elements}``, from the layout functions alone."""
    raw = struct.pack("<4f", *VALUES)
    entries = [Entry("w", "float32", (4,), (1,), 0, 0)]
    (record,), places = plan_records([len(raw)])
    tree = encode_tree({"w": TensorRef(0)}, refuse)
    manifest = encode_manifest(places, entries, tree, encode_tree({}, refuse), 1)
    manifest_at = Extent(4096, len(manifest))
    header = encode_record_header(
        number=0,
        offset=manifest_at.end,
        raw_size=record.raw_size,
        stored_size=record.raw_size,
        chunks=raw_chunk_table(record.raw_size, leaf_digests(raw)),
        leaves=leaf_digests(raw),
        storages=record.storages,
        entry_table=encode_entry_table(entries),
        manifest_digest=block_digest(manifest),
        links=NO_LINKS,
    )
    index_at = align(manifest_at.end + len(header) + len(raw))
    payload = raw.ljust(index_at - manifest_at.end - len(header), b"\0")
    index = encode_index([(manifest_at.end, header)])
    directory = encode_directory([(manifest_at.end, header)])
    directory_at = index_at + len(index)
    copy_at = directory_at + len(directory)
    size = copy_at + len(manifest) + FOOTER_SIZE
    sections = (
        Section(SECTION_MANIFEST, SECTION_FLAG_MUST_UNDERSTAND, manifest_at, block_digest(manifest)),
        Section(SECTION_INDEX, SECTION_FLAG_MUST_UNDERSTAND, Extent(index_at, len(index)), block_digest(index)),
        Section(
            SECTION_DIRECTORY,
            SECTION_FLAG_MUST_UNDERSTAND,
            Extent(directory_at, len(directory)),
            block_digest(directory),
        ),
        Section(
            SECTION_MANIFEST_COPY, SECTION_FLAG_MUST_UNDERSTAND, Extent(copy_at, len(manifest)), block_digest(manifest)
        ),
    )
    footer = encode_footer(Footer(size, 1, root_digest(block_digest(manifest), [block_digest(header)]), sections))
    superblock = encode_superblock(manifest_at, block_digest(manifest))
    return b"".join((superblock, manifest, header, payload, index, directory, manifest, footer))


# --- the listing --------------------------------------------------------------

Field = tuple[int, str]
"""Bytes and their meaning."""

VERSION_FIELDS: list[Field] = [
    (2, "version"),
    (6, "reserved"),
    (8, "must_understand"),
    (8, "may_ignore"),
]
ENTRY_TABLE: list[Field] = [
    (8, "entry table: count"),
    (8, "kinds_size"),
    (8, "names_size"),
    (1, "kind 0: dtype 18: float32"),
    (1, "ndim"),
    (1, "flags: none"),
    (1, "reserved"),
    (8, "shape[0]"),
    (8, "stride[0]"),
    (2, "column kind: width, entry 0"),
    (2, "column storage"),
    (2, "column storage_offset"),
    (2, "column shared"),
    (2, "column rest"),
    (1, 'the name "w"'),
]
BLOCKS: list[tuple[str, list[Field]]] = [
    (
        "Superblock",
        [
            (8, "magic"),
            (8, "size of the block"),
            *VERSION_FIELDS,
            (4, "leaf_size"),
            (4, "chunk_size"),
            (4, "alignment"),
            (4, "pack_alignment"),
            (8, "manifest_offset"),
            (8, "manifest_size"),
            (16, "manifest_digest"),
        ],
    ),
    (
        "Manifest",
        [
            (8, "magic"),
            (8, "size of the block"),
            (8, "storage_count"),
            (8, "entry_count"),
            (8, "record_count"),
            (8, "storage_table_size"),
            (8, "entry_table_size"),
            (8, "tree_size"),
            (8, "metadata_size"),
            (2, "version"),
            (22, "reserved"),
            (2, "storage table: column nbytes: width, storage 0"),
            (2, "column record"),
            (4, "zeros up to a multiple of 8"),
            *ENTRY_TABLE,
            (1, "zeros up to a multiple of 8"),
            (2, "tree: a dict with one pair"),
            (3, 'key: the str "w"'),
            (2, "value: the tensor of entry 0"),
            (1, "zeros up to a multiple of 8"),
            (2, "metadata: an empty dict"),
        ],
    ),
    (
        "Record header",
        [
            (8, "magic"),
            (8, "size of the block"),
            (4, "number"),
            (2, "version"),
            (2, "must_understand"),
            (8, "header_offset"),
            (8, "raw_size"),
            (8, "stored_size"),
            (8, "chunk_count"),
            (8, "leaf_count"),
            (8, "storage_count"),
            (8, "entry_table_size"),
            (16, "manifest_digest"),
            (16, "previous: there is no record before"),
            (16, "before"),
            (8, "chunk 0: offset"),
            (4, "stored_size"),
            (4, "codec: none"),
            (8, "stored_digest: XXH3-64 of the next 8 bytes"),
            (8, "leaf 0: digest"),
            (2, "storage table: column number: width, storage 0"),
            (2, "column nbytes"),
            *ENTRY_TABLE,
        ],
    ),
    ("Payload", [(16, "1.0, -2.0, 0.5, 3.0")]),
    (
        "Index",
        [
            (8, "magic"),
            (8, "size of the block"),
            (8, "record_count"),
            (8, "reserved"),
            (8, "row 0: header_offset"),
            (8, "header_size"),
            (4096, "the record header, again"),
        ],
    ),
    (
        "Directory",
        [
            (8, "magic"),
            (8, "size of the block"),
            (8, "record_count"),
            (8, "reserved"),
            (8, "row 0: header_offset"),
            (8, "header_size"),
            (16, "digest of the record header"),
        ],
    ),
    ("Manifest copy", [(4096, "the manifest, again")]),
    (
        "Footer",
        [
            (8, "magic"),
            (8, "size of the block"),
            *VERSION_FIELDS,
            (8, "file_size"),
            (8, "record_count"),
            (16, "root digest"),
            (4, "section_count"),
            (4, "reserved"),
            *(
                field
                for kind in ("1, manifest", "2, index", "7, directory", "3, manifest copy")
                for field in (
                    (4, f"section of kind {kind}"),
                    (4, "flags: must understand"),
                    (8, "offset"),
                    (8, "size"),
                    (16, "digest"),
                )
            ),
        ],
    ),
]


def listing(file: bytes) -> str:
    """The annotated listing of the example, as it stands in SPEC.md."""
    sizes = [4096, 4096, 4096, 4096, 8192, 4096, 4096, 4096]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    lines = ["```text", "offset    bytes                                            meaning"]
    for (title, fields), start, size in zip(BLOCKS, starts, sizes, strict=True):
        lines += ["", f"{title}"]
        at = start
        for length, meaning in fields:
            if length == 4096:
                source = starts[2] if title == "Index" else starts[1]
                lines.append(line_of(at, f"= {source:08X} x 4096", meaning))
            else:
                for piece in range(at, at + length, 16):
                    shown = file[piece : min(piece + 16, at + length)].hex(" ").upper()
                    lines.append(line_of(piece, shown, meaning if piece == at else ""))
            at += length
        sealed = title not in ("Payload", "Manifest copy")
        zeros = start + size - (16 if sealed else 0) - at
        if zeros:
            lines.append(line_of(at, f"00 x {zeros}", "zeros"))
        if sealed:
            digest_at = start + size - 16
            lines.append(line_of(digest_at, file[digest_at : digest_at + 16].hex(" ").upper(), "digest of the block"))
    return "\n".join([*lines, "```", ""])


def line_of(at: int, shown: str, meaning: str) -> str:
    return f"{at:08X}  {shown:<47}  {meaning}".rstrip()


def parse_listing(text: str) -> bytes:
    """The bytes that a listing shows. Every line must begin where the one before it ended."""
    out = bytearray()
    for at, shown in _shown_bytes(text):
        assert at == len(out), f"the line at {at:08X} does not follow {len(out):08X}"
        if match := re.fullmatch(r"00 x (\d+)", shown):
            out += bytes(int(match[1]))
        elif match := re.fullmatch(r"= ([0-9A-F]{8}) x (\d+)", shown):
            source = int(match[1], 16)
            out += out[source : source + int(match[2])]
        else:
            out += bytes.fromhex(shown)
    return bytes(out)


def _shown_bytes(text: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r"^([0-9A-F]{8})  (.{1,47})", text, re.MULTILINE):
        yield int(match[1], 16), match[2].strip()


def spec_listing() -> str:
    text = SPEC.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


# --- tests --------------------------------------------------------------------


def test_listing_is_current() -> None:
    assert spec_listing() == listing(example_file())


def test_listing_shows_every_byte() -> None:
    assert parse_listing(spec_listing()) == example_file()


def test_example_decodes() -> None:
    file = parse_listing(spec_listing())
    footer = decode_footer(file[-FOOTER_SIZE:], file_size=len(file))
    superblock = decode_superblock(file[:4096])

    def block(kind: int) -> bytes:
        section = footer.section(kind)
        assert section is not None
        found = file[section.extent.offset : section.extent.end]
        assert section.digest == block_digest(found)
        return found

    assert superblock.manifest_digest == block_digest(block(SECTION_MANIFEST))
    assert block(SECTION_MANIFEST) == block(SECTION_MANIFEST_COPY)
    manifest = decode_manifest(block(SECTION_MANIFEST_COPY))
    manifest.checked_entries()
    assert manifest.metadata == {}
    assert decode_tree(manifest.tree, len(manifest.entries)) == {"w": TensorRef(0)}
    ((offset, header),) = decode_index(block(SECTION_INDEX))
    record = decode_record_header(header, limit=len(file))
    assert (record.header.offset, record.digest) == (offset, block_digest(header))
    assert bytes(header) == file[offset : record.payload.offset]
    assert footer.root == root_digest(manifest.digest, [record.digest])
    raw = file[record.payload.offset : record.payload.end]
    assert leaf_digests(raw) == bytes(record.leaves)
    assert struct.unpack("<4f", raw) == VALUES
    assert not any(file[record.payload.end : record.end])


def test_ten_lines_read_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "example.fckpt").write_bytes(parse_listing(spec_listing()))
    monkeypatch.chdir(tmp_path)
    code = ten_lines()
    names: dict[str, object] = {}
    exec(compile(code, "SPEC.md", "exec"), names)
    w = names["w"]
    assert isinstance(w, np.ndarray)
    assert w.dtype == np.float32
    assert tuple(w) == VALUES


@pytest.mark.parametrize("offset", [0x3000, 0x2048, 0x8FFF])
def test_ten_lines_notice_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    file = bytearray(parse_listing(spec_listing()))
    file[offset] ^= 1
    (tmp_path / "example.fckpt").write_bytes(file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        exec(compile(ten_lines(), "SPEC.md", "exec"), {})


def ten_lines() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", SPEC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


def test_writer_makes_the_same_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import fastckpt

    path = tmp_path / "example.fckpt"
    fastckpt.save({"w": torch.tensor(VALUES)}, path)
    assert path.read_bytes() == parse_listing(spec_listing())


def test_sizes_that_the_downsides_state(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import fastckpt

    fastckpt.save({}, tmp_path / "empty.fckpt")
    assert (tmp_path / "empty.fckpt").stat().st_size == 24 * 1024
    fastckpt.save({"w": torch.zeros(1)}, tmp_path / "one.fckpt")
    assert (tmp_path / "one.fckpt").stat().st_size == 36 * 1024
    assert "An empty state takes 24 KiB, one small tensor 36 KiB" in section("## 19. ")


def test_overview_has_the_offsets_of_the_example() -> None:
    stated = [int(text, 16) for text in re.findall(r"  0x([0-9A-F]{4})$", section("## 5. "), re.MULTILINE)]
    starts = [lines.strip().split("\n")[1] for lines in spec_listing().split("\n\n")[1:]]
    assert stated == [int(line[:8], 16) for line in starts]


def test_dtype_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \| ", section("### 8.2 "), re.MULTILINE)
    assert [(int(code), name, int(size)) for code, name, size in rows] == [tuple(d) for d in BY_NAME.values()]


def test_magic_table() -> None:
    import fastckpt.constants as constants

    rows = dict(re.findall(r'^\| ([a-z ]+) \| `([0-9A-F ]{23})` \| `"', section("## 4. "), re.MULTILINE))
    magics = {bytes.fromhex(value) for value in rows.values()}
    assert magics == {
        value for name, value in vars(constants).items() if name.startswith("MAGIC_") and name != "MAGIC_SIZE"
    }
    assert bytes.fromhex(rows["record header"]) == MAGIC_RECORD


def test_tag_table() -> None:
    from fastckpt.layout import tree_nodes

    rows = re.findall(r"^\| (\d+) \| ([\w ]+) \| ", section("## 9. "), re.MULTILINE)
    tags = {
        name.removeprefix("TAG_").lower().replace("_", " "): value
        for name, value in vars(tree_nodes).items()
        if name.startswith("TAG_")
    }
    assert {name.lower(): int(tag) for tag, name in rows} == tags


def section(heading: str) -> str:
    """The text of SPEC.md from a heading to the next of the same or a higher level."""
    text = SPEC.read_text(encoding="utf-8")
    start = text.index("\n" + heading) + 1
    level = len(heading.split(" ")[0])
    following = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, start + len(heading))
    return text[start : following.start() if following else len(text)]


if __name__ == "__main__":
    whole = SPEC.read_text(encoding="utf-8")
    SPEC.write_text(
        whole[: whole.index(BEGIN) + len(BEGIN)] + listing(example_file()) + whole[whole.index(END) :], encoding="utf-8"
    )
