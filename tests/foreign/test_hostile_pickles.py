"""Pickles that want to run code, or to use up time or memory, get a typed error or opaque leaves. Nothing runs."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from at_path import open_foreign
from slowness import within

import fastckpt
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.torch_state import read_state
from fastckpt.layout.named import NamedRef

SECONDS = 2.0


def write_archive(path: Path, data: bytes) -> Path:
    """A torch archive around any pickle, with one storage of 64 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", data)
        archive.writestr("m/byteorder", "little")
        archive.writestr("m/data/0", bytes(64))
        archive.writestr("m/version", "3\n")
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x10tQ"
HOOKS = b"ccollections\nOrderedDict\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x10\x85K\x01\x85\x89" + HOOKS + b"tR"


class Evil:
    """Unpickling one with the standard library makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def commands(marker: Path) -> dict[str, bytes]:
    command = text(f"touch {marker}")
    line = f"touch {marker}".encode()
    made = b"c__main__\nEvil\n)\x81"
    state = b"}" + text("cmd") + command + b"s"
    return {
        "GLOBAL REDUCE": b"\x80\x02cos\nsystem\n" + command + b"\x85R.",
        "posix": b"\x80\x02cposix\nsystem\n" + command + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + command + b"\x85R.",
        "dotted name": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + command + b"\x85R.",
        "INST": b"(S'" + line + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + command + b"o.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n" + command + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\n" + command + b"\x85}\x92.",
        "BUILD": b"\x80\x02" + made + state + b"b.",
        "BUILD dunder": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__class__") + b"cos\nsystem\nsb.",
        "BUILD method": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + b"cos\nsystem\nsb.",
        "builtins": b"\x80\x02c__builtin__\neval\n" + text("__import__('os')") + b"\x85R.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + command + b"\x85R.",
        "result called": b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R" + command + b"\x85R.",
        "APPEND": b"\x80\x02cos\nsystem\n" + command + b"a.",
        "SETITEM": b"\x80\x02cos\nenviron\n" + text("A") + text("B") + b"s.",
        "popped": b"\x80\x02cos\nsystem\n" + command + b"\x85R0" + text("looks harmless") + b".",
        "dict key": b"\x80\x02}cos\nsystem\n" + command + b"\x85RK\x01s.",
        "tensor function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + command
        + b"\x85}tR.",
        "load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + command + b"\x85R.",
        "storage class": b"\x80\x02(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x10tQ.",
        "dumped": pickle.dumps({"a": Evil(marker)}, protocol=2),
        "dumped in 5": pickle.dumps([Evil(marker)], protocol=5),
    }


@pytest.mark.parametrize("name", sorted(commands(Path("x"))))
def test_code_is_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    path = write_archive(tmp_path / "evil.pt", commands(marker)[name])
    file = open_foreign(path)
    assert isinstance(file, ForeignFile)
    assert file.opaque, "what is not understood is always listed"
    assert not marker.exists()


def test_the_marker_would_be_made(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(commands(marker)["GLOBAL REDUCE"])
    assert marker.exists(), "else the test above proves nothing"


def test_hidden_call_is_listed() -> None:
    state, _ = read_state(commands(Path("x"))["popped"])
    assert state.tree == "looks harmless"
    assert state.opaque == [("not in the state", "os.system")]


def test_opaque_leaf_names_the_global() -> None:
    state, _ = read_state(commands(Path("x"))["GLOBAL REDUCE"])
    assert isinstance(state.tree, NamedRef)
    assert (state.tree.name, state.tree.payload[0]) == ("object", "os.system")
    assert state.opaque == [("state", "os.system")]


def deep(opener: bytes, closer: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opener * depth + b"N" + closer * depth + b"."


def laughs(levels: int) -> bytes:
    """Each list holds the one before it ten times."""
    data = b"\x80\x02]q\x00"
    for level in range(levels):
        data += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    return data + b"."


LONG_KEY = b"}" + text("k" * 500_000) + b"}("
BIG_PAIRS = b"](" + (text("a") + b"N\x86") * 20_000 + b"e"

BOMBS = {
    "nested lists": deep(b"](", b"e", 100_000),
    "nested tuples": deep(b"", b"\x85", 300_000),
    "nested tuple as key": b"\x80\x02}" + deep(b"", b"\x85", 300_000)[2:-1] + b"K\x01s.",
    "nested dicts": b"\x80\x02" + b"}K\x00" * 100_000 + b"N" + b"s" * 100_000 + b".",
    "nested attributes": b"\x80\x02" + (HOOKS + b"}" + text("a")) * 1000 + b"N" + b"sb" * 1000 + b".",
    "marks": b"\x80\x02" + b"(" * 1_000_000,
    "marks popped": b"\x80\x02" + b"(" * 500_000 + b"1" * 500_000 + b"N.",
    "shared lists": laughs(40),
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00K\x01h\x00s.",
    "attributes in themselves": b"\x80\x02" + HOOKS + b"q\x00}" + text("me") + b"h\x00sb.",
    "tuple in its list": b"\x80\x02]q\x00h\x00\x85a.",
    "memo index": b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(200_000)) + b".",
    "memo number as text": b"Np" + b"9" * 4000 + b"\n.",
    "memo number below 0": b"Np-1\n.",
    "memo miss": b"\x80\x02j\xff\xff\xff\xff.",
    "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 100,
    "long as text": b"L" + b"9" * 3_000_000 + b"L\n.",
    "long with dots": b"I" + b"1" * 4000 + b".5\n.",
    "many LONG4 keys": b"\x80\x02}\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"q\x000"
    + (b"h\x00Ns") * 100_000 + b".",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"abc",
    "BINBYTES": b"\x80\x04B\xff\xff\xff\xffabc",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "copies of text": b"\x80\x02c_codecs\nencode\nq\x00" + text("x" * 1_000_000) + text("latin1")
    + b"\x86q\x01](" + b"h\x00h\x01R" * 100_000 + b"e.",
    "copies of pairs": b"\x80\x02" + BIG_PAIRS + b"\x85q\x00](" + b"ccollections\nOrderedDict\nh\x00R" * 50_000 + b"e.",
    "copies of attributes": b"\x80\x02}(" + b"".join(text(str(i)) + b"N" for i in range(20_000)) + b"uq\x000"
    + HOOKS + b"h\x00b" * 500_000 + b".",
    "long names": b"\x80\x02" + LONG_KEY + TENSOR + b"q\x05"
    + b"".join(b"K" + bytes([i]) + b"h\x05" for i in range(250)) * 40 + b"us.",
    "many long names": b"\x80\x02" + LONG_KEY
    + b"".join(b"M" + struct.pack("<H", i) + TENSOR for i in range(5000)) + b"us.",
    "long global": b"\x80\x04" + text("m" * 100_000) + text("n") + b"\x93.",
    "many globals": b"\x80\x02" + b"".join(b"cm\nn%d\n0" % i for i in range(20_000)) + b"N.",
    "attribute that is a number": b"\x80\x02" + HOOKS + b"}K\x01Nsb.",
    "shape of 100000 dimensions": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00("
    + b"K\x01" * 100_000 + b"tK\x01\x85\x89" + HOOKS + b"tR.",
    "negative shape": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE
    + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89" + HOOKS + b"tR.",
    "huge shape": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00\x8a\x08" + b"\xff" * 7
    + b"\x7f\x85K\x01\x85\x89" + HOOKS + b"tR.",
    "huge storage": b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"\x8a\x20"
    + b"\x7f" * 32 + b"tQ.",
    "extension code": b"\x80\x02\x82\x01.",
    "out of band": b"\x80\x05\x97.",
    "protocol 255": b"\x80\xff.",
    "text persistent id": b"P12\n.",
    "unknown opcode": b"\xff.",
    "empty": b"",
    "only stop": b".",
    "stack underflow": b"\x80\x02tR.",
    "call of a number": b"\x80\x02K\x01)R.",
    "state of a number": b"\x80\x02K\x01}b.",
    "append to a tuple": b"\x80\x02)Na.",
    "half a pair": b"\x80\x02}(Nu.",
    "bad text": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "bytes after the end": b"\x80\x02N.N.",
}  # fmt: skip
AROUND_ITSELF = ("list in itself", "dict in itself", "attributes in themselves", "tuple in its list")
HARMLESS = {"marks popped", *AROUND_ITSELF}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bomb(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "bomb.pt", BOMBS[name])
    start = time.process_time()
    if name in HARMLESS:
        open_foreign(path)
    else:
        with pytest.raises((DamagedError, UnsupportedStateError)) as caught:
            open_foreign(path)
        assert caught.value.path == str(path)
        assert len(str(caught.value)) < 2000
    assert within(time.process_time() - start, SECONDS)


@pytest.mark.parametrize("name", ["LONG4", "BINUNICODE8", "BINBYTES", "copies of text", "long names"])
def test_bomb_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FastckptError):
            read_state(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", AROUND_ITSELF)
def test_what_contains_itself_is_carried(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "a.pt", BOMBS[name])
    fastckpt.convert(path, tmp_path / "a.fckpt")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == path.read_bytes()
    with pytest.raises(UnsupportedStateError):
        fastckpt.load(tmp_path / "a.fckpt")
    fastckpt.load(tmp_path / "a.fckpt", opaque="keep")


def test_list_in_itself_is_named() -> None:
    state, _ = read_state(BOMBS["list in itself"])
    assert [what for _, what in state.opaque] == ["list that contains itself"]


def test_too_deep_is_named() -> None:
    with pytest.raises(UnsupportedStateError, match="nested deeper than 128 levels"):
        read_state(BOMBS["nested lists"])
    state, _ = read_state(deep(b"](", b"e", 128))
    assert str(state.tree).startswith("[" * 128)


def test_shared_parts_are_no_bomb() -> None:
    shared = (0.9, 0.95)
    state = [{"betas": shared, "more": [shared] * 5} for _ in range(1000)]
    assert read_state(pickle.dumps(state, protocol=2))[0].tree == state


@pytest.mark.slow
def test_many_tensors_in_seconds() -> None:
    count = 200_000
    tensor = TENSOR.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"h\x00").replace(HOOKS, b"h\x01)R")
    items = b"".join(text(f"layers.{i}.weight") + b"r" + struct.pack("<I", 10 + i) + tensor for i in range(count))
    start = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x000ccollections\nOrderedDict\nq\x010}("
    data = start + items + b"u."
    began = time.process_time()
    state, _ = read_state(data)
    assert len(state.entries) == count
    assert within(time.process_time() - began, 10)
