"""Several archives in one file: each comes back as far as it stands, and what is missing is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from salvage.support import REAL, equal, flat

import fastckpt

CASES = REAL.parent / "cases" / "dcp"


def state(save: int, count: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(save)
    return {f"h.{n}.w": torch.randn(64, 32, generator=generator) for n in range(count)} | {"step": save}


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def inside() -> torch.Tensor:
    """A tensor that holds two archives, one behind the other."""
    return torch.frombuffer(bytearray(saved(state(8)) + saved(state(9))), dtype=torch.uint8)


ROWS: dict[str, list[Any]] = {
    "two": [state(1), state(2)],
    "tensors": [torch.arange(1000.0), torch.arange(7), torch.ones(3, 3)],
    "archives inside": [{"a": inside(), "b": torch.arange(50)}, state(3)],
}


def check(path: Path, row: list[Any], tmp_path: Path, *, lost: set[str], complete: bool) -> fastckpt.SalvageReport:
    """All tensors but the lost ones are intact and come back under the names that `load` gives a whole file."""
    original = flat(row)
    out = tmp_path / "out.fckpt"
    report = fastckpt.salvage(path, out)
    assert {name for name, fate in report.tensors.items() if fate.status.value == "intact"} == set(original) - lost
    assert report.complete == complete
    back = flat(fastckpt.load(out))
    assert back.keys() == set(report.written) == set(original) - lost
    assert all(equal(tensor, original[name]) for name, tensor in back.items())
    for name, fate in report.tensors.items():
        if name not in lost and fate.offset is not None:
            tensor = original[name]
            there = path.read_bytes()[fate.offset :][: fate.nbytes]
            assert there == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    verified = fastckpt.verify(path)
    assert lost <= {name for finding in verified.findings for name in finding.tensors}
    return report


@pytest.mark.parametrize("name", ROWS)
def test_whole(name: str, tmp_path: Path) -> None:
    path, row = tmp_path / "a.pt", ROWS[name]
    path.write_bytes(b"".join(map(saved, row)))
    report = check(path, row, tmp_path, lost=set(), complete=True)
    assert (report.exit_code, report.findings, report.structure) == (0, [], "whole")
    assert fastckpt.verify(path).ok
    tensors, loaded = flat(row), flat(fastckpt.load(path))
    assert list(report.tensors) == list(loaded)
    assert all(equal(loaded[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("number", [0, 1])
def test_a_byte_of_one_tensor(number: int, tmp_path: Path) -> None:
    path, row = tmp_path / "a.pt", ROWS["two"]
    raw = bytearray(b"".join(map(saved, row)))
    at = raw.index(row[number]["h.2.w"].numpy().tobytes())
    raw[at + 99] ^= 4
    path.write_bytes(raw)
    report = check(path, row, tmp_path, lost={f"{number}.h.2.w"}, complete=False)
    assert fastckpt.verify(path).damaged_tensors == [f"{number}.h.2.w"]
    assert report.exit_code == 3


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("what", ["end of the first", "beginning of the second", "both"])
def test_the_border_is_lost(name: str, what: str, tmp_path: Path) -> None:
    """Where one archive ends and the next begins is found by either of the two, or by what data.pkl says."""
    path, row = tmp_path / "a.pt", ROWS[name]
    parts = [bytearray(saved(value)) for value in row]
    if what != "beginning of the second":
        parts[0][-98:] = bytes(98)
    if what != "end of the first":
        parts[1][:30] = bytes(30)
    path.write_bytes(b"".join(parts))
    report = fastckpt.salvage(path)
    intact = {key for key, fate in report.tensors.items() if fate.status.value == "intact"}
    assert intact == set(flat(row))


@pytest.mark.parametrize("count", [1, 100, 4096, 70_001])
def test_bytes_around_an_archive(count: int, tmp_path: Path) -> None:
    """They belong to nothing and are named; the archive is as whole as it was, under its own names."""
    path, raw, own = tmp_path / "a.pt", saved(state(1)), flat(state(1))
    for before, behind in ((count, 0), (0, count), (count, count)):
        path.write_bytes(b"\x5a" * before + raw + b"\xa5" * behind)
        report = fastckpt.salvage(path, tmp_path / "out.pt")
        assert {key for key, fate in report.tensors.items() if fate.status.value == "intact"} == set(own)
        ranges = {(finding.offset, finding.size) for finding in report.findings}
        assert ({(0, count)} if before else set()) | ({(before + len(raw), count)} if behind else set()) == ranges, (
            report.findings
        )
        assert report.exit_code == 1
        assert not fastckpt.verify(path).ok
        assert flat(torch.load(tmp_path / "out.pt")).keys() == own.keys()


@pytest.mark.parametrize(("count", "names", "lost"), [(1, True, 0), (50, True, 0), (100, False, 0), (3000, False, 1)])
def test_the_first_bytes_taken_away(count: int, names: bool, lost: int, tmp_path: Path) -> None:
    """Of a whole directory all offsets follow, also of what is in front of the file."""
    path = tmp_path / "a.pt"
    path.write_bytes(saved(state(1))[count:])
    report = fastckpt.salvage(path)
    own = flat(state(1)) if names else {f"data/{n}" for n in range(4)}
    assert report.tensors.keys() == set(own)
    assert report.counts["intact"] == 4 - lost
    assert report.complete == names


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_second_is_cut(share: float, tmp_path: Path) -> None:
    path, row = tmp_path / "a.pt", ROWS["two"]
    first, second = map(saved, row)
    cut = int(len(second) * share)
    path.write_bytes(first + second[:cut])
    ends = {f"1.{key}": second.index(row[1][key].numpy().tobytes()) + 64 * 32 * 4 + 8 for key in flat(row[1])}
    check(path, row, tmp_path, lost={key for key, end in ends.items() if end > cut}, complete=False)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("directory", [True, False])
def test_a_save_behind_one_that_was_cut(share: float, directory: bool, tmp_path: Path) -> None:
    path, row = tmp_path / "a.pt", ROWS["two"]
    first, second = map(saved, row)
    cut = int(len(first) * share)
    path.write_bytes(first[:cut] + (second if directory else second[: second.index(b"PK\x01\x02")]))
    ends = {f"0.{key}": first.index(row[0][key].numpy().tobytes()) + 64 * 32 * 4 + 8 for key in flat(row[0])}
    check(path, row, tmp_path, lost={key for key, end in ends.items() if end > cut}, complete=False)


def test_a_save_of_which_nothing_but_its_beginning_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved(state(1)) + saved(state(2))[:200])
    report = fastckpt.salvage(path)
    assert {key for key, fate in report.tensors.items() if fate.status.value == "intact"} == {
        f"0.{key}" for key in flat(state(1))
    }
    assert not report.complete
    assert report.exit_code == 3


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
@pytest.mark.parametrize("name", ["cut60", "flipped", "zeroed"])
def test_a_damaged_shard(name: str, tmp_path: Path) -> None:
    """A file of torch.distributed.checkpoint: what stands in front of the damage and behind it comes back."""
    path = CASES / "damaged" / f"{name}.distcp"
    whole = next(p for p in (CASES / "step-100").iterdir() if p.read_bytes()[:4096] == path.read_bytes()[:4096])
    original, raw, there = flat(fastckpt.load(whole)), whole.read_bytes(), path.read_bytes()
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    fates = fastckpt.salvage(whole).tensors
    expected = {
        key
        for key, fate in fates.items()
        if fate.offset is not None
        and there[fate.offset : fate.offset + fate.nbytes + 16] == raw[fate.offset : fate.offset + fate.nbytes + 16]
    }
    assert {key for key, fate in report.tensors.items() if fate.status.value == "intact"} == expected
    assert len(expected) >= 2
    assert len(expected) < len(original)
    assert not report.complete
    back = flat(fastckpt.load(tmp_path / "out.fckpt"))
    assert set(back) == expected
    assert all(equal(tensor, original[key]) for key, tensor in back.items())
