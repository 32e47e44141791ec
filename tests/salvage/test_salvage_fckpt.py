"""Salvage of damaged ``.fckpt`` files: any one copy of the structure is enough, neighbours are independent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from salvage.support import check_written, equal, flat, make_state, overwrite, status

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.file import CheckpointFile

ORIGINAL = flat(make_state())


@pytest.fixture(params=["none", "zstd", "planes"])
def path(tmp_path: Path, request: Any) -> Path:
    fastckpt.save(make_state(), tmp_path / "model.fckpt", codec=request.param, metadata={"run": 3})
    return tmp_path / "model.fckpt"


def sections(path: Path) -> dict[int, tuple[int, int]]:
    with CheckpointFile(path) as file:
        return {section.kind: (section.extent.offset, section.extent.size) for section in file.footer.sections}


def headers(path: Path) -> list[tuple[int, int]]:
    with CheckpointFile(path) as file:
        return [(record.header.offset, record.header.size) for record in file.records]


def destroy(path: Path, *extents: tuple[int, int]) -> None:
    for at, size in extents:
        overwrite(path, at, b"\xaa" * size)


def test_whole_file(path: Path, tmp_path: Path) -> None:
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert set(status(report).values()) == {"intact"}
    assert (report.exit_code, report.complete, report.structure) == (0, True, "whole")
    check_written(tmp_path / "out.fckpt", report, ORIGINAL)
    with fastckpt.open(tmp_path / "out.fckpt") as checkpoint:
        assert checkpoint.metadata["run"] == 3
        assert "fastckpt.salvage" in checkpoint.metadata


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "what",
    ["superblock", "manifest", "index", "copy", "footer", "first header", "all headers", "superblock manifest footer"],
)
def test_any_one_copy_is_enough(path: Path, tmp_path: Path, what: str) -> None:
    found, blocks = sections(path), headers(path)
    size = path.stat().st_size
    extents = {
        "superblock": [(0, 4096)],
        "manifest": [found[1]],
        "index": [found[2]],
        "copy": [found[3]],
        "footer": [(size - 4096, 4096)],
        "first header": [blocks[0]],
        "all headers": blocks,
        "superblock manifest footer": [(0, 4096), found[1], (size - 4096, 4096)],
    }[what]
    destroy(path, *extents)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert set(status(report).values()) == {"intact"}
    assert list(report.tensors) == list(ORIGINAL)
    assert (report.exit_code, report.structure, report.complete) == (1, "whole", True)
    assert report.findings
    assert check_written(tmp_path / "out.fckpt", report, ORIGINAL)["step"] == 7


def test_both_manifests_lost(path: Path, tmp_path: Path) -> None:
    found = sections(path)
    destroy(path, found[1], found[3])
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert report.structure == "from index/header"
    assert set(report.tensors) == set(ORIGINAL)
    assert set(status(report).values()) == {"intact"}
    assert not report.complete
    loaded = fastckpt.load(tmp_path / "out.fckpt")
    assert all(equal(loaded[name], ORIGINAL[name]) for name in ORIGINAL)


def test_header_and_its_mirror_lost(path: Path) -> None:
    found, blocks = sections(path), headers(path)
    destroy(path, found[2], blocks[0])
    report = fastckpt.salvage(path)
    assert 0 < report.counts["lost"] < len(ORIGINAL)
    assert report.counts["lost"] + report.counts["intact"] == len(ORIGINAL)
    assert report.exit_code == 3


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.95])
def test_cut(path: Path, tmp_path: Path, cut: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DamagedError):
        fastckpt.load(path)
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    assert report.structure == "whole"
    assert list(report.tensors) == list(ORIGINAL)
    assert set(status(report).values()) <= {"intact", "partial", "lost"}
    if report.written:
        check_written(tmp_path / "out.pt", report, ORIGINAL)


def test_rows_of_a_damaged_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.fckpt"
    tensor = torch.arange(1_000_000, dtype=torch.float32).reshape(1000, 1000)
    fastckpt.save({"w": tensor, "other": torch.ones(100_000)}, path)
    with CheckpointFile(path) as file:
        at = file.records[0].payload.offset
    overwrite(path, at + 5 * LEAF_SIZE + 7, b"\xff\xff\xff")
    report = fastckpt.salvage(path, tmp_path / "out.pt", include=["damaged"])
    fate = report.tensors["w"]
    assert fate.status.value == "damaged"
    assert (fate.leaves, fate.chunks) == ([5], [0])
    first, last = 5 * LEAF_SIZE // 4000, -(-6 * LEAF_SIZE // 4000)
    assert fate.rows_intact == [(0, first), (last, 1000)]
    assert status(report)["other"] == "intact"
    loaded = torch.load(tmp_path / "out.pt")["w"]
    assert equal(loaded[:first], tensor[:first])
    assert equal(loaded[last:], tensor[last:])
    assert int(loaded.isnan().sum()) == LEAF_SIZE // 4


def test_compressed_neighbours_are_independent(tmp_path: Path) -> None:
    path = tmp_path / "model.fckpt"
    tensor = torch.arange(2_000_000, dtype=torch.int32)
    fastckpt.save({"w": tensor}, path, codec="zstd")
    with CheckpointFile(path) as file:
        record = file.records[0]
        assert not record.is_raw
        extent = record.chunk_extent(3)
    overwrite(path, extent.offset + 10, b"\xff" * 5)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", include=["damaged"], fill="zeros")
    fate = report.tensors["w"]
    assert fate.chunks == [3]
    chunk = 2**20 // 4
    assert fate.rows_intact == [(0, 3 * chunk), (4 * chunk, 2_000_000)]
    expected = tensor.clone()
    expected[3 * chunk : 4 * chunk] = 0
    assert equal(fastckpt.load(tmp_path / "out.fckpt")["w"], expected)


def test_a_tensor_that_holds_a_checkpoint(tmp_path: Path) -> None:
    """A header inside a tensor's bytes is not taken for one of the file's own."""
    inner = tmp_path / "inner.fckpt"
    fastckpt.save({"stranger": torch.ones(100_000)}, inner)
    raw = torch.frombuffer(bytearray(inner.read_bytes()), dtype=torch.uint8)
    path = tmp_path / "model.fckpt"
    fastckpt.save({"a": torch.zeros(70_000), "file": raw, "b": torch.ones(70_000)}, path)
    found, blocks = sections(path), headers(path)
    destroy(path, (0, 4096), found[1], found[2], (path.stat().st_size - 4096, 4096), blocks[1])
    report = fastckpt.salvage(path)
    assert "stranger" not in report.tensors
    assert status(report) == {"a": "intact", "file": "lost", "b": "intact"}


def test_index_cut_by_the_end_of_the_file(tmp_path: Path) -> None:
    """The mirrors in what is there of it stand in for headers that are lost."""
    path = tmp_path / "model.fckpt"
    state = {f"t{number}": torch.arange(70_000) + number for number in range(30)}
    fastckpt.save(state, path)
    at, size = sections(path)[2]
    blocks = headers(path)
    assert size > 30_000
    path.write_bytes(path.read_bytes()[: at + size // 2])
    destroy(path, *blocks[:10])
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert set(status(report).values()) == {"intact"}
    check_written(tmp_path / "out.fckpt", report, state)


def test_header_of_an_older_save_and_a_bad_leaf(tmp_path: Path) -> None:
    """Each storage comes from the save of which more is left, when neither is whole."""
    path, older = tmp_path / "model.fckpt", tmp_path / "older.fckpt"
    state = {"a": torch.arange(3000), "b": torch.arange(9000), "c": torch.arange(3000)}
    fastckpt.save({name: tensor + 1 for name, tensor in state.items()}, older)
    fastckpt.save(state, path)
    ((at, size),) = headers(path)
    overwrite(path, at, older.read_bytes()[at : at + size])
    with CheckpointFile(older) as file:
        payload = file.records[0].payload.offset
    # Leaf 4 lies inside of b, and is now that of no save.
    overwrite(path, payload + 4 * LEAF_SIZE, b"\xaa" * LEAF_SIZE)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", include=["damaged"], fill="zeros")
    assert status(report) == {"a": "intact", "b": "damaged", "c": "intact"}
    assert report.tensors["b"].leaves == [4]
    loaded = fastckpt.load(tmp_path / "out.fckpt")
    kept = [row for first, end in report.tensors["b"].rows_intact for row in range(first, end)]
    assert torch.equal(loaded["b"][kept], state["b"][kept])
    assert len(kept) >= 9000 - 2 * LEAF_SIZE // 8


def test_garbage_appended_and_hole(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 12345)
    assert set(status(fastckpt.salvage(path)).values()) == {"intact"}


def test_source_is_never_written(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    path.chmod(0o400)
    destroy_copy = tmp_path / "out.safetensors"
    fastckpt.salvage(path, destroy_copy)
    assert path.read_bytes() == raw
