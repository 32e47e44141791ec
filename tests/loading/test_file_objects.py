"""Checkpoints in binary file objects: read from where they stand, written when they are whole."""

from __future__ import annotations

import io
import os
import tempfile

import pytest
import torch

import fastckpt
from fastckpt.errors import DamagedError, NotACheckpointError, OutOfSpaceError, UsageError, WrongTypeError
from fastckpt.stored.inspection import inspect_file

STATE = {"w": torch.arange(5000, dtype=torch.float32), "t": torch.ones(3, 4).t(), "step": 7}


class Store:
    """What the libraries of stores give: it can only be read on, and in pieces of its own choice."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def read(self, size: int) -> bytes:
        data, self.rest = self.rest[: min(size, 1000)], self.rest[min(size, 1000) :]
        return data


def same(found, state=STATE):
    assert list(found) == list(state)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value)
            assert found[name].stride() == value.stride()
        else:
            assert found[name] == value


@pytest.fixture(params=["fckpt", "pt"])
def data(request):
    file = io.BytesIO()
    fastckpt.save(STATE, file) if request.param == "fckpt" else torch.save(STATE, file)
    return file.getvalue()


@pytest.mark.parametrize("make", [io.BytesIO, Store])
def test_every_call_reads_one(make, data):
    same(fastckpt.load(make(data)))
    same(fastckpt.load(make(data), mmap=True))
    assert fastckpt.load(make(data), keys="w")["w"].equal(STATE["w"])
    assert dict(fastckpt.stream(make(data)))["w"].equal(STATE["w"])
    into = {"w": torch.zeros(5000), "t": torch.zeros(3, 4).t()}
    fastckpt.load_into(into, make(data))
    assert into["w"].equal(STATE["w"])
    report = fastckpt.verify(make(data))
    assert report.ok
    assert report.path == "<file object>"
    assert report.size == len(data)
    assert len(inspect_file(make(data)).entries) == 2


def test_saved_bytes_are_those_of_a_file(tmp_path):
    file = io.BytesIO()
    fastckpt.save(STATE, file, codec="zstd", metadata={"a": 1})
    fastckpt.save(STATE, tmp_path / "a.fckpt", codec="zstd", metadata={"a": 1})
    assert file.getvalue() == (tmp_path / "a.fckpt").read_bytes()
    file.seek(0)
    with fastckpt.open(file) as opened:
        assert opened["w"].equal(STATE["w"])
        assert opened.metadata == {"a": 1}


def test_read_from_where_it_stands_to_its_end(tmp_path, data):
    (tmp_path / "with_head").write_bytes(b"12345" + data)
    with open(tmp_path / "with_head", "rb") as file:
        assert file.read(5) == b"12345"
        same(fastckpt.load(file))
        assert file.read() == b""
        with pytest.raises(NotACheckpointError, match=r"seek\(0\)"):
            fastckpt.load(file)


def test_damage_is_named_and_no_command_names_the_object(data):
    at = data.find(STATE["w"][100:200].numpy().tobytes())
    for bad in (data[: len(data) // 2], data[:at] + b"\xff" + data[at + 1 :]):
        with pytest.raises(DamagedError, match=r"^<file object>.*write it to a file, then fastckpt \w+ FILE"):
            fastckpt.load(io.BytesIO(bad))
        report = fastckpt.verify(io.BytesIO(bad))
        assert report.exit_code == 2
        assert report.next_step == "write it to a file, then fastckpt salvage FILE"


def test_what_is_no_binary_file_object():
    with pytest.raises(UsageError, match="binary mode"):
        fastckpt.load(io.StringIO("text"))
    with pytest.raises(WrongTypeError, match="this is no path"):
        fastckpt.load(None)
    with pytest.raises(TypeError):  # Which it is, too.
        fastckpt.save({}, None)


def test_an_object_that_refuses_and_a_full_disk(monkeypatch, data):
    class Full:
        def write(self, data):
            raise OSError(28, os.strerror(28))

    with pytest.raises(OutOfSpaceError, match="write to the file object"):
        fastckpt.save(STATE, Full())
    with pytest.raises(fastckpt.errors.UnsupportedStateError):
        fastckpt.save({"f": print}, file := io.BytesIO())
    assert file.getvalue() == b""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OutOfSpaceError, match="temporary file"):
        fastckpt.load(io.BytesIO(data))


@pytest.mark.parametrize("make", [io.BytesIO, Store])
def test_convert_reads_and_writes_them(make, data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    own = data[:2] != b"PK"
    (from_path,) = fastckpt.convert(tmp_path / "a", tmp_path / "b", to="pt" if own else "fckpt")
    out = io.BytesIO()
    (done,) = fastckpt.convert(make(data), out)
    assert (done.source, done.destination, done.format) == ("<file object>", "<file object>", from_path.format)
    same(fastckpt.load(io.BytesIO(out.getvalue())))
    if not own:
        assert out.getvalue() == (tmp_path / "b").read_bytes()
        fastckpt.convert(io.BytesIO(out.getvalue()), back := io.BytesIO())
        assert back.getvalue() == data
    fastckpt.convert(make(data), tmp_path / "c.safetensors")
    fastckpt.convert(tmp_path / "a", tensors := io.BytesIO(), to="safetensors")
    assert tensors.getvalue() == (tmp_path / "c.safetensors").read_bytes()


def test_convert_says_what_it_cannot_do_with_one(data, tmp_path):
    with pytest.raises(UsageError, match="give a destination"):
        fastckpt.convert(io.BytesIO(data))
    (tmp_path / "a.pt").write_bytes(data)
    for source, destination in ((io.BytesIO(data), tmp_path / "b.fckpt"), (tmp_path / "a.pt", io.BytesIO())):
        with pytest.raises(UsageError, match="replace takes files"):
            fastckpt.convert(source, destination, to="fckpt", replace=True)
    with pytest.raises(UsageError, match=r"has to be a path.*write it to a file first"):
        fastckpt.convert(tmp_path, io.BytesIO())
    with pytest.raises(UsageError, match="unknown format"):
        fastckpt.convert(tmp_path / "a.pt", io.BytesIO(), to="onnx")


def test_salvage_reads_one(data, tmp_path):
    at = data.find(STATE["w"][100:200].numpy().tobytes())
    bad = data[:at] + b"\xff" + data[at + 1 :]
    report = fastckpt.salvage(io.BytesIO(bad))
    assert (report.path, report.tensors["w"].status.value) == ("<file object>", "damaged")
    assert report.next_step == "write it to a file, then fastckpt salvage FILE -o rescued.fckpt"
    for name in ("a.fckpt", "a.pt"):
        report = fastckpt.salvage(Store(bad), tmp_path / name, include=["damaged"], fill="zeros")
        assert report.exit_code == 3
        assert report.next_step == f"fastckpt verify {tmp_path / name}  # it is not complete"
        assert fastckpt.load(tmp_path / name)["t"].equal(STATE["t"])
    for options in ({"dst": io.BytesIO()}, {"like": io.BytesIO()}, {"backfill": io.BytesIO()}):
        with pytest.raises(UsageError, match=r"has to be a path.*write it to a file first"):
            fastckpt.salvage(io.BytesIO(bad), **options)


def test_save_async_writes_one():
    whole = io.BytesIO()
    fastckpt.save(STATE, whole)
    pending = fastckpt.save_async(STATE, file := io.BytesIO())
    pending.result()
    assert pending.path == "<file object>"
    assert file.getvalue() == whole.getvalue()
    with pytest.raises(TypeError):
        fastckpt.save_async(STATE, None)

    class Full:
        def write(self, data):
            raise OSError(28, os.strerror(28))

    with pytest.raises(OutOfSpaceError, match="write to the file object"):
        fastckpt.save_async(STATE, Full()).result()


def test_nothing_is_left(tmp_path, monkeypatch, data):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    fastckpt.load(io.BytesIO(data))
    fastckpt.save(STATE, io.BytesIO())
    fastckpt.save_async(STATE, io.BytesIO()).result()
    fastckpt.convert(io.BytesIO(data), io.BytesIO())
    fastckpt.salvage(io.BytesIO(data))
    with pytest.raises(NotACheckpointError):
        fastckpt.load(io.BytesIO(b"nothing of the kind"))
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
