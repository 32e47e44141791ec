"""verify and salvage say the same of a damaged file: the same tensors, and loss only where something is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastckpt
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


def test_both_ends_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.fckpt"
    path.write_bytes(without_ends(write(path)))
    report = fastckpt.verify(path)
    assert (report.format, report.exit_code, report.damaged_tensors, report.tensors_total) == ("fckpt", 1, [], TENSORS)


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
