"""Bytes of another tensor or of another save, whole and with a CRC-32 of their own: never called intact."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import fastckpt

COUNT = 12


def state(save: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(save)
    return {f"h.{n}.w": torch.randn(64, 64, generator=generator) for n in range(COUNT)}


def spans(path: Path) -> dict[int, tuple[int, int, int]]:
    """Of each storage: where its header begins, where its bytes do, and where its descriptor ends."""
    raw = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _, data, key = info.filename.rpartition("/data/")
            if data:
                at = info.header_offset
                start = at + 30 + int.from_bytes(raw[at + 26 : at + 28], "little")
                start += int.from_bytes(raw[at + 28 : at + 30], "little")
                found[int(key)] = (at, start, start + info.file_size + 16)
    return found


def check(path: Path, wrong: set[str], *, lost: bool = False) -> None:
    """These tensors are not intact, are named by salvage and verify, and the others are intact."""
    report = fastckpt.salvage(path)
    assert {name for name, fate in report.tensors.items() if fate.status.value != "intact"} == wrong
    assert not report.complete
    assert wrong <= {name for finding in report.findings for name in finding.tensors}
    assert not fastckpt.verify(path).ok
    if lost:
        assert set(fastckpt.verify(path).damaged_tensors) == wrong


@pytest.mark.parametrize("with_header", [True, False], ids=["record", "data and descriptor"])
@pytest.mark.parametrize("with_directory", [True, False], ids=["", "without directory"])
def test_a_record_in_the_place_of_another(tmp_path: Path, with_header: bool, with_directory: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(1), path)
    raw = bytearray(path.read_bytes())
    found = spans(path)
    source, target = found[3], found[7]
    first = 0 if with_header else 1
    assert source[2] - source[first] == target[2] - target[first]
    raw[target[first] : target[2]] = raw[source[first] : source[2]]
    path.write_bytes(raw if with_directory else raw[: found[COUNT - 1][2]])
    if with_directory or with_header:
        check(path, {"h.7.w"}, lost=True)
    # Without the directory, a header that is right and a CRC-32 that matches are all that there is.


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_one_save_over_another(tmp_path: Path, share: float) -> None:
    """A copy in place that was interrupted: its front is of the second save, its end and directory of the first."""
    old, path = tmp_path / "old" / "a.pt", tmp_path / "a.pt"
    old.parent.mkdir()
    torch.save(state(1), old)
    torch.save(state(2), path)
    first, second = old.read_bytes(), path.read_bytes()
    assert len(first) == len(second)
    size = int(len(first) * share)
    found = spans(path)
    path.write_bytes(second[:size] + first[size:])
    check(path, {f"h.{n}.w" for n, (_, start, _) in found.items() if start < size}, lost=True)


def test_a_step_over_another_of_an_optimizer(tmp_path: Path) -> None:
    """Numbers and names in data.pkl are those of the second save: nothing is proven with them."""

    def optimizer(save: int) -> dict[str, object]:
        return {"state": {0: {"step": save, "exp_avg": state(save)["h.0.w"]}}, "param_groups": [{"params": [0]}]}

    first, path = tmp_path / "x" / "a.pt", tmp_path / "a.pt"
    first.parent.mkdir()
    torch.save(optimizer(1), first)
    torch.save(optimizer(2), path)
    raw = path.read_bytes()
    at = spans(path)[0][0]
    path.write_bytes(raw[:at] + first.read_bytes()[at:])
    report = fastckpt.salvage(path)
    assert report.counts["intact"] == 0
    assert not report.complete
    assert report.structure != "whole"
