"""Of a large file, little is read for one tensor: its record's header, not the index of all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import xxhash
from states import element_bytes

import fastckpt
from fastckpt.constants import SECTION_INDEX
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.source import Source
from fastckpt.stored.open_file import open_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """40 tensors with a record each."""
    generator = torch.Generator().manual_seed(3)
    state = {f"w{number}": torch.randn(300, 300, generator=generator) for number in range(40)}
    fastckpt.save(state, tmp_path / "many.fckpt")
    return tmp_path / "many.fckpt"


def sections_read(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[bool]:
    """Whether each read from now on touches the index; the list grows."""
    with CheckpointFile(path) as file:
        index = file.required_section(SECTION_INDEX).extent
    touched: list[bool] = []
    read = Source.read

    def watched(source: Source, offset: int, size: int, *, what: str = "") -> bytes:
        touched.append(offset < index.end and index.offset < offset + size)
        return read(source, offset, size, what=what)

    monkeypatch.setattr(Source, "read", watched)
    return touched


@pytest.mark.parametrize("mmap", [False, True])
def test_one_tensor_does_not_need_the_index(path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool) -> None:
    expected = fastckpt.load(path)["w7"]
    touched = sections_read(monkeypatch, path)
    assert torch.equal(fastckpt.load(path, keys=["w7"], mmap=mmap)["w7"], expected)
    with fastckpt.open(path) as file:
        assert torch.equal(file["w7"], expected)
    assert touched
    assert not any(touched)


def test_most_tensors_are_found_by_the_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = sections_read(monkeypatch, path)
    fastckpt.load(path, keys=[f"w{number}" for number in range(30)])
    assert sum(touched) == 1
    assert len(touched) < 10


@pytest.mark.parametrize("damaged", ["header", "directory"])
def test_a_damaged_short_cut_is_no_loss(path: Path, damaged: str) -> None:
    expected = fastckpt.load(path)["w7"]
    with CheckpointFile(path) as file:
        extent = file.records[7].header if damaged == "header" else file.footer.sections[-2].extent
    with path.open("r+b") as raw:
        raw.seek(extent.offset + 40)
        byte = raw.read(1)[0]
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte ^ 1]))
    assert torch.equal(fastckpt.load(path, keys=["w7"])["w7"], expected)


def test_no_way_to_use_few_tensors_needs_the_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = fastckpt.load(path, keys=["w7", "w9"])
    touched = sections_read(monkeypatch, path)
    assert dict(fastckpt.stream(path, keys=["w7", "w9"])).keys() == few.keys()
    assert fastckpt.verify_tensors(few, path, keys=["w7", "w9"]).ok
    with open_file(path) as opened:
        assert all(opened.stands_alone(storage) for storage in range(40))
        run = opened.leaf_run(7, 0, 16384)
        assert run is not None
        assert run.digests[0] == xxhash.xxh3_64_intdigest(element_bytes(few["w7"])[:16384])
    assert touched
    assert not any(touched)


def test_all_tensors_one_by_one_are_found_by_the_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = sections_read(monkeypatch, path)
    with open_file(path) as opened:
        for storage in range(40):
            opened.leaf_run(storage, 0, 16384)
    assert sum(touched) == 1
    assert len(touched) < 15
