"""`fastckpt.seal`: what the sums file says, when it refuses, and that the file stays as it is."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import xxhash

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import (
    CheckpointIOError,
    DamagedError,
    MismatchError,
    NotACheckpointError,
    OutOfSpaceError,
    UsageError,
)
from fastckpt.sealing import seal as sealing
from fastckpt.seals.names import sums_path
from fastckpt.seals.sums import read_sums

SIZES = [0, 1, LEAF_SIZE - 1, LEAF_SIZE, LEAF_SIZE + 1, 3 * LEAF_SIZE, 70 * LEAF_SIZE + 5]


def reference(raw: bytes) -> bytes:
    """The digests of all leaves, by another library."""
    leaves = [raw[at : at + LEAF_SIZE].ljust(LEAF_SIZE, b"\0") for at in range(0, len(raw), LEAF_SIZE)]
    return b"".join(xxhash.xxh3_64_intdigest(leaf).to_bytes(8, "little") for leaf in leaves)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sha256", [False, True])
def test_what_the_sums_file_says(tmp_path: Path, size: int, sha256: bool) -> None:
    path, raw = tmp_path / "any.gguf", os.urandom(size)
    path.write_bytes(raw)
    sealed = fastckpt.seal(path, sha256=sha256)
    assert path.read_bytes() == raw
    assert (sealed.size, sealed.tensors, sealed.is_new) == (size, 0, True)
    assert sealed.sums == f"{path}.fckpt-sums"
    assert sealed.sums_size == os.path.getsize(sealed.sums)
    with fastckpt.open(sealed.sums) as sums:
        assert bytes(sums["digests"].tolist()) == reference(raw)
        assert sums.metadata["seal"] == {
            "name": "any.gguf",
            "size": size,
            "leaf": LEAF_SIZE,
            "sha256": hashlib.sha256(raw).hexdigest() if sha256 else None,
            "tensors": None,
        }
    assert fastckpt.verify(sealed.sums).verdict == "intact"


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    elif path.suffix == ".fckpt":
        fastckpt.save(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=path.suffix != ".pth")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth", "m.fckpt"])
def test_the_table_of_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tensors = {"a": torch.randn(300), "b": torch.randn(5000), "empty": torch.empty(0)}
    write(path, tensors)
    assert fastckpt.seal(path).tensors == 2
    raw = path.read_bytes()
    for tensor, offset, size in read_sums(sums_path(path), threads=1).tensors:
        assert raw[offset : offset + size] == tensors[tensor].numpy().tobytes()


def test_a_compressed_one_is_named_by_its_record(tmp_path: Path) -> None:
    fastckpt.save({"w": torch.zeros(300_000)}, tmp_path / "z.fckpt", codec="zstd")
    fastckpt.seal(tmp_path / "z.fckpt")
    ((name, offset, size),) = read_sums(sums_path(tmp_path / "z.fckpt"), threads=1).tensors
    assert name == "w"
    assert b"\x28\xb5\x2f\xfd" in (tmp_path / "z.fckpt").read_bytes()[offset : offset + size]


@pytest.mark.parametrize("name", ["m.pt", "m.fckpt", "m.safetensors"])
def test_what_is_damaged_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, {"a": torch.randn(30_000)})
    raw = bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        path.write_bytes(raw[:-5])
    else:
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    with pytest.raises(DamagedError, match="damaged already"):
        fastckpt.seal(path)
    assert os.listdir(tmp_path) == [name]


def test_a_folder_of_zip_records_packed_again_is_sealed_as_it_is(tmp_path: Path) -> None:
    """Its tensors have no place in the file."""
    import zipfile

    torch.save({"a": torch.zeros(3000)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert fastckpt.seal(tmp_path / "p.pt").tensors == 0
    raw = (tmp_path / "p.pt").read_bytes()
    assert bytes(read_sums(sums_path(tmp_path / "p.pt"), threads=1).digests) == reference(raw)


def test_once_more_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    first = fastckpt.seal(path)
    before = os.stat(first.sums)
    assert not fastckpt.seal(path).is_new
    after = os.stat(first.sums)  # Its time of reading may be another one.
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert fastckpt.seal(path, sha256=True).is_new
    assert not fastckpt.seal(path).is_new
    assert fastckpt.seal(path).sha256 == hashlib.sha256(b"{}").hexdigest()


def test_a_seal_that_does_not_match_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    sums = Path(fastckpt.seal(path).sums)
    old = sums.read_bytes()
    path.write_text("[]")
    with pytest.raises(MismatchError, match="not what was sealed"):
        fastckpt.seal(path)
    assert sums.read_bytes() == old
    assert fastckpt.seal(path, update=True).is_new
    sums.write_bytes(old[:5000])
    with pytest.raises(MismatchError, match="cannot be used"):
        fastckpt.seal(path)
    assert sums.read_bytes() == old[:5000]
    assert fastckpt.seal(path, update=True).is_new


def test_what_cannot_be_sealed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    sums = fastckpt.seal(path).sums
    with pytest.raises(UsageError, match="sums file"):
        fastckpt.seal(sums)
    with pytest.raises(UsageError, match="directory"):
        fastckpt.seal(tmp_path)
    with pytest.raises(CheckpointIOError, match="not found"):
        fastckpt.seal(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotACheckpointError, match="regular file"):
        fastckpt.seal(tmp_path / "pipe")


@pytest.mark.parametrize("how", ["written to", "replaced", "cut", "removed"])
def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path, other = tmp_path / "data.bin", tmp_path / "other"
    path.write_bytes(os.urandom(5 * LEAF_SIZE))
    other.write_bytes(os.urandom(5 * LEAF_SIZE))
    digests_of = sealing.digests_of

    def meanwhile(*args: Any, **options: Any) -> Any:
        found = digests_of(*args, **options)
        if how == "written to":
            with open(path, "r+b") as file:
                file.write(b"x")
            os.utime(path, ns=(1, 1))
        elif how == "replaced":
            os.replace(other, path)
        elif how == "cut":
            os.truncate(path, 100)
        else:
            path.unlink()
        return found

    monkeypatch.setattr(sealing, "digests_of", meanwhile)
    with pytest.raises(CheckpointIOError if how == "removed" else DamagedError):
        fastckpt.seal(path)
    assert not [name for name in os.listdir(tmp_path) if "fckpt" in name]


def test_no_room_for_the_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    old = Path(fastckpt.seal(path).sums).read_bytes()
    path.write_text("{ }")
    monkeypatch.setattr("fastckpt.io.space.free_bytes", lambda fd: 10, raising=False)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutOfSpaceError):
        fastckpt.seal(path, update=True)
    monkeypatch.undo()
    assert Path(sums_path(path)).read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["config.json", "config.json.fckpt-sums"]


def test_a_file_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{}")
    (tmp_path / "d").chmod(0o500)
    with pytest.raises(CheckpointIOError):
        fastckpt.seal(tmp_path / "d" / "config.json")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"a\xff.bin")
    with open(path, "wb") as file:
        file.write(b"abc")
    sealed = fastckpt.seal(os.fsdecode(path))
    assert fastckpt.open(sealed.sums).metadata["seal"]["name"] == "a\\xff.bin"


def test_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch')")
    safetensors.torch.save_file({"w": torch.ones(5000)}, tmp_path / "m.safetensors")
    shutil.copyfile(tmp_path / "m.safetensors", tmp_path / "n.safetensors")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for words in (["seal"], ["seal", "--check"], ["verify"]):
        command = [sys.executable, "-m", "fastckpt", *words, "m.safetensors"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
