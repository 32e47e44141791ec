"""Tar files of torch's first years: read as torch reads them, nothing unpacked, nothing imported; damage is named."""

from __future__ import annotations

import random
import struct
import tarfile
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from describe import describe
from torch_tar import save_tar

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, FastckptError

SHARED = torch.arange(24, dtype=torch.int64)
STATE = {
    "model": OrderedDict(w=torch.arange(5000.0).view(50, 100), b=torch.ones(3, dtype=torch.float16)),
    "views": [SHARED[4:10], SHARED.view(4, 6).t(), SHARED],
    "optimizer": {"state": {0: {"step": 7, "m": torch.zeros(2, 2, dtype=torch.float64)}}},
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "epoch": 3,
    "name": "resnet",
}
COMMANDS = ("verify", "inspect", "salvage")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "alexnet.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated.
        save_tar(STATE, path)
    return path


def of_torch(path: Path) -> Any:
    return torch.load(path, weights_only=False)


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("pax", [True, False])
def test_it_is_read_as_torch_reads_it(tmp_path: Path, pax: bool) -> None:
    path = tmp_path / "a.pth"
    save_tar(STATE, path, pax=pax)
    assert describe(fastckpt.load(path)) == describe(of_torch(path)) == describe(STATE)
    assert fastckpt.load(path, keys="model.w")["model.w"].equal(STATE["model"]["w"])


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_view_of_a_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_tar({"a": torch.arange(10.0)}, path)
    # The storage of the tensor is then a part of the one in the file.
    first = 10**9
    save_tar({"a": torch.arange(10.0)}, path, views=[(first + 7, first + 1, 4, 6)])
    raw = path.read_bytes().replace(
        b"J" + struct.pack("<i", first + 1) + b"ctorch\nFloatTensor",
        b"J" + struct.pack("<i", first + 7) + b"ctorch\nFloatTensor",
    )
    path.write_bytes(raw.replace(struct.pack("<qqqqq", 1, 10, 1, 0, 0)[:32], struct.pack("<qqqq", 1, 3, 1, 2)))
    assert of_torch(path)["a"].tolist() == fastckpt.load(path)["a"].tolist() == [6.0, 7.0, 8.0]


def test_it_converts_and_comes_back(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, back, anew = tmp_path / "a.fckpt", tmp_path / "b.pth", tmp_path / "c.pt"
    assert main(["convert", str(path), str(own)]) == 0
    assert main(["verify", str(own)]) == 0
    assert main(["diff", str(path), str(own)]) == 0
    assert main(["convert", str(own), str(back)]) == 0
    assert back.read_bytes() == path.read_bytes()
    fastckpt.convert(own, anew, exact=False)
    assert describe(torch.load(anew)) == describe(STATE)
    assert main(["convert", str(path), str(tmp_path / "m.safetensors"), "--keys", "model.*"]) == 0


def test_many_tensors(tmp_path: Path) -> None:
    """The pickle has few bytes for each of them: what they are stands beside it."""
    path = tmp_path / "a.pth"
    whole = torch.arange(3000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_tar([whole[n : n + 1] for n in range(3000)], path)
    assert [tensor.item() for tensor in fastckpt.load(path)] == whole.tolist()


def test_verify_says_that_it_has_no_checksums(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert "present" in said
    assert "no checksum" in said
    assert "intact" not in said
    assert main(["inspect", str(path)]) == 0
    assert "model.w" in capsys.readouterr().out
    report = fastckpt.salvage(path, include=["unverified"])
    assert (report.findings, report.complete, report.exit_code) == ([], True, 0)


def test_objects_are_carried(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_tar({"net": torch.nn.Linear(2, 3), "step": 4}, path)
    fastckpt.convert(path, tmp_path / "a.fckpt")
    kept = fastckpt.load(tmp_path / "a.fckpt", opaque="keep")
    assert kept["step"] == 4
    assert set(kept["net"].tensors) == {"weight", "bias"}
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pth")
    assert (tmp_path / "b.pth").read_bytes() == path.read_bytes()


def places(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive.getmembers()}


def test_a_cut_file_keeps_what_stands_before_the_cut(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    at = raw.index(STATE["model"]["w"].numpy().tobytes()) + 4000
    path.write_bytes(raw[:at])
    with pytest.raises(DamagedError, match="cut"):
        fastckpt.load(path)
    report = fastckpt.verify(path)
    assert not report.ok
    salvaged = fastckpt.salvage(path, tmp_path / "b.pt", include=["unverified", "partial"])
    assert salvaged.tensors["model.w"].rows_present == [(0, 10)]
    assert salvaged.exit_code == 3
    assert torch.load(tmp_path / "b.pt")["model"]["w"][:10].equal(STATE["model"]["w"][:10])
    assert {"views.0", "scalar"} <= {name for name, fate in salvaged.tensors.items() if fate.status.value == "lost"}


def test_every_cut_is_named(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    _, size = places(path)["storages"]
    end = places(path)["storages"][0] + size
    cut = tmp_path / "cut.pth"
    chance = random.Random(1)
    for length in sorted({*chance.sample(range(2048, end), 50), *range(end - 8, end)}):
        cut.write_bytes(raw[:length])
        with pytest.raises(FastckptError):
            fastckpt.load(cut)
        assert not fastckpt.verify(cut).ok
        fastckpt.salvage(cut)


def test_flipped_bits_end_in_a_state_or_a_typed_error(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    start, size = places(path)["storages"]
    chance = random.Random(2)
    spots = [*chance.sample(range(start), 150), *chance.sample(range(start, start + size), 30)]
    bad = tmp_path / "bad.pth"
    for spot in spots:
        changed = bytearray(raw)
        changed[spot] ^= 1 << chance.randrange(8)
        bad.write_bytes(changed)
        for call in (fastckpt.load, fastckpt.verify, fastckpt.salvage):
            try:
                call(bad)
            except FastckptError as error:
                str(error)


def tar_with(path: Path, **changed: bytes) -> Path:
    """The same files with other content."""
    import io

    with tarfile.open(path) as archive:
        parts = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}  # type: ignore[union-attr]
    other = path.with_name("other.pth")
    with tarfile.open(other, "w:") as archive:
        for name, content in (parts | changed).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return other


ONE = b"\x80\x02J\x01\x00\x00\x00J\x02\x00\x00\x00ctorch\nFloatTensor\n\x87."
HOSTILE: dict[str, dict[str, bytes]] = {
    "many tensors": {"tensors": b"\x80\x02\x8a\x08" + b"\xff" * 7 + b"\x7f."},
    "many storages": {"storages": b"\x80\x02J\xff\xff\xff\x7f."},
    "negative": {"tensors": b"\x80\x02J\xff\xff\xff\xff."},
    "many dimensions": {"tensors": b"\x80\x02K\x01." + ONE + struct.pack("<q", 2**30)},
    "huge": {"tensors": b"\x80\x02K\x01." + ONE + struct.pack("<6q", 2, 2**62, 2**62, 2**62, 1, 0), "storages": b""},
    "another program": {"pickle": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."},
    "a number that is not there": {"pickle": b"\x80\x02X\x02\x00\x00\x0077Q."},
    "a long number": {"pickle": b"\x80\x02X\x00\x20\x00\x00" + b"7" * 8192 + b"Q."},
    "more behind": {"pickle": b"\x80\x02N.N."},
    "a storage of another kind": {"storages": b"\x80\x02K\x01.\x80\x02(K\x01X\x01\x00\x00\x00acos\nsystem\nt."},
    "no list of views": {"storages": b"\x80\x02K\x00.\x80\x02N."},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(path: Path, kind: str) -> None:
    other = tar_with(path, **HOSTILE[kind])
    with pytest.raises(FastckptError) as caught:
        fastckpt.load(other)
    assert str(other) in str(caught.value)
    assert fastckpt.verify(other).ok is (kind == "another program")
    for command in COMMANDS:
        assert main([command, str(other)]) in (0, 1, 2, 3, 4)


def test_another_tar_is_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(__file__, "notes.txt")
    assert main(["inspect", str(tmp_path / "a.tar")]) == 4
