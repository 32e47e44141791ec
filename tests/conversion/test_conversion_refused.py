"""convert: what is refused, and that everything is as it was then."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from repacking import repacked
from states import (
    assert_same,
    pattern,
)

import fastckpt
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UnsupportedStateError,
    UsageError,
)
from fastckpt.stored.inspection import inspect_file

CODECS = ["none", "zstd", "planes"]
TIED = torch.ones(3)
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"step": 3, "a": torch.ones(2)}, r"as JSON: 1 plain value \(step\)"),
        ({"a": torch.ones(4)[1:]}, "views of memory that is shared or larger, .*: a"),
        ({"a": torch.ones(2, 3).t()}, "strided .*: a"),
        ({"a": torch.ones(3, dtype=torch.complex128)}, "1 left out.*: a: complex128"),
        ([torch.ones(2), 5], r"as JSON: 1 plain value \(1\).*flat by name: state\[0\]"),
        ({"a": TIED, "b": TIED}, "written once: b is a"),
        ({"m": {"a": torch.ones(2)}}, r"flat by name: state\['m'\]\['a'\]"),
        ({"a": torch.nn.Parameter(torch.ones(2))}, "plain tensor: a"),
    ],
)
def test_nothing_is_replaced_by_a_safetensors_that_cannot_hold_it(tmp_path: Path, state: Any, reason: str) -> None:
    fastckpt.save(state, tmp_path / "s.fckpt")
    with pytest.raises(UnsupportedStateError, match=rf"would not give this state back: .*{reason}.*\.pt"):
        fastckpt.convert(tmp_path / "s.fckpt", to="safetensors", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


# Refusals


def refused(source: Path, error: type[FastckptError], words: str, **options: Any) -> FastckptError:
    """The conversion fails, nothing is left behind, and what stood at the destination stays."""
    destination = source.with_name("old.fckpt")
    destination.write_bytes(b"old")
    before = sorted(p.name for p in source.parent.iterdir())
    for codec in CODECS:
        with pytest.raises(error, match=words) as caught:
            fastckpt.convert(source, destination, codec=codec, **options)
    assert destination.read_bytes() == b"old"
    assert sorted(p.name for p in source.parent.iterdir()) == before
    assert str(source) in str(caught.value)
    return caught.value


def test_crc_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    state = {"small": pattern(5000, 1), "tied": None, "large": pattern(600_000, 2)}
    state["tied"] = state["small"]
    torch.save(state, path)
    intact = path.read_bytes()
    for name in ("small", "large"):
        raw = bytearray(intact)
        at = raw.index(state[name].numpy().tobytes()[:64])
        raw[at + 99] ^= 4
        path.write_bytes(raw)
        error = refused(path, DamagedError, "CRC-32")
        assert error.tensor == name
        assert error.offset == at
        assert error.next_step == f"fastckpt salvage {path}"
        refused(path, DamagedError, "CRC-32", replace=True)
        assert path.exists()


def test_missing_storage(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": pattern(5000, 1), "b": pattern(5000, 2)}, path)
    repacked(path, lambda records: records.pop("m/data/1") and None)
    error = refused(path, DamagedError, "1 of 2 storages are missing")
    assert error.tensor == "b"
    assert error.next_step == f"fastckpt salvage {path}"


class Unknown:
    """A class that is nobody else's."""


def test_opaque_objects(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"args": {"who": Unknown()}, "a": torch.ones(1)}, path)
    result = fastckpt.convert(path, tmp_path / "own.fckpt")
    assert "Unknown" in result[0].notes[0]
    fastckpt.convert(tmp_path / "own.fckpt", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == path.read_bytes()
    refused(path, UnsupportedStateError, r"state\['args'\]\['who'\] is a .*Unknown", exact=False)


def test_cut_sources(tmp_path: Path) -> None:
    torch.save({"a": pattern(5000)}, tmp_path / "m.pt")
    torch.save({"a": pattern(5000)}, tmp_path / "l.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": pattern(5000)}, tmp_path / "m.safetensors")
    for name in ("m.pt", "l.pt", "m.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-700])
        refused(path, DamagedError, "fastckpt salvage")


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_fckpt(tmp_path: Path, codec: str) -> None:
    torch.save({"a": pattern(5000, 1), "b": pattern(600_000, 2)}, tmp_path / "m.pt")
    path = tmp_path / "m.fckpt"
    fastckpt.convert(tmp_path / "m.pt", path, codec=codec)
    with fastckpt.open(path) as ck:
        places = [record.payload.offset for record in ck._file.records]
        section = ck._file.footer.section(4)
    intact = path.read_bytes()
    (tmp_path / "old.pt").write_bytes(b"old")
    for place, name in zip(places, ("a", "b"), strict=True):
        raw = bytearray(intact)
        raw[place + 77] ^= 1
        path.write_bytes(raw)
        for options in ({}, {"exact": False}, {"replace": True}):
            with pytest.raises(DamagedError) as caught:
                fastckpt.convert(path, tmp_path / "old.pt", **options)
            assert caught.value.tensor == name
    assert section is not None
    raw = bytearray(intact)
    raw[section.extent.offset + 77] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="--no-exact"):
        fastckpt.convert(path, tmp_path / "old.pt")
    assert (tmp_path / "old.pt").read_bytes() == b"old"
    assert path.exists()
    fastckpt.convert(path, tmp_path / "new.pt", exact=False)
    assert_same(torch.load(tmp_path / "new.pt"), torch.load(tmp_path / "m.pt"))


def test_without_zstandard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that give the original back are compressed; the tensors and what is told of the file are not."""
    torch.save({"a": pattern(5000, 1)}, tmp_path / "m.pt")
    fastckpt.convert(tmp_path / "m.pt")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert inspect_file(tmp_path / "m.fckpt").original == ("torch-zip", (tmp_path / "m.pt").stat().st_size)
    assert_same(fastckpt.load(tmp_path / "m.fckpt"), torch.load(tmp_path / "m.pt"))
    with pytest.raises(UsageError) as caught:
        fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "back.pt")
    assert (caught.value.path, caught.value.next_step) == (str(tmp_path / "m.fckpt"), "pip install zstandard")
    with pytest.raises(UsageError, match="needs the zstandard package"):
        fastckpt.convert(tmp_path / "m.pt", tmp_path / "new.fckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.fckpt", "m.pt"]
    fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "back.pt", exact=False)
    assert_same(torch.load(tmp_path / "back.pt"), torch.load(tmp_path / "m.pt"))


def test_usage(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    fastckpt.save({"a": torch.ones(1)}, tmp_path / "s.fckpt")
    shutil.copy(tmp_path / "m.pt", tmp_path / "copy.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "m.pt")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for source, destination, options in (
        ("m.pt", "m.pt", {}),
        ("m.pt", "link.pt", {"to": "fckpt"}),
        ("m.pt", "x.unknown", {}),
        ("m.pt", "x.pt", {}),
        ("s.fckpt", "x.fckpt", {}),
        ("m.pt", "x.fckpt", {"to": "tar"}),
        ("m.pt", "x.fckpt", {"step": 3}),
        ("m.pt", "x.fckpt", {"codec": "lz4"}),
        ("m.pt", "x.fckpt", {"threads": 0}),
    ):
        with pytest.raises(UsageError):
            fastckpt.convert(tmp_path / source, tmp_path / destination, **options)
    with pytest.raises(CheckpointIOError):
        fastckpt.convert(tmp_path / "missing.pt", tmp_path / "x.fckpt")
    (tmp_path / "t.pt").write_bytes(b"nothing" * 100)
    with pytest.raises(NotACheckpointError):
        fastckpt.convert(tmp_path / "t.pt")
    (tmp_path / "t.pt").unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_source_cut_during_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastckpt.conversion import to_fckpt

    path = tmp_path / "m.pt"
    torch.save({"a": pattern(3_000_000)}, path)
    write = to_fckpt.write_checkpoint

    def cutting(*args: Any, **options: Any) -> None:
        with open(path, "r+b") as file:
            file.truncate(1_000_000)
        write(*args, **options)

    monkeypatch.setattr(to_fckpt, "write_checkpoint", cutting)
    with pytest.raises(FastckptError, match=r"ends there|changed|shorter"):
        fastckpt.convert(path, tmp_path / "m.fckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
