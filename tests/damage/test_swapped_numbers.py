"""Damage to files of big-endian machines: what is called intact has the values that were saved, never swapped ones."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from big_endian import write_big
from goods import Good, map_torch_zip, values_of
from makers import KINDS

import fastckpt
from fastckpt.errors import FastckptError

SEEDS = 6
STATE = {
    "a": torch.arange(300, dtype=torch.float32),
    "b": torch.arange(1, 41, dtype=torch.int16),
    "c": torch.arange(200, dtype=torch.uint8),
    "d": torch.arange(900, dtype=torch.float64),
}
MULTI = {"a", "b", "d"}
VALUES = {name: values_of(tensor) for name, tensor in STATE.items()}


def write_old(path: Path) -> None:
    """As torch wrote files before it had a record with the byte order, but for one behind all storages."""
    little = path.with_suffix(".little")
    torch.save(STATE, little)
    reader, writer = torch._C.PyTorchFileReader(str(little)), torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        if name == "data.pkl" or name.startswith("data/"):
            raw = reader.get_record(name)
            writer.write_record(name, raw, len(raw))
    writer.write_end_of_file()
    little.unlink()


@pytest.fixture
def big(tmp_path: Path) -> Good:
    write_big(STATE, tmp_path / "m.pt")
    good = Good("pt/big", "pt", (tmp_path / "m.pt").read_bytes())
    write_big({name: tensor + 1 for name, tensor in STATE.items()}, tmp_path / "m.pt")
    good.sibling = (tmp_path / "m.pt").read_bytes()
    map_torch_zip(good, STATE)
    good.interrupted = [good.raw]
    return good


def intact_in(path: Path) -> tuple[dict[str, bytes], fastckpt.SalvageReport]:
    """The values of what salvage calls intact, and its report."""
    rescued = path.with_suffix(".fckpt")
    rescued.unlink(missing_ok=True)
    report = fastckpt.salvage(path, rescued, threads=1)
    state = fastckpt.load(rescued) if report.destination else {}
    # Of several archives in a row the state is a list.
    states = state if isinstance(state, list) else [state]
    return {name: values_of(tensor) for each in states for name, tensor in each.items()}, report


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", sorted(name for name, kind in KINDS.items() if "pt" in kind.formats))
def test_no_damage_swaps_what_is_called_intact(big: Good, tmp_path: Path, kind: str) -> None:
    others = {name: values_of(tensor + 1) for name, tensor in STATE.items()}
    path = tmp_path / "hurt.pt"
    for seed in range(SEEDS):
        path.write_bytes(KINDS[kind].make(big, random.Random(f"{kind}:{seed}")))
        try:
            values, _ = intact_in(path)
        except FastckptError:
            continue
        for name, value in values.items():
            if name in VALUES:
                assert value in (VALUES[name], others[name]), (kind, seed, name)


@pytest.mark.thorough
def test_bits_and_holes_around_the_record(big: Good, tmp_path: Path) -> None:
    """With the directory gone, all combinations of what else tells the order."""
    path = tmp_path / "hurt.pt"
    parts = [
        *("header byteorder", "data byteorder", "descriptor byteorder"),
        *("header data/0", "data .data/serialization_id", "directory"),
    ]
    found = set()
    for chosen in range(1 << len(parts)):
        raw = bytearray(big.raw)
        lost = {name for bit, name in enumerate(parts) if chosen >> bit & 1}
        for name in lost:
            start, end = big.regions[name]
            raw[start:end] = bytes(end - start)
        path.write_bytes(raw)
        values, report = intact_in(path)
        assert all(value == VALUES[name] for name, value in values.items()), lost
        told = MULTI - {"a"} <= values.keys()
        named = {"header byteorder", "data byteorder"}.isdisjoint(lost)
        assert told == (named or not set(parts[2:]) <= lost), lost
        assert told != any("nothing left of the file tells its byte order" in note for note in report.notes)
        found.add(told)
    assert found == {True, False}


@pytest.mark.parametrize("writer", ["big", "little", "old"])
def test_what_nothing_tells_is_not_proven(big: Good, tmp_path: Path, writer: str) -> None:
    path = tmp_path / "hurt.pt"
    path.write_bytes(big.raw)
    if writer == "little":
        torch.save(STATE, path)
    if writer == "old":
        write_old(path)
    with zipfile.ZipFile(path) as archive:
        places = {info.filename.partition("/")[2]: info.header_offset for info in archive.infolist()}
    raw = path.read_bytes()
    # The file ends before its last records, and what stands between data.pkl and the first storage is lost.
    first = places["data/0"]
    name_size, extra_size = struct.unpack_from("<HH", raw, first + 26)
    stop = first + 30 + name_size + extra_size
    start = min(places["byteorder"], first)
    cut = raw[: places["version"]]
    path.write_bytes(cut[:start] + bytes(stop - start) + cut[stop:])
    values, report = intact_in(path)
    assert set(values) == {"c"}
    assert values["c"] == VALUES["c"]
    statuses = {name: fate.status.value for name, fate in report.tensors.items()}
    assert {statuses[name] for name in MULTI} == {"unverified"}
    assert "order" in report.tensors["d"].reason
    assert report.exit_code != 0
    assert fastckpt.verify(path).exit_code != 0
    assert any("byte order" in note for note in report.notes)
    # A file that only lost its end keeps its front: all of it is proven.
    path.write_bytes(cut)
    values, report = intact_in(path)
    assert values == VALUES
