"""Objects that are not understood are the same only if what they are made of is, and all their bytes."""

from __future__ import annotations

import argparse
import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from slowness import within

from fastckpt.cli.main import main
from fastckpt.foreign.torch_state import read_state
from fastckpt.stored.comparison import Comparison, compare

ZIP = {"zip": True, "legacy": False}


class Holder:
    """A class that is not known to any reader."""

    def __init__(self, inside: object) -> None:
        self.inside = inside


def with_objects(**changes: Any) -> dict[str, Any]:
    """A state whose objects each differ from the default by one thing."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.note = changes.get("attribute", "a")  # type: ignore[attr-defined]
    inside = {"w": changes.get("tensor", torch.arange(1000.0)), "n": changes.get("value", 1)}
    return {
        "t": torch.ones(2),
        "namespace": argparse.Namespace(inside=inside, name=changes.get("name", "x" * 100)),
        "set": changes.get("set", {0, 8}),
        "frozen": changes.get("frozen", frozenset({(1, "a"), (2, "b")})),
        "array": bytearray(changes.get("array", b"abc")),
        "parameter": parameter,
        "slice": slice(0, changes.get("stop", 4)),
        "storage": changes.get("storage", torch.ones(5)).untyped_storage(),
        changes.get("key", (1, 2)): 0,
    }


CHANGES: dict[str, Any] = {
    "attribute": "b",
    "tensor": torch.arange(1000.0) + torch.eye(1000)[999],
    "value": 1.0,
    "name": "x" * 99 + "y",
    "set": {0, 9},
    "frozen": frozenset({(1, "a"), (2, "c")}),
    "array": b"abd",
    "stop": 5,
    "storage": torch.zeros(5),
    "key": (1, 3),
}


@pytest.mark.parametrize("zipped", ZIP.values(), ids=ZIP)
@pytest.mark.parametrize("structure_only", [False, True])
def test_what_an_object_shares_with_others_counts(tmp_path: Path, zipped: bool, structure_only: bool) -> None:
    def state(*tensors: torch.Tensor) -> dict[str, Any]:
        alone, one, other = tensors
        return {"t": alone, "one": argparse.Namespace(w=one), "other": argparse.Namespace(w=other)}

    shared, copies = torch.ones(4), [torch.ones(4) for _ in range(3)]
    options = {"zipped": zipped, "structure_only": structure_only}
    for tensors in ((shared, shared, copies[0]), (copies[0], shared, shared)):
        found = diff(tmp_path, state(*tensors), state(*copies), **options)
        assert found.same is False
        assert diff(tmp_path, state(*tensors), state(*tensors), **options).same


def diff(tmp_path: Path, a: object, b: object, *, zipped: bool = True, protocol: int = 2, **options: Any) -> Comparison:
    for name, state in (("a.pt", a), ("b.pt", b)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return compare(tmp_path / "a.pt", tmp_path / "b.pt", **options)


@pytest.mark.parametrize("zipped", ZIP.values(), ids=ZIP)
def test_the_same_objects(tmp_path: Path, zipped: bool) -> None:
    found = diff(tmp_path, with_objects(), with_objects(), zipped=zipped)
    assert found.same is True
    assert len(found.objects) == 1, "a storage; all others are values of Python's own"
    assert {part.status for part in found.objects.values()} == {"identical"}


def test_one_legacy_and_one_not(tmp_path: Path) -> None:
    torch.save(with_objects(), tmp_path / "a.pt")
    torch.save(with_objects(), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert compare(tmp_path / "a.pt", tmp_path / "b.pt").same is True


@pytest.mark.parametrize("zipped", ZIP.values(), ids=ZIP)
@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_found(tmp_path: Path, what: str, zipped: bool) -> None:
    found = diff(tmp_path, with_objects(), with_objects(**{what: CHANGES[what]}), zipped=zipped)
    assert found.same is False
    assert not found.damaged
    assert main(["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]) == 1


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_order_of_a_set_does_not_count(tmp_path: Path, protocol: int) -> None:
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other), "else this proves nothing"
    assert diff(tmp_path, with_objects(set=one), with_objects(set=other), protocol=protocol).same is True
    assert diff(tmp_path, with_objects(set=one), with_objects(set={0, 8, 16}), protocol=protocol).same is False


def test_an_object_in_one_file_only(tmp_path: Path) -> None:
    plain = torch.nn.Parameter(torch.ones(3))
    kept = torch.nn.Parameter(torch.ones(3))
    kept.note = "only here"  # type: ignore[attr-defined]
    assert diff(tmp_path, {"p": plain}, {"p": kept}).same is False
    assert diff(tmp_path, {"p": kept}, {"p": plain}).same is False


def test_an_object_that_only_one_file_has_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"t": torch.ones(2), "n": argparse.Namespace(w=torch.ones(3))}, tmp_path / "a.pt")
    save_file({"t": torch.ones(2)}, tmp_path / "b.safetensors")
    found = compare(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert found.same is False
    assert main(["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors")]) == 1
    assert re.search(r"n\.w +.*only in|only in A.*n\.w|n\.w", capsys.readouterr().out)


def test_too_deep_is_not_the_same(tmp_path: Path) -> None:
    value: object = 0
    for _ in range(200):
        value = Holder(value)
    found = diff(tmp_path, {"deep": value}, {"deep": value})
    assert found.same is None
    assert found.objects["state['deep']"].status == "unknown"


def test_a_flipped_bit_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"n": argparse.Namespace(w=torch.arange(5000.0))}
    torch.save(state, tmp_path / "a.pt")
    raw = bytearray((tmp_path / "a.pt").read_bytes())
    at = raw.find(struct.pack("<4f", *range(1000, 1004)))
    raw[at] ^= 1
    (tmp_path / "b.pt").write_bytes(raw)
    found = compare(tmp_path / "a.pt", tmp_path / "b.pt")
    assert found.damaged
    assert found.same is False
    assert main(["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]) == 2
    assert re.search(r"n\.w.*damaged|damaged.*n\.w", capsys.readouterr().out)


def test_structure_only_does_not_claim_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = ({"n": argparse.Namespace(w=torch.full((4,), float(n)))} for n in range(2))
    found = diff(tmp_path, a, b, structure_only=True)
    assert found.tensors["n.w"].status == "unread"
    main(["diff", "--structure-only", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")])
    assert "what is in them was not compared" in capsys.readouterr().out


def test_the_bytes_of_an_unknown_storage_class(tmp_path: Path) -> None:
    for name, end in (("a.pt", 1), ("b.pt", 1), ("c.pt", 2)):
        torch.save({"t": torch.tensor([7.0, float(end)])}, tmp_path / "raw.pt")
        with zipfile.ZipFile(tmp_path / "raw.pt") as old, zipfile.ZipFile(tmp_path / name, "w") as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info).replace(b"FloatStorage", b"OddStorage"))
    assert compare(tmp_path / "a.pt", tmp_path / "b.pt").same is None
    assert compare(tmp_path / "a.pt", tmp_path / "c.pt").same is not True


def test_an_object_that_contains_itself(tmp_path: Path) -> None:
    a, b = Holder(1), Holder(1)
    a.me, b.me = a, b  # type: ignore[attr-defined]
    assert diff(tmp_path, {"x": a}, {"x": b}).same is True
    b.inside = 2
    assert diff(tmp_path, {"x": a}, {"x": b}).same is False


def test_cost_is_in_proportion_to_the_pickle() -> None:
    """Objects share a list of 100,000 numbers, texts of 100 kB, and each other: all but the first are references."""
    text = b"X" + struct.pack("<I", 100_000) + b"t" * 100_000 + b"q\x01"
    shared = b"](" + b"K\x01" * 100_000 + b"eq\x00"
    call = b"cm\nX\nh\x00h\x01\x86R"
    doubling = b"cm\nY\nh\x00\x85R" + b"".join(b"q\x02cm\nY\nh\x02h\x02\x86R" for _ in range(100))
    data = b"\x80\x02(" + shared + text + call * 20_000 + doubling + b"t."
    start = time.process_time()
    state, _ = read_state(data)
    assert len(state.opaque) == 20_101
    assert within(time.process_time() - start, 5)
