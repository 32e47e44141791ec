"""Archives with a program in them, of torch.jit and torch.export: their tensors are read, the program is carried."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError, UsageError
from fastckpt.foreign.inflate import inflated
from fastckpt.io.source import Source
from fastckpt.stored.inspection import inspect_file

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Linear(300, 2))
        self.register_buffer("count", torch.arange(5))
        self.halves = torch.nn.Parameter(torch.ones(3, 2).half().t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.count[1]


def script(path: Path) -> None:
    torch.jit.script(NET).save(str(path))


def trace(path: Path) -> None:
    torch.jit.trace(NET, torch.ones(1, 4)).save(str(path))


def export(path: Path) -> None:
    torch.export.save(torch.export.export(NET, (torch.ones(1, 4),)), path)


def export_before_2_8(path: Path) -> None:
    """As torch.export.save did: whole files of torch.save are records of another archive."""
    from torch._export.serde.serialize import serialize

    made = serialize(torch.export.export(NET, (torch.ones(1, 4),)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", made.exported_program)
        archive.writestr("serialized_state_dict.pt", made.state_dict)
        archive.writestr("serialized_constants.pt", made.constants)
        archive.writestr("serialized_example_inputs.pt", made.example_inputs)
        archive.writestr("version", "8.2")
        archive.writestr("extra_files/notes", "of mine")


torch.manual_seed(5)
NET = Net()
MAKERS = {"script": script, "trace": trace, "export": export, "export before 2.8": export_before_2_8}


@pytest.fixture(scope="module", params=MAKERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / f"{request.param}.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MAKERS[request.param](path)
    return path


def test_tensors_have_their_names_and_bytes(path: Path) -> None:
    expected = NET.state_dict()
    found = fastckpt.load(path, keys="*")
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in expected.items()}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()
    assert dict(fastckpt.stream(path)).keys() == expected.keys()
    assert inspect_file(path).program == ("torch.export" if path.stem.startswith("export") else "TorchScript")


def test_intact_and_back_byte_for_byte(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = fastckpt.verify(path)
    assert report.findings == []
    assert report.as_dict()["verdict"] == "intact"
    assert main(["convert", str(path), str(tmp_path / "a.fckpt")]) == 0
    assert "its program is carried" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"Next: add --to pt$"):
        fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "back.pt2")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "back.pt2", to="pt")
    assert (tmp_path / "back.pt2").read_bytes() == path.read_bytes()
    with pytest.raises(UnsupportedStateError, match="program would be lost"):
        fastckpt.convert(path, tmp_path / "b.fckpt", exact=False)
    assert main(["inspect", str(path)]) == 0
    assert "a program, which was not run" in capsys.readouterr().out


def test_load_gives_what_is_plain(path: Path) -> None:
    if path.stem.startswith("export"):
        assert sorted(fastckpt.load(path)) == sorted(NET.state_dict())
    else:
        with pytest.raises(UnsupportedStateError, match="__torch__"):
            fastckpt.load(path)
        assert len(fastckpt.load(path, opaque="keep").tensors) == 6


def said_of_the_writer(raw: bytes) -> set[int]:
    """Where the directory says which program wrote a record, and its attributes: of another program's anything may."""
    rows = [row.start() for row in re.finditer(rb"PK\x01\x02", raw)]
    return {row + at for row in rows for at in (4, 5, *range(36, 42))}


@pytest.mark.sampled(4)
def test_no_changed_byte_is_intact(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    draw = random.Random(3)
    bad = tmp_path / "bad.pt2"
    # Before 2.8 it was Python's zipfile that wrote these.
    free = said_of_the_writer(raw) if path.stem == "export before 2.8" else set()
    for at in draw.sample([at for at in range(len(raw)) if at not in free], 120):
        changed = bytearray(raw)
        changed[at] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        with contextlib.suppress(FastckptError):  # Refused, which is no claim.
            assert not fastckpt.verify(bad).ok, at
    for size in draw.sample(range(1, len(raw)), 10):
        bad.write_bytes(raw[:size])
        with contextlib.suppress(FastckptError):
            assert not fastckpt.verify(bad).ok, size


def test_salvage(path: Path, tmp_path: Path) -> None:
    raw = bytearray(path.read_bytes())
    whole = NET.state_dict()["inner.0.weight"].numpy().tobytes()
    raw[raw.index(whole) + 100] ^= 4
    bad, out = tmp_path / "bad.pt", tmp_path / "out.fckpt"
    bad.write_bytes(raw)
    assert fastckpt.verify(bad).damaged_tensors == ["inner.0.weight"]
    if path.stem.startswith("export"):
        with pytest.raises(UnsupportedStateError, match="not salvaged"):
            fastckpt.salvage(bad, out)
        return
    report = fastckpt.salvage(bad, out)
    assert not report.complete
    assert any("the program does not" in note for note in report.notes)
    found = fastckpt.load(out, keys="*")
    assert set(found) >= set(NET.state_dict()) - {"inner.0.weight"}
    for name in set(NET.state_dict()) - {"inner.0.weight"}:
        assert torch.equal(found[name], NET.state_dict()[name])
    assert not fastckpt.salvage(path, tmp_path / "whole.pt").complete


def rewritten(path: Path, changes: dict[str, bytes], target: Path) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            name = info.filename.partition("/")[2]
            new.writestr(info.filename, changes.get(name, old.read(info)), info.compress_type)
    return target


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[" * 100_000,
        b'{"config": []}',
        b'{"config": {"w": 5}}',
        b'{"config": {"w": {"path_name": "weight_0", "tensor_meta": {"layout": 7}}}}',
        b'{"config": {"w": {"path_name": "no_such", "tensor_meta": META}}}',
        b'{"config": {"w": {"path_name": "weight_4", "tensor_meta": META}}}',
        b'{"config": {"w": {"path_name": "weight_0", "tensor_meta": HUGE}}}',
    ],
)
def test_hostile_descriptions_are_damage(text: bytes, tmp_path: Path) -> None:
    export(tmp_path / "a.pt2")
    meta = {"dtype": 8, "sizes": [{"as_int": 900}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}}
    meta |= {"layout": 7, "requires_grad": False}
    huge = meta | {"sizes": [{"as_int": 2**62}, {"as_int": 2**62}], "strides": [{"as_int": 0}, {"as_int": 0}]}
    text = text.replace(b"META", json.dumps(meta).encode()).replace(b"HUGE", json.dumps(huge).encode())
    bad = rewritten(tmp_path / "a.pt2", {"data/weights/model_weights_config.json": text}, tmp_path / "b.pt2")
    with pytest.raises(DamagedError):
        fastckpt.load(bad)


@pytest.mark.parametrize("name", ["serialized_state_dict.pt", "serialized_constants.pt"])
@pytest.mark.parametrize("content", [b"x", b"PK\x03\x04", b"state twice", b"a list"])
def test_old_descriptions_are_damage(name: str, content: bytes, tmp_path: Path) -> None:
    export_before_2_8(tmp_path / "a.pt2")
    if content in (b"state twice", b"a list"):
        file = io.BytesIO()
        torch.save(NET.state_dict() if content == b"state twice" else [1], file)
        content = file.getvalue() * 2
    with zipfile.ZipFile(tmp_path / "a.pt2") as old, zipfile.ZipFile(tmp_path / "b.pt2", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename == name else old.read(info))
    with pytest.raises((DamagedError, UnsupportedStateError)):
        fastckpt.load(tmp_path / "b.pt2")
    assert not fastckpt.verify(tmp_path / "b.pt2").ok


def test_what_only_the_program_needs_is_proven_too(tmp_path: Path) -> None:
    export_before_2_8(tmp_path / "a.pt2")
    raw = bytearray((tmp_path / "a.pt2").read_bytes())
    raw[raw.index(b"FB") + 10] ^= 1  # Padding inside of a record: no CRC-32 of a tensor has it.
    (tmp_path / "a.pt2").write_bytes(raw)
    (finding,) = fastckpt.verify(tmp_path / "a.pt2").findings
    assert "serialized_" in finding.message


def test_old_ones_that_were_packed_with_compression(tmp_path: Path) -> None:
    export_before_2_8(tmp_path / "a.pt2")
    with (
        zipfile.ZipFile(tmp_path / "a.pt2") as old,
        zipfile.ZipFile(tmp_path / "b.pt2", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(UnsupportedStateError, match="compression"):
        fastckpt.load(tmp_path / "b.pt2")


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("raw", "full", "words"),
    [
        (deflate(bytes(50_000_000)), 100, "more than 100 bytes"),
        (deflate(b"abc"), 4, "too early"),
        (deflate(b"abc")[:-1], 3, "too early"),
        (deflate(b"abc") + b"x", 3, "follow the end"),
        (deflate(b"abc") + bytes(3 * 2**20), 3, "follow the end"),
        (deflate(b"abc")[:-1] + bytes([deflate(b"abc")[-1] | 0x80]), 3, "bits follow the end"),
        (b"\xff" * 20, 3, "cannot be inflated"),
    ],
)
def test_deflated_bytes_that_are_not_as_they_should_be(raw: bytes, full: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12" + raw)
    with Source(tmp_path / "x") as source, pytest.raises(DamagedError, match=words):
        assert sum(map(len, inflated(source, 2, len(raw), full, name="x"))) <= 2**20
    data = random.Random(1).randbytes(3 * 2**20)
    (tmp_path / "y").write_bytes(deflate(data))
    with Source(tmp_path / "y") as source:
        assert b"".join(inflated(source, 0, source.size, len(data), name="y")) == data
