"""Every kind of damage at every place: exactly the saved tensors or a typed error, never anything else.

What must be found is computed from which bytes were touched, with nothing but
the layout of the intact file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from states import assert_same, assert_same_elements, compressible, of_dtype, pattern, same

import fastckpt
from fastckpt.constants import ALIGNMENT, CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError
from fastckpt.layout.blocks import Extent
from fastckpt.layout.records import Record

LEAVES_IN_CHUNK = CHUNK_SIZE // LEAF_SIZE


def small_state(seed: int = 0) -> dict[str, Any]:
    """One large record and a pack; tensors that share a storage, and one that spans several leaves."""
    shared = of_dtype(torch.float32, 6000, seed + 1)
    return {
        "large": of_dtype(torch.int32, 66_000, seed + 2),
        "pack": [of_dtype(torch.uint8, 20_000, seed + 3), torch.arange(7) + seed],
        "head": shared[:1000],
        "tail": shared[5000:],
        "empty": torch.empty(0),
        "step": 3,
    }


def encoded_state(seed: int = 0) -> dict[str, Any]:
    """Records of several chunks, one of them not worth encoding; a pack."""
    mixed = torch.cat([compressible(CHUNK_SIZE, seed + 1), pattern(100_000, seed + 2)])
    return {
        "large": compressible(CHUNK_SIZE + 300_000, seed),
        "pack": [compressible(30_000, seed + 3), torch.arange(7) + seed],
        "mixed": mixed,
        "step": 3,
    }


@dataclass
class Lab:
    """An intact file, what it holds, and a place for damaged copies of it."""

    path: Path
    state: Any
    raw: bytes = b""
    records: list[Record] = field(default_factory=list)
    regions: dict[str, Extent] = field(default_factory=dict)
    flat: dict[str, torch.Tensor] = field(default_factory=dict)
    storages: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # record, start and end in raw bytes
    spans: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.raw = self.path.read_bytes()
        with fastckpt.open(self.path) as ck:
            file = ck._file
            self.flat = {name: ck[name] for name in ck}
            self.records = file.records
            names = {1: "manifest", 2: "index", 3: "manifest copy", 4: "source", 7: "directory"}
            self.regions["superblock"] = Extent(0, ALIGNMENT)
            for section in file.footer.sections:
                self.regions[names[section.kind]] = section.extent
            self.regions["footer"] = Extent(len(self.raw) - ALIGNMENT, ALIGNMENT)
            for record in self.records:
                self.regions[f"header {record.number}"] = record.header
                self.regions[f"payload {record.number}"] = record.payload
                self.regions[f"padding {record.number}"] = Extent(record.payload.end, record.end - record.payload.end)
            for entry in file.manifest.entries:
                place = file.manifest.storages[entry.storage]
                begin, end = entry.span
                self.storages[entry.name] = (place.record, place.offset, place.offset + place.nbytes)
                self.spans[entry.name] = (place.record, place.offset + begin, place.offset + end)
        assert sum(region.size for region in self.regions.values()) == len(self.raw), "every byte is accounted for"

    def touched(self, damaged: bytes) -> dict[str, list[int]]:
        """Offsets inside each region of the bytes that differ."""
        found: dict[str, list[int]] = {}
        for name, (start, size) in self.regions.items():
            before, after = self.raw[start : start + size], damaged[start : start + size]
            if before != after:
                found[name] = np.nonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))[0].tolist()
        return found

    def bad_leaves(self, touched: dict[str, list[int]]) -> set[tuple[int, int]]:
        """(record, leaf) of everything that can no longer be proven."""
        bad: set[tuple[int, int]] = set()
        for record in self.records:
            payload = touched.get(f"payload {record.number}", [])
            for number, row in enumerate(record.chunks):
                first = number * LEAVES_IN_CHUNK
                inside = [at - row.offset for at in payload if row.offset <= at < row.offset + row.stored_size]
                if row.codec == 0:
                    bad |= {(record.number, first + at // LEAF_SIZE) for at in inside}
                elif inside:
                    bad |= {(record.number, first + i) for i in range(len(record.chunk_leaves(number)) // 8)}
        return bad

    def hit(self, ranges: dict[str, tuple[int, int, int]], bad: set[tuple[int, int]]) -> set[str]:
        """Names whose range has a byte in a bad leaf."""
        return {
            name
            for name, (record, start, end) in ranges.items()
            if any(r == record and leaf * LEAF_SIZE < end and start < (leaf + 1) * LEAF_SIZE for r, leaf in bad)
            and start < end
        }

    def check(self, damaged: bytes, *, keys: bool = True, write: bool = True) -> None:
        """Everything that must hold for a damaged copy of the same length."""
        touched = self.touched(damaged)
        if write:
            self.path.write_bytes(damaged)
        report = fastckpt.verify(self.path)
        assert report.ok == (not touched)
        if not touched:
            assert_same(fastckpt.load(self.path), self.state)
            return
        assert report.exit_code in (1, 2)
        assert report.next_step is not None
        manifests = not {"manifest", "manifest copy"} <= touched.keys()
        headers = [name for name in touched if name.startswith("header")]
        if "footer" in touched or not manifests or ("index" in touched and headers):
            with pytest.raises(DamagedError) as caught:
                fastckpt.load(self.path)
            assert "fastckpt salvage" in str(caught.value)
            return
        bad = self.bad_leaves(touched)
        found = {
            (finding.record, finding.leaf + i)
            for finding in report.findings
            if finding.leaf is not None
            for i in range(finding.leaves)
        }
        assert found == bad
        assert set(report.damaged_tensors) == self.hit(self.spans, bad)
        located = {(f.offset, f.size) for f in report.findings if f.leaf is None}
        metadata = {name for name in touched if not name.startswith("payload")}
        assert located == {tuple(self.regions[name]) for name in metadata}
        assert all(not f.loss for f in report.findings if f.leaf is None)
        lost = self.hit(self.storages, bad)
        for mapped in (False, True):
            if bad and self.hit(self.storages, bad):
                with pytest.raises(DamagedError) as caught:
                    fastckpt.load(self.path, mmap=mapped)
                assert caught.value.tensor in {*self.hit(self.spans, bad), None}
            elif not bad:
                assert_same(fastckpt.load(self.path, mmap=mapped), self.state)
        if not keys:
            return
        kept = [name for name in self.flat if name not in lost]
        for mapped in (False, True):
            for name, tensor in fastckpt.load(self.path, keys=kept, mmap=mapped).items():
                assert_same_elements(tensor, self.flat[name])
        with fastckpt.open(self.path) as ck:
            for name, tensor in self.flat.items():
                if name not in self.hit(self.spans, bad):
                    assert_same_elements(ck[name], tensor)
                else:
                    with pytest.raises(DamagedError):
                        ck[name]

    def check_cut(self, size: int) -> None:
        """Everything that must hold for a file cut to ``size`` bytes."""
        self.path.write_bytes(self.raw[:size])
        if size < 8:
            with pytest.raises(NotACheckpointError):
                fastckpt.load(self.path)
            return
        for mapped in (False, True):
            with pytest.raises(DamagedError) as caught:
                fastckpt.load(self.path, mmap=mapped)
            assert "fastckpt salvage" in str(caught.value)
        report = fastckpt.verify(self.path)
        assert not report.ok
        if size < self.regions["manifest"].end:
            assert report.exit_code == 2
            return
        lost: set[str] = set()
        bad: set[tuple[int, int]] = set()
        for record in self.records:
            if record.header.end > size:
                lost |= {name for name, (number, _, _) in self.spans.items() if number == record.number}
                continue
            for chunk in range(len(record.chunks)):
                extent = record.chunk_extent(chunk)
                first = chunk * LEAVES_IN_CHUNK
                for leaf in range(len(record.chunk_leaves(chunk)) // 8):
                    end = min(extent.offset + (leaf + 1) * LEAF_SIZE, extent.end) if record.is_raw else extent.end
                    if end > size:
                        bad.add((record.number, first + leaf))
        assert set(report.damaged_tensors) == lost | self.hit(self.spans, bad)
        assert report.exit_code == (2 if report.damaged_tensors else 1)


def build(directory: Path, kind: str, seed: int = 0) -> Lab:
    path = directory / f"{kind} {seed}.fckpt"
    if kind == "source":
        torch.save(small_state(seed), directory / "model.pt")
        fastckpt.convert(directory / "model.pt", path)
        return Lab(path, torch.load(directory / "model.pt"))
    state = small_state(seed) if kind == "none" else encoded_state(seed)
    fastckpt.save(state, path, codec=kind, metadata={"a": 1}, durable=False)
    return Lab(path, state)


KINDS = ["none", "zstd", "planes", "source"]


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    return build(tmp_path, request.param)


def flipped(raw: bytes, at: int, mask: int = 1) -> bytes:
    return b"".join((raw[:at], bytes((raw[at] ^ mask,)), raw[at + 1 :]))


def spliced(raw: bytes, at: int, piece: bytes) -> bytes:
    return b"".join((raw[:at], piece, raw[at + len(piece) :]))


def test_the_lab_covers_what_it_should(tmp_path: Path) -> None:
    raw, encoded, planes, source = (build(tmp_path, kind) for kind in KINDS)
    assert len(raw.records) == 2
    assert "source" in source.regions
    for of, codec in ((encoded, 1), (planes, 2)):
        codecs = [[row.codec for row in record.chunks] for record in of.records]
        assert codecs == [[codec, codec], [codec], [codec, 0]]
    for lab in (raw, encoded, planes, source):
        assert any(region.size for name, region in lab.regions.items() if name.startswith("padding"))
        lab.check(lab.raw)


def positions(region: Extent, step: int, field_step: int = 1) -> Iterator[int]:
    """Some bytes of a region: where the fields are, every ``step``-th, and the digest at the end."""
    fields = range(0, min(region.size, 24), field_step)
    chosen = {*fields, *range(0, region.size, step), *range(region.size - 16, region.size, 5 * field_step)}
    return iter(sorted(region.offset + at for at in chosen if 0 <= at < region.size))


def flip_all(lab: Lab, step: int, in_payload: int = 12, field_step: int = 1) -> None:
    generator = random.Random(0)
    for name, region in lab.regions.items():
        payload = name.startswith("payload")
        for at in positions(region, max(1, region.size // in_payload) if payload else step, field_step):
            lab.check(flipped(lab.raw, at, 1 << generator.randrange(8)), keys=payload or at % 7 == 0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("step", "in_payload", "field_step"),
    [pytest.param(7999, 1, 5, id="few"), pytest.param(997, 12, 1, id="many", marks=pytest.mark.thorough)],
)
def test_flipped_bytes(lab: Lab, step: int, in_payload: int, field_step: int) -> None:
    flip_all(lab, step, in_payload, field_step)


@pytest.mark.slow
def test_every_flipped_byte(lab: Lab) -> None:
    flip_all(lab, 1)


@pytest.mark.sampled(4)
def test_zeroed_sectors(lab: Lab) -> None:
    for at in range(0, len(lab.raw), ALIGNMENT):
        lab.check(spliced(lab.raw, at, bytes(ALIGNMENT)), keys=at % (5 * ALIGNMENT) == 0)


def test_torn_and_rotted_are_told_apart(tmp_path: Path) -> None:
    lab = build(tmp_path, "none")
    payload = lab.regions["payload 0"]
    for piece, kind in ((bytes(LEAF_SIZE), "torn"), (b"\x01" * LEAF_SIZE, "rotted"), (bytes(ALIGNMENT), "rotted")):
        lab.path.write_bytes(spliced(lab.raw, payload.offset + LEAF_SIZE, piece))
        assert [f.kind.value for f in fastckpt.verify(lab.path).findings] == [kind]
    for name in ("superblock", "manifest", "index", "manifest copy", "header 0"):
        region = lab.regions[name]
        lab.path.write_bytes(spliced(lab.raw, region.offset, bytes(region.size)))
        assert [f.kind.value for f in fastckpt.verify(lab.path).findings] == ["torn"], name
        lab.path.write_bytes(flipped(lab.raw, region.offset + 100))
        assert [f.kind.value for f in fastckpt.verify(lab.path).findings] == ["rotted"], name
    footer = lab.regions["footer"]
    for damaged, kind in (
        (flipped(lab.raw, footer.offset + 50), "rotted"),
        (spliced(lab.raw, footer.offset, bytes(ALIGNMENT)), "torn"),
        (lab.raw[: footer.offset], "missing"),
    ):
        lab.path.write_bytes(damaged)
        report = fastckpt.verify(lab.path)
        assert [f.kind.value for f in report.findings] == [kind]
        assert report.exit_code == 1, "nothing is lost with a footer"


def test_holes(lab: Lab) -> None:
    """Ranges that were never written: a sparse file."""
    generator = random.Random(1)
    for _ in range(12):
        start = generator.randrange(0, len(lab.raw) - ALIGNMENT, ALIGNMENT)
        size = generator.choice([1, 3, 8, 40]) * ALIGNMENT
        end = min(start + size, len(lab.raw))
        with open(lab.path, "wb") as file:
            file.write(lab.raw[:start])
            file.seek(end)
            file.write(lab.raw[end:])
            file.truncate(len(lab.raw))
        lab.check(lab.raw[:start] + bytes(end - start) + lab.raw[end:], write=False)


def test_cuts(lab: Lab) -> None:
    generator = random.Random(2)
    borders = {at for region in lab.regions.values() for at in (region.offset, region.end)}
    sizes = {at + step for at in borders for step in (-1, 0, 1)} | {1, 7, 8, 15, 16, 100}
    sizes |= {generator.randrange(len(lab.raw)) for _ in range(40)}
    for size in sorted(sizes):
        if 0 < size < len(lab.raw):
            lab.check_cut(size)


def test_bytes_behind_the_end(lab: Lab) -> None:
    for extra in (b"\0", bytes(ALIGNMENT), lab.raw):
        lab.path.write_bytes(lab.raw + extra)
        with pytest.raises(DamagedError, match="salvage"):
            fastckpt.load(lab.path)
        report = fastckpt.verify(lab.path)
        assert not report.ok
        assert report.damaged_tensors == []


def test_swapped_sectors(lab: Lab) -> None:
    generator = random.Random(3)
    sectors = range(0, len(lab.raw), ALIGNMENT)
    for _ in range(60):
        a, b = generator.sample(sectors, 2)
        first, second = lab.raw[a : a + ALIGNMENT], lab.raw[b : b + ALIGNMENT]
        lab.check(spliced(spliced(lab.raw, a, second), b, first), keys=False)


@pytest.mark.parametrize("kind", ["none", "source"])
def test_sectors_of_an_older_version(tmp_path: Path, kind: str) -> None:
    """A write that never reached the disk: the same layout, even the same manifest, other values."""
    lab, old = build(tmp_path, kind), build(tmp_path, kind, seed=50)
    assert lab.regions["header 0"] == old.regions["header 0"]
    size = min(len(lab.raw), len(old.raw))
    for at in range(0, size, ALIGNMENT):
        lab.check(spliced(lab.raw, at, old.raw[at : at + ALIGNMENT]), keys=False)
    if kind == "source":
        return
    assert lab.regions == old.regions
    for names in (("index",), ("header 0", "header 1"), ("index", "header 0", "header 1"), ("footer", "index")):
        damaged = lab.raw
        for name in names:
            region = lab.regions[name]
            damaged = spliced(damaged, region.offset, old.raw[region.offset : region.end])
        lab.check(damaged)
    payloads = lab.regions["header 0"].offset
    lab.path.write_bytes(lab.raw[:payloads] + old.raw[payloads:])
    assert_same(fastckpt.load(lab.path), old.state)


def test_any_one_copy_is_enough(lab: Lab) -> None:
    """Each copy of the metadata destroyed as a whole, alone and with others, as SPEC.md promises."""
    headers = [name for name in lab.regions if name.startswith("header")]
    for names in (
        ["superblock"],
        ["manifest"],
        ["manifest copy"],
        ["index"],
        headers,
        ["superblock", "manifest", "index"],
        ["superblock", "manifest", *headers],
        ["superblock", "manifest copy", *headers],
        ["superblock", "manifest copy", "index"],
        ["manifest", "manifest copy"],
        ["index", headers[0]],
    ):
        for filler in (b"\0", b"\xa5"):
            damaged = lab.raw
            for name in names:
                region = lab.regions[name]
                damaged = spliced(damaged, region.offset, filler * region.size)
            lab.check(damaged)


def test_lost_footer_with_other_losses(lab: Lab) -> None:
    """Without the footer nothing is loaded, but verify still knows what is whole."""
    footer = lab.regions["footer"]
    headers = [name for name in lab.regions if name.startswith("header")]
    for names, lost in (
        ([], set()),
        (["manifest"], set()),
        (["manifest copy", "index"], set()),
        (headers, set()),
        ([headers[0], "manifest"], set()),
        ([headers[-1], "manifest"], set()),
        ([headers[0], "index"], {name for name, (record, _, _) in lab.spans.items() if record == 0}),
        (["manifest", headers[0], "index"], {name for name, (record, _, _) in lab.spans.items() if record == 0}),
    ):
        damaged = spliced(lab.raw, footer.offset, bytes(footer.size))
        for name in names:
            region = lab.regions[name]
            damaged = spliced(damaged, region.offset, b"\xa5" * region.size)
        lab.path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="salvage"):
            fastckpt.load(lab.path)
        report = fastckpt.verify(lab.path)
        assert set(report.damaged_tensors) == lost, names


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_random_garbage_over_random_ranges(tmp_path: Path, codec: str) -> None:
    lab = build(tmp_path, codec)
    generator = random.Random(4)
    for _ in range(80):
        damaged = lab.raw
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(lab.raw))
            damaged = spliced(damaged, at, generator.randbytes(min(generator.choice([1, 9, 5000]), len(lab.raw) - at)))
        lab.check(damaged, keys=False)


def nested(tmp_path: Path) -> tuple[Lab, Lab]:
    """A file whose tensors hold whole checkpoint files as bytes, and one of those."""
    inner = build(tmp_path, "none", seed=9)
    blob = torch.frombuffer(bytearray(inner.raw), dtype=torch.uint8)
    # Also one that begins inside a payload at a multiple of 4096, and one in a pack.
    state = {
        "first": blob,
        "small": [torch.frombuffer(bytearray(inner.raw[:200_000]), dtype=torch.uint8), torch.arange(5)],
        "second": torch.cat([torch.zeros(8192, dtype=torch.uint8), blob]),
        "last": pattern(300_000),
    }
    path = tmp_path / "outer.fckpt"
    fastckpt.save(state, path, durable=False)
    return Lab(path, state), inner


def test_a_checkpoint_inside_a_tensor(tmp_path: Path) -> None:
    outer, inner = nested(tmp_path)
    outer.check(outer.raw)
    assert not set(outer.flat) & set(inner.flat)
    for size in range(outer.regions["manifest"].end, len(outer.raw), 5 * ALIGNMENT):
        outer.check_cut(size)
    # Cut right behind the inner file: what stands at the end is a whole footer, of another file.
    for name in ("payload 0", "payload 2"):
        outer.check_cut(outer.regions[name].end)


def test_a_checkpoint_inside_a_tensor_and_lost_metadata(tmp_path: Path) -> None:
    outer, inner = nested(tmp_path)
    footer = outer.regions["footer"]
    headers = [name for name in outer.regions if name.startswith("header")]
    for names, number in (
        (["manifest"], None),
        (["manifest", "superblock"], None),
        (["manifest", "manifest copy"], None),
        (["manifest", headers[0]], None),
        (headers, None),
        (["index", headers[0]], 0),
        (["index", headers[2]], 2),
        (["manifest", "index", headers[0]], 0),
        (["manifest", "manifest copy", "index", headers[0]], None),
        (["manifest", "manifest copy", "index", *headers], None),
        (["manifest", "manifest copy", *headers], None),
        (["manifest", "index", *headers], "all"),
    ):
        damaged = spliced(outer.raw, footer.offset, b"\xa5" * footer.size)
        for name in names:
            region = outer.regions[name]
            damaged = spliced(damaged, region.offset, b"\xa5" * region.size)
        outer.path.write_bytes(damaged)
        if "superblock" in names:
            with pytest.raises(NotACheckpointError):
                fastckpt.load(outer.path)
            continue
        with pytest.raises(DamagedError):
            fastckpt.load(outer.path)
        report = fastckpt.verify(outer.path)
        lost = {name for name, (record, _, _) in outer.spans.items() if number in (record, "all")}
        assert set(report.damaged_tensors) == lost, names
        assert not set(report.damaged_tensors) & set(inner.flat)


def test_typed_errors_for_noise_behind_the_magic(tmp_path: Path) -> None:
    lab = build(tmp_path, "none")
    generator = random.Random(5)
    for size in (8, 100, 4096, 8192, 50_000):
        lab.path.write_bytes(lab.raw[:8] + generator.randbytes(size))
        with pytest.raises(FastckptError):
            fastckpt.load(lab.path)
        assert not fastckpt.verify(lab.path).ok
    assert not same(lab.state, encoded_state())
