"""``fastckpt convert``: there and back, what it says, and what it leaves when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

import fastckpt

FILE_KEYS = {
    "source",
    "destination",
    "format",
    "nbytes",
    "tensors",
    "source_verified",
    "exact",
    "source_removed",
    "notes",
    "left_out",
}


def test_there_and_back(here, samples, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(samples.pt, path)
    ended = here("convert", path)
    assert ended.code == 0
    assert ended.out.startswith("model.pt -> model.fckpt  ")
    assert "9 tensors  source verified, exact way back kept" in ended.out
    path.unlink()
    document = here("convert", tmp_path / "model.fckpt", "--json").json
    assert set(document) == {"files", "nbytes", "seconds", "bytes_per_second"}
    (file,) = document["files"]
    assert set(file) == FILE_KEYS
    assert (file["format"], file["exact"], file["destination"]) == ("torch-zip", True, str(path))
    assert path.read_bytes() == samples.pt.read_bytes()


def test_what_has_no_checksum_is_called_unverified(here, samples, tmp_path):
    for source in (samples.legacy, samples.safetensors):
        ended = here("convert", source, tmp_path / "out.fckpt")
        assert ended.code == 0
        assert "source unverified" in ended.out


def test_options_reach_the_library(here, samples, tmp_path):
    target = tmp_path / "out.fckpt"
    arguments = ["--codec", "zstd:5", "--no-exact", "--no-durable", "--threads", "1"]
    ended = here("convert", samples.pt, target, *arguments)
    assert "no exact way back" in ended.out
    facts = here("inspect", target, "--json").json
    assert "zstd" in facts["codecs"]
    assert facts["original"] is None
    target = tmp_path / "model.safetensors"
    # It has nested values, which would be gone.
    assert here("convert", tmp_path / "out.fckpt", "--to", "safetensors", target, "--replace").code == 2


def test_replace_removes_the_source(here, samples, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(samples.pt, path)
    assert "source removed" in here("convert", path, "--replace").out
    assert os.listdir(tmp_path) == ["model.fckpt"]
    assert fastckpt.verify(tmp_path / "model.fckpt").ok


def test_a_directory(here, real, tmp_path):
    ended = here("convert", real / "base_checkpoints/d4_w4", tmp_path / "out")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[-1].startswith("6 files, ")
    assert any("meta_000004.json" in line and line.endswith("copied") for line in lines)
    document = here("convert", tmp_path / "out", tmp_path / "back", "--to", "pt", "--step", "4", "--json").json
    assert len(document["files"]) == 6
    for path in (real / "base_checkpoints/d4_w4").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert here("convert", tmp_path / "out", "--step", "9").code == 64


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 256 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_5_and_leaves_the_old_file(here, samples, small_disk):
    target = small_disk / "model.fckpt"
    target.write_bytes(b"the old one")
    ended = here("convert", samples.pt, target, "--json")
    assert ended.code == 5
    assert ended.json["error"]["type"] == "OutOfSpaceError"
    assert target.read_bytes() == b"the old one"
    assert os.listdir(small_disk) == ["model.fckpt"]
