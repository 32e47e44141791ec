"""Files that are absurd, or made to do harm: a finding or a typed error, soon, and in little memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from slowness import within

import fastckpt
from fastckpt.errors import FastckptError

SECONDS = 20.0
MEMORY = 300 * 2**20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Time of the CPU, memory, and how large a file may be that is written: beyond that, the system has no space."""
    torch.zeros(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert within(time.process_time() - started, SECONDS)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def salvaged(path: Path, **options: Any) -> Any:
    """The report, or None after a typed error; with a destination, in a dry run as well."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, hard))
    reports = []
    for destination in (None, path.with_suffix(".out.fckpt")):
        try:
            reports.append(fastckpt.salvage(path, destination, fill="zeros", **options))
        except FastckptError:
            reports.append(None)
    return reports[0]


def header(value: Any, data: bytes = b"") -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + data


EVERYTHING = ("unverified", "partial", "damaged")


@pytest.mark.parametrize("extent", [2**28, 2**38, 2**60])
def test_safetensors_that_claims_to_be_huge(tmp_path: Path, extent: int) -> None:
    path = tmp_path / "file.safetensors"
    tensor = {"dtype": "F32", "shape": [extent], "data_offsets": [0, 4 * extent]}
    path.write_bytes(header({"x": tensor}, b"12345678"))
    report = salvaged(path, include=EVERYTHING)
    assert report is None or report.tensors["x"].status.value in ("partial", "lost", "damaged")


@pytest.mark.parametrize("size", [0, 1, 2**20, 100_000_000, 2**40, 2**63, 2**64 - 1])
def test_safetensors_header_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", size) + header({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})[8:])
    report = salvaged(path)
    assert report is None or not any(fate.status.value == "intact" for fate in report.tensors.values())


def torch_pickle(numel: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A data.pkl with one tensor, whatever is said about it."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value is marker else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (marker, 0, shape, stride, False, {})

    marker = object()
    file = io.BytesIO()
    Pickler(file, 2).dump({"x": Tensor()})
    return file.getvalue()


def archive(path: Path, data: bytes, method: int = zipfile.ZIP_STORED, storage: bytes = b"12345678") -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", b"3\n")


@pytest.mark.parametrize("numel", [2**28, 2**40, 2**62])
def test_storage_that_claims_to_be_huge(tmp_path: Path, numel: int) -> None:
    path = tmp_path / "file.pt"
    archive(path, torch_pickle(numel, (numel,), (1,)))
    report = salvaged(path, include=EVERYTHING)
    assert report is None or report.counts["intact"] == 0


@pytest.mark.parametrize("extent", [2**24 + 1, 2**34])
def test_what_is_mostly_fill_is_left_out(tmp_path: Path, extent: int) -> None:
    """Though the disk could hold it: next to nothing of it is there, and all else comes back."""
    path = tmp_path / "file.safetensors"
    table = {
        "small": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "huge": {"dtype": "F32", "shape": [extent], "data_offsets": [8, 8 + 4 * extent]},
    }
    path.write_bytes(header(table, b"12345678" * 2))
    report = salvaged(path, include=EVERYTHING)
    assert report.written == ["small"]
    assert report.tensors["huge"].status.value == "partial"
    assert any("huge: only 8 of" in note for note in report.notes)
    assert report.exit_code == 3
    assert path.with_suffix(".out.fckpt").stat().st_size < 2**20


def test_a_small_tensor_may_be_mostly_fill(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensor = {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}
    path.write_bytes(header({"x": tensor}, b"12345678"))
    assert salvaged(path, include=EVERYTHING).written == ["x"]
    back = fastckpt.load(path.with_suffix(".out.fckpt"))["x"]
    assert back[:2].view(torch.uint8).numpy().tobytes() == b"12345678"
    assert not back[2:].any()


def test_broadcast_that_is_huge(tmp_path: Path) -> None:
    """A tensor may have more elements than its storage: nothing may copy them out."""
    path = tmp_path / "file.pt"
    archive(path, torch_pickle(2, (2**40,), (0,)))
    report = salvaged(path, include=EVERYTHING)
    assert report is None or len(report.tensors) == 1
    for suffix in (".pt", ".safetensors"):
        with contextlib.suppress(FastckptError):
            fastckpt.salvage(path, tmp_path / f"out{suffix}")


@pytest.mark.thorough
def test_deflate_bomb(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    archive(path, torch_pickle(2, (2,), (1,)), zipfile.ZIP_DEFLATED, bytes(2**28))
    assert path.stat().st_size < 2**19
    salvaged(path, include=EVERYTHING)


@pytest.mark.thorough
def test_overlapping_records(tmp_path: Path) -> None:
    """Directory entries that all state the same bytes."""
    path = tmp_path / "file.pt"
    archive(path, torch_pickle(2, (2,), (1,)), storage=bytes(100_000))
    with zipfile.ZipFile(path) as file:
        start = file.start_dir
        (entry,) = [info for info in file.infolist() if info.filename.endswith("data/0")]
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02", start)
    while struct.unpack_from("<I", raw, at + 42)[0] != entry.header_offset:
        at = raw.index(b"PK\x01\x02", at + 1)
    row = raw[at : raw.index(b"PK\x01\x02", at + 1)]
    rows = b"".join(row.replace(b"data/0", f"data/{n % 10}".encode()) for n in range(20_000))
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 20_000, 20_000, len(rows), start, 0)
    path.write_bytes(raw[:start] + rows + end)
    salvaged(path, include=EVERYTHING)


@pytest.mark.thorough
def test_very_many_local_headers(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 0, 0x808, 0, 0, 0, 0, 0, 0, 14, 0)
    path.write_bytes(b"".join(local + f"archive/data/{n % 10}".encode() for n in range(60_000)))
    salvaged(path, include=EVERYTHING)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00e" * 50_000 + b".",
        b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(100)) + b".",
        b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02" + b"1" * 8000 + b"L\n.",
    ],
    ids=["deep", "repeated", "doubled", "long text", "long number", "many digits"],
)
def test_pickle_bombs(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pt"
    archive(path, data)
    report = salvaged(path)
    assert report is None or report.exit_code != 0


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_globals_are_shown_and_never_called(tmp_path: Path, how: str) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {trap}",)

    path = tmp_path / "file.pt"
    state = {"x": torch.arange(4.0), "trap": Trap()}
    torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    report = salvaged(path, include=EVERYTHING)
    assert not trap.exists()
    assert report.tensors["x"].status.value == ("intact" if how == "zip" else "unverified")
    said = " ".join([*report.notes, *(finding.message for finding in report.findings)])
    assert "system" in said, said
    back = fastckpt.load(path.with_suffix(".out.fckpt"), opaque="keep")
    assert torch.equal(back["x"], torch.arange(4.0))
    assert not trap.exists()


@pytest.mark.thorough
def test_huge_sparse_file(tmp_path: Path) -> None:
    """A file that is larger than memory should ever be: it is read piece by piece."""
    path = tmp_path / "file.pt"
    torch.save({"x": torch.arange(1000.0)}, path)
    os.truncate(path, 2**30)
    report = salvaged(path)
    assert report.tensors["x"].status.value == "intact"
