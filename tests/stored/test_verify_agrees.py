"""verify and salvage say the same of a damaged file: the same tensors, and loss only where something is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.findings import Kind

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
TENSORS = 12


def state() -> dict[str, torch.Tensor]:
    return {f"h.{n}.w": torch.full((64, 70), float(n + 1)) for n in range(TENSORS)}


def write(path: Path) -> bytes:
    if path.suffix == ".fckpt":
        fastckpt.save(state(), path)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=path.stem != "legacy")
    return path.read_bytes()


def cut(share: float) -> object:
    return lambda raw: raw[: int(len(raw) * share)]


def flip_many(raw: bytes) -> bytes:
    damaged = bytearray(raw)
    for number in (2, 5, 9):
        damaged[raw.index(torch.full((64, 70), float(number + 1)).numpy().tobytes()) + 4321] ^= 4
    return bytes(damaged)


def without_ends(raw: bytes) -> bytes:
    return bytes(4096) + raw[4096:-4096] + bytes(4096)


DAMAGE = {
    "cut": cut(0.6),
    "cut early": cut(0.3),
    "the last bytes": lambda raw: raw[:-7],
    "flips": flip_many,
    "bytes behind it": lambda raw: raw + b"abc",
    "a hole": lambda raw: raw[:9000] + bytes(9000) + raw[18000:],
}


@pytest.mark.parametrize("name", ["a.fckpt", "a.pt", "legacy.pt", "a.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_same_tensors(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGE[damage](write(path)))  # type: ignore[operator]
    report = fastckpt.verify(path)
    fates = fastckpt.salvage(path)
    gone = {n for n, fate in fates.tensors.items() if fate.status.value not in ("intact", "unverified")}
    assert set(report.damaged_tensors) == gone
    assert {n for f in report.findings if f.loss for n in f.tensors} == gone
    assert (report.format, report.tensors_total) == (fates.format, TENSORS)
    assert report.exit_code == (2 if gone else 1 if any(f.kind is not Kind.UNPROVEN for f in report.findings) else 0)
    assert report.as_dict()["tensors_total"] == TENSORS


def in_directory(name: bytes, field: int) -> object:
    """Flips a bit of a field of a record's row in the directory of a ``.pt``, in front of its name."""

    def change(raw: bytes) -> bytes:
        damaged = bytearray(raw)
        damaged[raw.rindex(name) - 46 + field] ^= 8
        return bytes(damaged)

    return change


@pytest.mark.parametrize("name", [b"a/data.pkl", b"a/data/3", b"a/version", b"a/.data/serialization_id"])
@pytest.mark.parametrize("field", [8, 10, 12, 16, 20, 24, 28, 30, 42])
def test_a_bit_of_the_directory(tmp_path: Path, name: bytes, field: int) -> None:
    """Flags, method, time, CRC-32, sizes, lengths, offset: every tensor is still there, and both say so."""
    path = tmp_path / "a.pt"
    path.write_bytes(in_directory(name, field)(write(path)))  # type: ignore[operator]
    report, fates = fastckpt.verify(path), fastckpt.salvage(path, tmp_path / "b.pt")
    assert (report.exit_code, report.damaged_tensors) == (fates.exit_code, []) == (1, [])
    assert fates.complete
    back = torch.load(tmp_path / "b.pt")
    assert all(torch.equal(back[key], value) for key, value in state().items())


def test_both_ends_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.fckpt"
    path.write_bytes(without_ends(write(path)))
    report = fastckpt.verify(path)
    assert (report.format, report.exit_code, report.damaged_tensors, report.tensors_total) == ("fckpt", 1, [], TENSORS)


def table(header: bytes, data: bytes = bytes(8)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


HEADERS = {
    "a form feed in front": (table(b'\x0c{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), 2),
    "bytes but no tensor": (table(b"{}"), 1),
    "an empty tensor beyond the end": (
        table(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"e":{"dtype":"F32","shape":[0],"data_offsets":[99,99]}}'
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_load_refuses_is_never_present(tmp_path: Path, name: str) -> None:
    raw, code = HEADERS[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FastckptError):
        fastckpt.load(path)
    report = fastckpt.verify(path)
    assert report.exit_code == code
    assert all(0 <= finding.offset <= len(raw) and "-" not in finding.message for finding in report.findings)
    assert fastckpt.salvage(path).exit_code != 0


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("meta_null", 0),
        ("meta_empty", 0),
        ("f6", 0),
        ("f4", 0),
        ("c64", 0),
        ("misaligned", 0),
        ("notensors", 0),
        ("emptytensor", 0),
        ("trailing", 1),
        ("overlap", 2),
        ("hole", 2),
        ("wrongsize", 2),
        ("dupkeys", 2),
        ("cut_in_header", 2),
    ],
)
def test_odd_safetensors(name: str, code: int) -> None:
    report = fastckpt.verify(CASES / "hf" / "files" / f"{name}.safetensors")
    assert report.exit_code == code
    assert report.ok == (code == 0)
    assert report.format == "safetensors"
    if code == 0 and name not in ("notensors",):
        assert [finding.kind for finding in report.findings] == [Kind.UNPROVEN]


def test_a_flipped_bit_in_the_pickles_of_a_legacy_file_is_reported_and_not_raised(tmp_path: Path) -> None:
    """Magic number, protocol version, protocols of the pickles: no checksum tells that they are damaged."""
    path = tmp_path / "legacy.pt"
    raw = write(path)
    for at in [*range(160), *range(160, 1000, 29)]:
        for bit in (0, 7):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            report, salvaged = fastckpt.verify(path), fastckpt.salvage(path)
            assert (report.exit_code == 0) == (salvaged.exit_code == 0), (at, bit)
            if 2 <= at < 14 or at in (18, 19):  # The magic number and the protocol version, which torch compares.
                assert report.exit_code == 1, (at, bit)
