"""Conversions to a bucket: the bytes of a local one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from bucket import Bucket
from states import pattern

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError, DamagedError, UsageError
from fastckpt.io import upload


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .pt whose conversion has several parts."""
    monkeypatch.setattr(upload, "PART", 256 * 1024)
    torch.save({"w": pattern(700 * 1024, 1), "few": pattern(7, 2)}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_to_fckpt_and_back(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    """A .fckpt is sent while it is made; other formats are made first."""
    (done,) = fastckpt.convert(source, bucket.url("run/model.fckpt"))
    assert (done.destination, done.exact) == (bucket.url("run/model.fckpt"), True)
    fastckpt.convert(source, tmp_path / "local.fckpt")
    assert bucket.get("run/model.fckpt") == (tmp_path / "local.fckpt").read_bytes()
    fastckpt.convert(tmp_path / "local.fckpt", bucket.url("again.pt"))
    assert bucket.get("again.pt") == source.read_bytes()
    assert bucket.names() == ["again.pt", "run/model.fckpt"]


def test_the_command(bucket: Bucket, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), bucket.url("x.safetensors")]) == 0
    assert bucket.url("x.safetensors") in capsys.readouterr().out
    assert bucket.names() == ["x.safetensors"]


def test_sigterm_takes_back_what_was_sent(bucket: Bucket, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.proxy.fail("part", 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["convert", str(source), bucket.url("x.fckpt")]) == 143
    assert "terminated" in capsys.readouterr().err
    assert bucket.uploads_left() == bucket.names() == []


def test_nothing_of_a_damaged_source(bucket: Bucket, source: Path) -> None:
    """Its CRC is looked at before the object gets its place."""
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    with pytest.raises(DamagedError):
        fastckpt.convert(source, bucket.url("x.fckpt"))
    assert bucket.names() == []
    assert bucket.uploads() == []


def test_what_does_not_become_an_object(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    for options in ({"replace": True}, {"shard_size": "1MB"}):
        with pytest.raises(UsageError, match="one file becomes one remote object"):
            fastckpt.convert(source, bucket.url("x.fckpt"), **options)
    with pytest.raises(UsageError, match="does not tell the format"):
        fastckpt.convert(source, bucket.url("x"))
    with pytest.raises(CheckpointIOError, match="no such bucket"):
        fastckpt.convert(source, "s3://there-is-no-such-bucket/x.fckpt")
    assert source.exists()
