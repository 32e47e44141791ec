"""`verify`, `load`, `salvage` and all else of files with a seal beside them."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from big_endian import write_big
from describe import describe

import fastckpt
from fastckpt.cli.main import main
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError
from fastckpt.findings import Report
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import inspect_file
from fastckpt.stored.is_whole import is_whole

sys.path.append(str(Path(__file__).parents[1] / "sealing"))
from signatures import sign

NAMES = ["m.safetensors", "m.pt", "m.pth", "m.fckpt"]
FOREIGN = NAMES[:3]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    large = {f"w{i}": torch.randn(40_000 + i, generator=generator) for i in range(4)}
    return {**large, "small": torch.arange(50.0) + seed, "half": torch.randn(999, generator=generator).bfloat16()}


def write(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif path.suffix == ".fckpt":
        fastckpt.save(state, path, durable=False)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    return path


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = write(tmp_path / request.param, tensors())
    fastckpt.seal(path)
    return path


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = write(tmp_path / request.param, tensors())
    fastckpt.seal(path)
    return path


def flip_in(path: Path, name: str, at: int = 300) -> int:
    """Flip a bit of a tensor; where it is in the file."""
    raw = bytearray(path.read_bytes())
    place = raw.rindex(tensors()[name].view(torch.uint8).numpy().tobytes()) + at
    raw[place] ^= 4
    path.write_bytes(raw)
    return place


def said(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.kind.value, finding.tensors) for finding in report.findings]


def test_as_sealed_is_intact(path: Path) -> None:
    report = fastckpt.verify(path)
    assert (report.verdict, report.seal, report.exit_code, report.findings) == ("intact", "as sealed", 0, [])
    assert report.verified == report.size
    assert report.tensor_bytes is not None
    assert report.tensor_bytes.proven == sum(tensor.nbytes for tensor in tensors().values())
    assert report.as_dict()["verdict"] == "intact"


def test_damage_names_tensor_and_range(foreign: Path) -> None:
    place = flip_in(foreign, "w2", 100_000)
    report = fastckpt.verify(foreign)
    assert (report.verdict, report.seal, report.exit_code) == (None, "changed", 2)
    assert report.damaged_tensors == ["w2"]
    (finding,) = (finding for finding in report.findings if finding.kind.value == "changed")
    assert finding.offset == place // LEAF_SIZE * LEAF_SIZE
    assert finding.size == LEAF_SIZE
    assert finding.tensors == ("w2",)
    assert report.tensor_bytes is not None
    assert report.tensor_bytes.gone == LEAF_SIZE
    assert report.tensor_bytes.unproven == 0


def test_the_rest_is_salvaged(foreign: Path, tmp_path: Path) -> None:
    flip_in(foreign, "w2", 100_000)
    report = fastckpt.salvage(foreign, tmp_path / "out.fckpt")
    assert sorted(report.written) == ["half", "small", "w0", "w1", "w3"]
    assert {fate.status.value for name, fate in report.tensors.items() if name != "w2"} == {"intact"}
    fate = report.tensors["w2"]
    assert fate.status.value == "damaged"
    assert fate.rows_intact is not None
    assert sum(end - begin for begin, end in fate.rows_intact) in (40_002 - 4096, 40_002 - 4097)
    back = fastckpt.load(tmp_path / "out.fckpt")
    assert all(torch.equal(back[name], tensors()[name]) for name in report.written)


def ways(path: Path) -> dict[str, Callable[[], object]]:
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    return {
        "load": lambda: fastckpt.load(path),
        "load mapped": lambda: fastckpt.load(path, mmap=True),
        "load one": lambda: fastckpt.load(path, keys="w2"),
        "load_into": lambda: fastckpt.load_into(into, path),
        "stream": lambda: dict(fastckpt.stream(path)),
        "open": lambda: fastckpt.open(path)["w2"],
        "convert to fckpt": lambda: fastckpt.convert(path, path.parent / "out.fckpt", durable=False),
        "convert to fckpt, compressed": lambda: fastckpt.convert(path, path.parent / "out.fckpt", codec="zstd"),
        "convert to safetensors": lambda: fastckpt.convert(path, path.parent / "o.safetensors", keys="w2"),
    }


@pytest.mark.parametrize("way", ways(Path("x")))
def test_every_way_proves_what_it_reads(foreign: Path, way: str) -> None:
    whole = ways(foreign)[way]()
    if way == "load":
        assert describe({name: whole[name] for name in tensors()}) == describe(tensors())  # type: ignore[index]
    for made in foreign.parent.glob("o*"):
        made.unlink()
    flip_in(foreign, "w2")
    with pytest.raises(DamagedError, match="not what was sealed") as caught:
        ways(foreign)[way]()
    assert "w2" in str(caught.value)
    assert not list(foreign.parent.glob("o*"))


def test_what_is_not_read_is_not_asked_for(foreign: Path) -> None:
    flip_in(foreign, "w2", 80_000)
    assert torch.equal(fastckpt.load(foreign, keys="w0")["w0"], tensors()["w0"])
    with fastckpt.open(foreign) as opened:
        assert torch.equal(opened["w3"], tensors()["w3"])
        assert torch.equal(opened.rows("w2", 30_000, 30_010), tensors()["w2"][30_000:30_010])
        with pytest.raises(DamagedError):
            opened.rows("w2", 20_000, 20_001)


def test_without_verification_nothing_is_asked(foreign: Path) -> None:
    flip_in(foreign, "w2", 80_000)
    for options in ({}, {"mmap": True}):
        assert not torch.equal(fastckpt.load(foreign, verify=False, **options)["w2"], tensors()["w2"])
    assert dict(fastckpt.stream(foreign, verify=False)).keys() == tensors().keys()
    Path(f"{foreign}.fckpt-sums").write_bytes(b"nothing")
    fastckpt.load(foreign, verify=False)


def test_structure_is_proven_too(foreign: Path) -> None:
    raw = foreign.read_bytes()
    foreign.write_bytes(raw.replace(b"half", b"calf"))
    with pytest.raises(DamagedError):
        fastckpt.load(foreign, keys="w0")
    report = fastckpt.verify(foreign)
    assert report.verdict is None
    fates = fastckpt.salvage(foreign).tensors
    # The first tensor can share a leaf with the structure; which one that is, is chance in a legacy file.
    there = [name for name in ("w0", "w1", "w2", "w3") if fates[name].status.value in ("intact", "unverified")]
    assert len(there) >= 3


def test_written_anew_is_stale(path: Path) -> None:
    write(path, tensors(7))
    report = fastckpt.verify(path)
    assert (report.verdict, report.seal, report.exit_code) == (None, "stale", 1)
    assert report.as_dict()["verdict"] == "stale"
    assert not report.damaged_tensors
    assert {kind for kind, _ in said(report)} <= {"stale", "unproven"}
    assert str(report.next_step).startswith("fastckpt seal --update ")
    assert is_whole(str(path))
    if path.suffix != ".fckpt":
        with pytest.raises(DamagedError, match=r"not (the file that|what) was sealed"):
            fastckpt.load(path)
    fastckpt.load(path, verify=False)
    fastckpt.seal(path, update=True)
    assert fastckpt.verify(path).verdict == "intact"


def test_of_another_size_is_stale_on_every_way(foreign: Path) -> None:
    write(foreign, {**tensors(7), "more": torch.ones(3)})
    for way, go in ways(foreign).items():
        with pytest.raises(DamagedError, match="not the file that was sealed"):
            go()
        assert way
    assert inspect_file(str(foreign)).seal == "stale"


def test_renamed_is_stale(foreign: Path, tmp_path: Path) -> None:
    other = tmp_path / f"other{foreign.suffix}"
    os.rename(foreign, other)
    os.rename(f"{foreign}.fckpt-sums", f"{other}.fckpt-sums")
    assert fastckpt.verify(other).seal == "stale"
    with pytest.raises(DamagedError, match="called m"):
        fastckpt.load(other)


def test_cut_and_salvaged(foreign: Path) -> None:
    raw = foreign.read_bytes()
    foreign.write_bytes(raw[: len(raw) * 3 // 4])
    report = fastckpt.salvage(foreign)
    # The old format writes storages in any order: where the cut is beside the size of one, nothing says whose they are.
    good = ("intact",) if foreign.suffix != ".pth" else ("intact", "unverified")
    assert sum(fate.status.value in good for fate in report.tensors.values()) >= 2
    partial = [fate for fate in report.tensors.values() if fate.status.value == "partial"]
    assert any(fate.rows_intact for fate in partial) or foreign.suffix != ".safetensors"
    assert fastckpt.verify(foreign).seal == "changed"


def test_a_damaged_seal_is_not_used(foreign: Path) -> None:
    sums = Path(f"{foreign}.fckpt-sums")
    sums.write_bytes(sums.read_bytes()[:-100])
    report = fastckpt.verify(foreign)
    assert (report.seal, report.exit_code) == ("damaged", 1)
    assert "proves nothing" in report.findings[0].message
    assert inspect_file(str(foreign)).seal == "damaged"
    with pytest.raises(FastckptError) as caught:
        fastckpt.load(foreign)
    assert caught.value.path == str(sums)
    fates = fastckpt.salvage(foreign).tensors.values()
    assert {fate.status.value for fate in fates} == {"intact" if foreign.suffix == ".pt" else "unverified"}


def test_a_crc_that_matches_is_no_seal(tmp_path: Path) -> None:
    """A tensor of another save, with the CRC-32 that belongs to it, in a few leaves of many."""
    path = write(tmp_path / "m.pt", {**tensors(), "x": torch.zeros(9000)})
    fastckpt.seal(path)
    write(path, {**tensors(), "x": torch.ones(9000)})
    report = fastckpt.verify(path)
    assert (report.verdict, report.seal, report.exit_code) == (None, "stale", 1)
    assert {kind for kind, _ in said(report)} == {"stale"}
    with pytest.raises(DamagedError, match=r"not what was sealed.*\bx\b"):
        fastckpt.load(path)


def test_no_checkpoint_but_sealed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(list(range(40_000))))
    with pytest.raises(NotACheckpointError):
        fastckpt.verify(path)
    fastckpt.seal(path)
    assert (fastckpt.verify(path).verdict, fastckpt.verify(path).format) == ("intact", "unknown")
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(b"x")
    assert fastckpt.verify(path).exit_code == 2


def test_a_signature_beside(path: Path) -> None:
    sign(path.parent, path.name)
    assert fastckpt.verify(path).signed
    flip_in(path, "w1")
    report = fastckpt.verify(path)
    assert report.signed is False
    assert any("model.sig" in finding.message for finding in report.findings)
    (path.parent / "model.sig").write_text("{}")
    assert fastckpt.verify(path).signed is False


def test_a_packed_one_is_compared_as_a_whole(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "m.pt")
    path = tmp_path / "p.pt"
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    fastckpt.seal(path)
    assert fastckpt.verify(path).verdict == "intact"
    assert describe(fastckpt.load(path)) == describe(tensors())
    raw = bytearray(path.read_bytes())
    raw[11] ^= 1  # The time of a record, which no CRC-32 covers.
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="not what was sealed"):
        fastckpt.load(path)
    assert fastckpt.verify(path).seal == "changed"


def test_a_big_endian_one(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    write_big(tensors(), path)
    fastckpt.seal(path)
    for loaded in (fastckpt.load(path), fastckpt.load(path, mmap=True)):
        assert describe(loaded) == describe(tensors())
    streamed = dict(fastckpt.stream(path))
    assert describe({name: streamed[name] for name in tensors()}) == describe(tensors())
    assert torch.equal(fastckpt.open(path)["w1"], tensors()["w1"])
    fastckpt.convert(path, tmp_path / "m.fckpt")
    assert describe(fastckpt.load(tmp_path / "m.fckpt")) == describe(tensors())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    for go in (lambda: fastckpt.load(path), lambda: dict(fastckpt.stream(path))):
        with pytest.raises(DamagedError, match="not what was sealed"):
            go()


def test_converted_is_verified_by_the_seal(foreign: Path, tmp_path: Path) -> None:
    (result,) = fastckpt.convert(foreign, tmp_path / "out.fckpt")
    assert result.source_verified
    fastckpt.convert(tmp_path / "out.fckpt", tmp_path / f"back{foreign.suffix.replace('.pth', '.pt')}")
    (back,) = tmp_path.glob("back*")
    assert back.read_bytes() == foreign.read_bytes()


def test_diff_names_the_damage(foreign: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.fckpt", tensors())
    assert compare(foreign, other).same
    flip_in(foreign, "w2", 80_000)
    found = compare(foreign, other)
    assert found.tensors["w2"].status == "damaged"
    assert found.tensors["w0"].status == "identical"


def test_diff_of_two_sealed_ones_reads_what_differs(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0)):
        state = tensors(seed)
        state["w3"][77] += name == "b"
        fastckpt.seal(write(tmp_path / f"{name}.safetensors", state))
    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert {name for name, one in found.tensors.items() if one.status == "differs"} == {"w3"}


def test_what_inspect_and_commands_say(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_file(str(foreign)).seal == "there"
    assert main(["inspect", str(foreign)]) == 0
    assert "beside the file" in capsys.readouterr().out
    assert main(["verify", str(foreign)]) == 0
    assert "every byte is as it was sealed" in capsys.readouterr().out
    assert main(["verify", str(foreign.parent)]) == 0
    assert "1 file, " in capsys.readouterr().out, "sums files are no checkpoints of their own here"
    write(foreign, tensors(3))
    assert main(["verify", str(foreign)]) == 1
    text = capsys.readouterr().out
    assert "stale: " in text
    assert "damaged" not in text
    assert "rotted" not in text


def test_opened_as_it_is(foreign: Path) -> None:
    with fastckpt.open(foreign) as opened:
        assert set(opened) == set(tensors())
        assert opened.info("half").dtype == "bfloat16"
        assert describe({name: opened[name] for name in tensors()}) == describe(tensors())
        assert "tensors>" in repr(opened)
        assert set(opened.tree()) == set(tensors())
        assert opened.metadata == {}
    Path(f"{foreign}.fckpt-sums").unlink()
    with pytest.raises(NotACheckpointError, match="fastckpt seal"):
        fastckpt.open(foreign)


def test_views_and_nestings_of_a_sealed_pt(tmp_path: Path) -> None:
    base = torch.arange(90_000.0)
    state = {"model": {"a": base[5:], "b": base.view(300, 300).t()}, "step": 3}
    torch.save(state, tmp_path / "m.pt")
    fastckpt.seal(tmp_path / "m.pt")
    assert describe(fastckpt.load(tmp_path / "m.pt")) == describe(state)
    with fastckpt.open(tmp_path / "m.pt") as opened:
        assert torch.equal(opened["model"]["b"], state["model"]["b"])  # type: ignore[index]
        assert opened["step"] == 3
