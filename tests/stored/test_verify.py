"""verify: every byte accounted for, findings that name exactly what is damaged, and no exception for any of it."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import forked
import pytest
import safetensors.torch
import torch
from states import compressible, everything, of_dtype, pattern

import fastckpt
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import CheckpointIOError, NotACheckpointError, UsageError
from fastckpt.findings import Finding, Kind
from fastckpt.layout.records import Record

LEAVES_IN_CHUNK = CHUNK_SIZE // LEAF_SIZE
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def big_state() -> dict[str, Any]:
    shared = compressible(2 * CHUNK_SIZE + 50_000, 7)
    return {
        "first": compressible(3 * CHUNK_SIZE + 100),
        "begin": shared[:1000],
        "end": shared[2 * CHUNK_SIZE :],
        "pack": [pattern(LEAF_SIZE - 64, 1), pattern(100, 2), pattern(LEAF_SIZE, 3)],
    }


def records_of(path: Path) -> list[Record]:
    with fastckpt.open(path) as ck:
        return ck._file.records


def change(path: Path, *offsets: int) -> None:
    raw = bytearray(path.read_bytes())
    for offset in offsets:
        raw[offset] ^= 0x40
    path.write_bytes(raw)


def strict_json(report: fastckpt.Report) -> dict[str, Any]:
    text = json.dumps(report.as_dict(), allow_nan=False)
    result: dict[str, Any] = json.loads(text)
    assert result == report.as_dict(), "nothing is changed by JSON"
    return result


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_intact(tmp_path: Path, codec: str, threads: int | None) -> None:
    path = tmp_path / "s"
    for state in (everything(), big_state(), {}, {"e": torch.empty(0)}):
        fastckpt.save(state, path, codec=codec)
        report = fastckpt.verify(path, threads=threads)
        assert report.ok
        assert (report.exit_code, report.findings, report.next_step, report.damaged_tensors) == (0, [], None, [])
        assert report.size == report.verified == path.stat().st_size
        assert (report.format, report.path) == ("fckpt", str(path))
        assert strict_json(report)["ok"] is True


def test_root_is_that_of_the_open_file(tmp_path: Path) -> None:
    fastckpt.save(big_state(), tmp_path / "s")
    with fastckpt.open(tmp_path / "s") as ck:
        assert fastckpt.verify(tmp_path / "s").root == ck.root


def only(report: fastckpt.Report) -> Finding:
    assert not report.ok
    assert len(report.findings) == 1, report.findings
    strict_json(report)
    return report.findings[0]


def test_finding_in_a_raw_record(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    record = records_of(path)[0]
    leaf = 2 * LEAVES_IN_CHUNK + 5
    change(path, record.payload.offset + leaf * LEAF_SIZE + 77)
    report = fastckpt.verify(path)
    finding = only(report)
    assert (finding.kind, finding.record, finding.chunk, finding.leaf, finding.leaves) == (Kind.ROTTED, 0, 2, leaf, 1)
    assert (finding.offset, finding.size) == (record.payload.offset + leaf * LEAF_SIZE, LEAF_SIZE)
    assert finding.tensors == ("first",)
    assert finding.loss
    assert (report.exit_code, report.damaged_tensors) == (2, ["first"])
    assert report.next_step == f"fastckpt salvage {path}"
    assert "record 0, chunk 2, leaf 133" in finding.message
    assert "first" in finding.message
    assert report.verified == report.size, "every byte was looked at"


def test_last_short_leaf(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    record = records_of(path)[0]
    change(path, record.payload.end - 1)
    finding = only(fastckpt.verify(path))
    assert (finding.chunk, finding.leaf) == (3, 3 * LEAVES_IN_CHUNK)
    assert (finding.offset, finding.size) == (record.payload.end - 100, 100)


def test_runs_of_leaves_are_one_finding_in_each_chunk(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    record = records_of(path)[0]
    bad = range(LEAVES_IN_CHUNK - 2, LEAVES_IN_CHUNK + 3)
    change(path, *(record.payload.offset + leaf * LEAF_SIZE for leaf in bad))
    report = fastckpt.verify(path)
    assert [(f.chunk, f.leaf, f.leaves) for f in report.findings] == [(0, bad[0], 2), (1, LEAVES_IN_CHUNK, 3)]
    assert report.damaged_tensors == ["first"]


def test_finding_in_a_pack(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    pack = records_of(path)[2]
    change(path, pack.payload.offset + LEAF_SIZE - 200)
    finding = only(fastckpt.verify(path))
    assert finding.tensors == ("pack.0", "pack.1"), "a leaf is proven as a whole"
    change(path, pack.payload.offset + LEAF_SIZE - 200, pack.payload.offset + 2 * LEAF_SIZE)
    assert only(fastckpt.verify(path)).tensors == ("pack.2",)


def test_finding_between_tensors_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    record = records_of(path)[1]
    change(path, record.payload.offset + CHUNK_SIZE)
    report = fastckpt.verify(path)
    finding = only(report)
    assert (finding.tensors, finding.loss) == ((), False)
    assert (report.exit_code, report.damaged_tensors) == (1, [])


def test_finding_in_an_encoded_record(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path, codec="zstd")
    record = records_of(path)[0]
    extent = record.chunk_extent(1)
    change(path, extent.offset + 9)
    finding = only(fastckpt.verify(path))
    assert (finding.kind, finding.record, finding.chunk) == (Kind.ROTTED, 0, 1)
    assert (finding.leaf, finding.leaves) == (LEAVES_IN_CHUNK, LEAVES_IN_CHUNK)
    assert (finding.offset, finding.size) == tuple(extent)
    assert finding.tensors == ("first",)


def test_padding(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    record = records_of(path)[0]
    change(path, record.end - 1)
    report = fastckpt.verify(path)
    finding = only(report)
    assert (finding.offset, finding.size) == (record.payload.end, record.end - record.payload.end)
    assert (finding.kind, finding.loss, report.exit_code) == (Kind.ROTTED, False, 1)
    fastckpt.load(path)


def test_findings_stand_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    size = path.stat().st_size
    generator = random.Random(0)
    change(path, 20, 5000, *(generator.randrange(9000, size - 4096) for _ in range(30)))
    report = fastckpt.verify(path)
    offsets = [finding.offset for finding in report.findings]
    assert offsets == sorted(offsets)
    assert offsets[:2] == [0, 4096]
    strict_json(report)


def test_odd_names_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a\nb \u4e16 '\".fckpt"
    fastckpt.save({'q"\n\x00\x7f\u2028': pattern(1000)}, path)
    change(path, records_of(path)[0].payload.offset)
    report = fastckpt.verify(path)
    assert strict_json(report)["damaged_tensors"] == ['q"\n\x00\x7f\u2028']
    assert "'" in (report.next_step or ""), "quoted for the shell"


def test_truncated_while_open(tmp_path: Path) -> None:
    """A file that loses its end between opening and reading: a typed error or a finding, never a crash."""
    code = """
import os, sys, fastckpt
from fastckpt.errors import DamagedError
from fastckpt.io.source import Source
path, how, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
state = {"a": __import__("torch").zeros(3_000_000)}
real_map = Source.map
def cut(self, **options):
    mapped = real_map(self, **options)
    os.truncate(path, size)
    return mapped
Source.map = cut
if how == "verify":
    report = fastckpt.verify(path)
    print("ok" if report.ok else sorted({f.kind.value for f in report.findings}), report.damaged_tensors)
else:
    for mmap in (True, True):
        try:
            fastckpt.load(path, mmap=mmap)
        except DamagedError as error:
            print("DamagedError")
"""
    for how, size in (("load", 4_000_000), ("load", 0), ("load", 4097), ("verify", 4_000_000)):
        path = tmp_path / "s"
        fastckpt.save({"a": torch.zeros(3_000_000), "b": torch.ones(5)}, path)
        path.read_bytes()  # A durable save leaves it out of the page cache, and a cold file is not mapped by verify.
        run = forked.run("-c", code, str(path), how, str(size))
        if how == "load" and size == 0:
            # The second load meets an empty file.
            assert "NotACheckpointError" in run.stderr
            assert run.stdout.split() == ["DamagedError"]
            continue
        assert run.returncode == 0, f"{how} {size} ended with {run.returncode}: {run.stderr}"
        if how == "load":
            assert run.stdout.split() == ["DamagedError"] * 2
        else:
            assert "missing" in run.stdout or "unreadable" in run.stdout
            assert "'a'" in run.stdout


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIOError):
        fastckpt.verify(tmp_path / "missing")
    with pytest.raises(NotACheckpointError):
        fastckpt.verify(tmp_path)
    (tmp_path / "text").write_bytes(b"hello " * 5000)
    with pytest.raises(NotACheckpointError):
        fastckpt.verify(tmp_path / "text")
    fastckpt.save({}, tmp_path / "s")
    with pytest.raises(UsageError):
        fastckpt.verify(tmp_path / "s", threads=0)


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(big_state(), path)
    before = len(os.listdir("/proc/self/fd"))
    fastckpt.verify(path)
    change(path, path.stat().st_size - 1)
    fastckpt.verify(path)
    path.write_bytes(path.read_bytes()[:100_000])
    fastckpt.verify(path)
    assert len(os.listdir("/proc/self/fd")) == before


# Foreign files


def test_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    state = {"a": of_dtype(torch.float32, 50_000), "tied": None, "b": of_dtype(torch.int8, 999, 1)}
    state["tied"] = state["a"]
    torch.save(state, path)
    report = fastckpt.verify(path)
    assert report.ok
    with zipfile.ZipFile(path) as archive:
        every_record = sum(info.file_size for info in archive.infolist())
    assert (report.format, report.verified, report.root) == ("torch-zip", every_record, None)
    strict_json(report)
    at = path.read_bytes().index(state["a"].numpy().tobytes())
    change(path, at + 1234)
    report = fastckpt.verify(path)
    finding = only(report)
    assert (finding.kind, finding.offset, finding.size) == (Kind.ROTTED, at, 200_000)
    assert finding.tensors == ("a", "tied")
    assert report.exit_code == 2


def test_torch_file_without_crcs(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(50_000)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save({"a": torch.ones(50_000)}, tmp_path / "l.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": torch.ones(50_000)}, tmp_path / "m.safetensors")
    for name, kind in (("m.pt", "torch-zip"), ("l.pt", "torch-legacy"), ("m.safetensors", "safetensors")):
        report = fastckpt.verify(tmp_path / name)
        assert report.ok, "present, not proven"
        assert (report.format, report.verified, report.exit_code) == (kind, 0, 0)
        (finding,) = report.findings
        assert (finding.kind, finding.loss) == (Kind.UNPROVEN, False)
        # Of a .pt, the pickle and the other small records are not proven either.
        assert finding.size == 200_000 if kind != "torch-zip" else 200_000 < finding.size < 201_000
        strict_json(report)


@pytest.mark.parametrize("name", ["m.pt", "l.pt", "m.safetensors"])
def test_cut_foreign_file(tmp_path: Path, name: str) -> None:
    state = {"a": torch.ones(50_000)}
    if name == "m.safetensors":
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "l.pt")
    raw = (tmp_path / name).read_bytes()
    for size in (len(raw) - 1, len(raw) // 2, 300):
        (tmp_path / name).write_bytes(raw[:size])
        report = fastckpt.verify(tmp_path / name)
        assert not report.ok
        # Without the last byte of its directory, a .pt still has all of its tensor.
        assert report.exit_code == (1 if (name, size) == ("m.pt", len(raw) - 1) else 2)
        assert report.damaged_tensors == ([] if report.exit_code == 1 or (name, size) == ("l.pt", 300) else ["a"])
        assert report.next_step == f"fastckpt salvage {tmp_path / name}"
        strict_json(report)
