"""A file that is no checkpoint is named for what it is, with what to do."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from at_path import open_foreign
from safetensors.torch import save

from fastckpt.constants import MAGIC_SUPERBLOCK
from fastckpt.errors import CheckpointIOError, NotACheckpointError
from fastckpt.foreign.sniff import ZIP_LOCAL_MAGIC, kind_of, sniff
from fastckpt.io.source import Source


def torch_bytes(**options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


def tar_bytes(member: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"text")
    return buffer.getvalue()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, a=numpy.zeros(3))
    return buffer.getvalue()


def test_kinds() -> None:
    assert sniff(torch_bytes()[:4096]) == "torch-zip"
    assert sniff(save({"a": torch.ones(2)})[:4096]) == "safetensors"
    assert sniff(MAGIC_SUPERBLOCK + bytes(100)) == "fckpt"
    assert sniff(tar_bytes("storages")) == "torch-tar"
    assert sniff(tar_bytes("notes.txt")) == "tar"
    for protocol in (0, 1, 2, 3, 4, 5):
        assert sniff(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=protocol)) == "torch-legacy"
    for protocol in (2, 4, 5):
        raw = torch_bytes(_use_new_zipfile_serialization=False, pickle_protocol=protocol)
        assert sniff(raw[:4096]) == "torch-legacy"


@pytest.mark.parametrize("size", range(0, 400, 7))
def test_any_beginning_is_safe(size: int) -> None:
    for raw in (torch_bytes(), npz_bytes(), tar_bytes("a"), save({})):
        sniff(raw[:size])


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
OTHERS = {
    "lfs": (LFS, "git-lfs pointer.*12,345 bytes are missing.*git lfs pull.*hf download"),
    "lfs cut": (LFS[:60], "git-lfs pointer.*was not downloaded.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page.*found <!DOCTYPE html> <html><body>404<"),
    "long html": (b"<html>" + b"<p>not found</p>\n" * 1000, "HTML page.*found <html><p>not found</p>"),
    "s3 error": (
        b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>",
        "XML text, often the error.*found <.xml version='1.0'.> <Error><Code>AccessDenied</Code>",
    ),
    "bare s3 error": (b"<Error><Code>NoSuchKey</Code></Error>", "XML text.*NoSuchKey"),
    "json error": (b'{"error": "Repository not found"}', 'JSON text.*server\'s error.*found {"error": "Repository not'),
    "text with a mark": (b"\xef\xbb\xbfmoved to another bucket\r\n", "text file.*found moved to another bucket"),
    "long line": (b"no " * 1000, f"found {'no ' * 26}no\\.\\.\\."),
    "not utf-8": (b"caf\xe9 is closed", "it has 14 bytes, too few.*63 61 66 e9"),
    "control": (b"\x1b[2Jhello" * 9, "neither a .pt"),
    "empty": (b"", "the file is empty"),
    "zeros": (bytes(10_000), "first 4096 bytes are zero"),
    "gzip": (gzip.compress(b"abc"), "gzip file.*gunzip"),
    "npz": (npz_bytes(), r"numpy archive \(.npz\).*numpy.load"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(100), r"numpy array"),
    "zip": (zip_bytes("document.xml", "other"), "zip archive, but torch did not write it"),
    "cut zip": (zip_bytes("document.xml", "other")[:-30], "zip archive, but torch did not write it"),
    "empty zip": (zip_bytes(), "zip archive, but torch did not write it"),
    "tar": (tar_bytes("model.pt"), "tar archive"),
    "pickle": (pickle.dumps({"a": 1}), "plain pickle"),
    "json": (b'{\n  "step": 4\n}', "JSON text"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "gguf": (b"GGUF\x03\x00", "GGUF"),
    "fckpt": (MAGIC_SUPERBLOCK + bytes(5000), "fastckpt file"),
    "text": (b"hello world", "this is a text file.*found hello world"),
    "one byte": (b"\xfe", "it has 1 byte, too few to tell"),
    "one letter": (b"P", "it has 1 byte, too few to tell"),
    "the beginning of a zip": (ZIP_LOCAL_MAGIC + bytes(10), "it has 14 bytes, too few to tell"),
    "the beginning of a pickle": (pickle.dumps({"a": 1})[:9], "it has 9 bytes, too few to tell"),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_users_have_instead(tmp_path: Path, name: str) -> None:
    raw, message = OTHERS[name]
    path = tmp_path / "model.pt"
    path.write_bytes(raw)
    with pytest.raises(NotACheckpointError, match=message) as caught:
        open_foreign(path)
    assert caught.value.path == str(path)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="this is a directory"):
        open_foreign(tmp_path)


def test_named_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotACheckpointError, match="not a regular file"):
        open_foreign(tmp_path / "pipe")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointIOError, match="not found") as caught:
        open_foreign(tmp_path / "none.pt")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == str(tmp_path / "none.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.pt"
    path.write_bytes(torch_bytes())
    path.chmod(0)
    with pytest.raises(CheckpointIOError) as caught:
        open_foreign(path)
    assert caught.value.errno == errno.EACCES


def test_descriptors_are_closed(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    good.write_bytes(torch_bytes())
    bad.write_bytes(torch_bytes()[:-5])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        open_foreign(good)
        with pytest.raises(Exception, match="cut"):
            open_foreign(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_an_open_file_is_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_bytes())
    with Source(path) as source:
        assert kind_of(source) == "torch-zip"
        path.write_bytes(save({"a": torch.ones(2)}))
        assert kind_of(source) == "torch-zip"
    with Source(path) as source:
        assert kind_of(source) == "safetensors"
