"""Files with planes that the native core writes and reads: as the general path does, one chunk after the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from states import everything

import fastckpt
from fastckpt import _core
from fastckpt.codec.planes import PlanesCodec
from fastckpt.constants import CHUNK_SIZE, CODEC_PLANES, LEAVES_PER_CHUNK
from fastckpt.errors import CheckpointIOError, DamagedError, OutOfSpaceError
from fastckpt.fckpt import payload, writer
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.findings import Kind
from fastckpt.io.memory import allocate
from fastckpt.layout.encode_tree import encode_tree

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def state() -> dict[str, Any]:
    """Chunks of every kind: encoded, stored as they are, of zeros; packs; records without a byte, also the last one."""
    generator = torch.Generator().manual_seed(0)
    return {
        "nothing": torch.zeros(0),
        "bf16": torch.randn(1500, 1024, generator=generator).bfloat16(),
        "all": everything(),
        "noise": torch.randint(0, 256, (5 * CHUNK_SIZE // 2,), dtype=torch.uint8, generator=generator),
        "partly noise": torch.cat(
            [torch.zeros(CHUNK_SIZE, dtype=torch.uint8), torch.randint(0, 256, (CHUNK_SIZE,), dtype=torch.uint8)]
        ),
        "zeros": torch.zeros(300_001),
        "many": [torch.randn(n, 333, generator=generator) for n in range(0, 900, 100)],
    }


def in_general(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the native core writes and reads no file with planes."""
    general = writer._Writer.write_encoded
    monkeypatch.setattr(
        writer._Writer, "write_planes", lambda self, sink: general(self, sink, CODEC_PLANES, PlanesCodec())
    )
    monkeypatch.setattr(payload, "_is_for_the_core", lambda piece, reading: False)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("threads", [1, 5])
def test_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, durable: bool) -> None:
    monkeypatch.setattr(writer, "BATCH", 3 * CHUNK_SIZE)  # So that headers are written on the way.
    wanted = state()
    fastckpt.save(wanted, tmp_path / "native", codec="planes", threads=threads, durable=durable)
    in_general(monkeypatch)
    fastckpt.save(wanted, tmp_path / "general", codec="planes", durable=False)
    assert (tmp_path / "native").read_bytes() == (tmp_path / "general").read_bytes()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_same_file_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    """A conversion, which also wants the CRC-32 of every storage."""
    kept = state()
    del kept["all"]  # Storages with two dtypes, which torch refuses.
    torch.save(kept, tmp_path / "s.pt", _use_new_zipfile_serialization=not legacy)
    fastckpt.convert(tmp_path / "s.pt", tmp_path / "native.fckpt", codec="planes")
    in_general(monkeypatch)
    fastckpt.convert(tmp_path / "s.pt", tmp_path / "general.fckpt", codec="planes", durable=False)
    assert (tmp_path / "native.fckpt").read_bytes() == (tmp_path / "general.fckpt").read_bytes()


def test_progress_ascends_to_the_end(tmp_path: Path) -> None:
    done: list[int] = []
    fastckpt.save(state(), tmp_path / "s", codec="planes", progress=done.append)
    assert done == sorted(done)
    read: list[int] = []
    fastckpt.load(tmp_path / "s", progress=read.append)
    assert read == sorted(read)
    assert done[-1] == read[-1] > 10 * CHUNK_SIZE


def test_progress_of_what_is_bad(tmp_path: Path) -> None:
    """What the native core could not bring is read again, and counts once."""
    kept = state()
    fastckpt.save({"w": kept["bf16"]}, tmp_path / "s", codec="planes")
    with CheckpointFile(tmp_path / "s") as file:
        extent = file.records[0].chunk_extent(1)
    with (tmp_path / "s").open("r+b") as changed:
        changed.seek(extent.offset)
        changed.write(b"\xa5")
    done: list[int] = []
    assert not fastckpt.verify(tmp_path / "s", progress=done.append).ok
    assert done == sorted(done)
    assert done[-1] == kept["bf16"].nbytes


def test_more_than_there_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "s").open("wb") as sink:
        writing = _core.PlanesWriter(sink.fileno(), -1, offset=0, threads=1, crcs=False)
        with pytest.raises(ValueError, match="not written"):
            writing.take(2**60)
        writing.close()


def content_of(path: Path, size: int) -> Content:
    source = os.open(path, os.O_RDONLY)
    return Content(encode_tree({}), encode_tree({}), (), [size], [0], source=source)


def test_a_source_that_ends_too_early(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(CHUNK_SIZE + 5))
    content = content_of(tmp_path / "short", 3 * CHUNK_SIZE)
    with pytest.raises(CheckpointIOError, match="the file ends there") as caught:
        writer.write_checkpoint(content, tmp_path / "s", codec="planes", durable=True, threads=3)
    assert caught.value.offset == CHUNK_SIZE + 5
    assert os.listdir(tmp_path) == ["short"]
    os.close(content.source)


def test_no_room(tmp_path: Path) -> None:
    """The old file stays, no thread and no temporary file is left; what could not be reserved is written if it fits."""
    import resource

    kept = state()
    fastckpt.save({"old": 1}, tmp_path / "s")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * CHUNK_SIZE, before[1]))
    try:
        with pytest.raises(OutOfSpaceError):
            fastckpt.save(kept, tmp_path / "s", codec="planes")
        assert fastckpt.load(tmp_path / "s") == {"old": 1}
        fastckpt.save({"w": torch.zeros(6 * CHUNK_SIZE)}, tmp_path / "s", codec="planes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(fastckpt.load(tmp_path / "s")["w"], torch.zeros(6 * CHUNK_SIZE))
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("what", ["a byte", "zeros"])
@pytest.mark.parametrize("to_memory", [False, True])
def test_the_same_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, to_memory: bool) -> None:
    path = tmp_path / "s"
    fastckpt.save({"w": state()["bf16"], "v": torch.ones(9 * CHUNK_SIZE // 8)}, path, codec="planes")
    with CheckpointFile(path) as file:
        records = file.records
        memory = [allocate(record.raw_size) for record in records]
        places = [_core.address(room) if to_memory else None for room in memory]
        targets = [Target(r, 0, r.raw_size, place) for r, place in zip(records, places, strict=True)]
        assert read_targets(file.source, targets, Reading(3)) == []
        extents = [record.chunk_extent(chunk) for record in records for chunk in range(len(record.chunks))]
        with path.open("r+b") as changed:
            for extent in extents[1::3]:
                changed.seek(extent.offset)
                changed.write(bytes(extent.size) if what == "zeros" else b"\xa5")
        found = read_targets(file.source, targets, Reading(3))
        kinds = {(bad.record.number, bad.leaf // LEAVES_PER_CHUNK): bad.kind for bad in found}
        in_general(monkeypatch)
        assert found == read_targets(file.source, targets, Reading(3))
    assert len(kinds) == len(extents[1::3])
    assert set(kinds.values()) == {Kind.TORN if what == "zeros" else Kind.ROTTED}


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({"w": state()["bf16"]}, path, codec="planes")
    with CheckpointFile(path) as file:
        (record,) = file.records
        os.truncate(path, record.chunk_extent(1).offset + 9)
        with pytest.raises(DamagedError, match="became shorter"):
            read_targets(file.source, [Target(record, 0, record.raw_size, None)], Reading(3))
