"""Leaves checked where they arrive, by the Triton kernels in their interpreter: the whole way.

The interpreter is slow, so the states are small. Triton looks at TRITON_INTERPRET when it is imported, so all of it
runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from states import of_dtype, pattern
from triton_versions import can_decode_planes

import fastckpt

pytest.importorskip("triton")

PROGRAM = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from delayed import DelayedDevice, FlippingDevice, delayed
from states import assert_same, copied, tensors_of
import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.loading.load_into import load_into
from fastckpt.kernels.dispatch import engine_for
from fastckpt.staging import check, decoding
from fastckpt.staging.existing import ExistingTensors
from fastckpt.staging.stage import bring, staging_for
from fastckpt.loading.stream import load_through, opened, stream_through

RING = fastckpt.Ring(2, 48 * 1024)
launches = []
check_leaves = check.check_leaves
check.check_leaves = lambda *columns: (launches.append(1), check_leaves(*columns))

decode_planes = decoding.decode_planes
decoding.decode_planes = lambda *columns, **sizes: (decoded.append(len(columns[0])), decode_planes(*columns, **sizes))
WHOLE = fastckpt.Ring(2, 2**20)
decoded = []

def outcome(device, *, stream=False, ring=RING):
    how = staging_for(device, ring=ring, verify="device")
    names = []
    try:
        if stream:
            for name, tensor in stream_through(path, how, None):
                names.append(name)
        else:
            names = sorted(load_through(path, how, None))
    except FastckptError as error:
        return [type(error).__name__, str(error), error.tensor, error.chunk, names]
    return names

for line in sys.stdin:
    code, path = json.loads(line)
    launches.clear()
    decoded.clear()
    exec(code)
    sys.stdout.flush()
"""

Run = Callable[[str, Path], Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device_check") / "s.fckpt"
    state: dict[str, torch.Tensor] = {"large": of_dtype(torch.bfloat16, 140_000)}
    state |= {f"small.{i}": pattern(i * 100, i) for i in range(20)}
    fastckpt.save(state, path)
    return path


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs code on a file; gives what it prints, as JSON."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(Path(__file__).parent)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(code: str, path: Path) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps([code, str(path)]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield run


def test_intact(run: Run, path: Path) -> None:
    code = """
expected = fastckpt.load(path)
with delayed(DelayedDevice(0.0001)) as device:
    state = load_through(path, staging_for(device, ring=RING, verify="device"), None)
assert_same(state, expected)
got = dict(fastckpt.stream(path, ring=RING, verify="device"))
assert_same({name: got[name] for name in expected}, expected)
print(json.dumps(len(launches)))
"""
    assert run(code, path) == 2 * 7, "one launch per slot"


@pytest.mark.thorough
def test_bits_that_flip_on_the_way(run: Run, path: Path) -> None:
    """Found at exactly the leaf where they flipped, though the file is right."""
    code = """
found = []
# First what is known of all leaves; then every other copy is that of addresses.
for number, stream in ((1, False), (4, True)):
    with delayed(FlippingDevice(2 + 2 * number)) as device:
        found.append(outcome(device, stream=stream))
print(json.dumps(found))
"""
    found = run(code, path)
    for number, (kind, message, tensor, chunk, names) in zip((1, 4), found, strict=True):
        assert (kind, tensor, chunk) == ("DamagedError", "large", 0)
        assert f"leaf {3 * number + 1} was damaged on its way to the device; in the file it is right" in message
        assert names == []


def test_damage_in_the_file(run: Run, path: Path, tmp_path: Path) -> None:
    raw = bytearray(path.read_bytes())
    with fastckpt.open(path) as ck:
        payload = ck._file.records[0].payload
    raw[payload.offset + 100_000] ^= 1
    torn = (payload.offset + 200_000) // 4096 * 4096
    raw[torn : torn + 50_000] = bytes(50_000)
    (tmp_path / "bad").write_bytes(raw)
    code = """
try:
    fastckpt.load(path)
except FastckptError as error:
    expected = str(error)
with delayed() as device:
    print(json.dumps([expected, outcome(device)]))
"""
    expected, (kind, message, tensor, chunk, _) = run(code, tmp_path / "bad")
    assert (kind, tensor, chunk) == ("DamagedError", "large", 0)
    assert message == expected


@pytest.mark.thorough
def test_into_tensors_that_exist(run: Run, path: Path) -> None:
    code = """
expected = fastckpt.load(path)
state = copied(expected)
for tensor in tensors_of(state):
    tensor.zero_()
state["large"] = torch.zeros(2, 140_000, dtype=torch.bfloat16)[1]
tensors = dict(state)
with delayed(DelayedDevice(0.0001)) as device, opened(path, None) as file:
    destination = ExistingTensors(device, file.entries, tensors)
    bring(file.origin_of(file.entries), destination, staging_for(device, ring=RING, verify="device"))
    assert sum(device.allocated) < 100_000, device.allocated
for name, tensor in tensors.items():
    assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name
print(json.dumps(True))
"""
    assert run(code, path)


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks, most of whose tiles hold nothing but zeros, which the interpreter is quick about."""
    path = tmp_path_factory.mktemp("planes") / "s.fckpt"
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(140_000, generator=generator) / 50
    weights[9000:130_000] = 0
    moments = torch.randn(90_001, generator=generator).exp()
    moments[:80_000] = 0
    fastckpt.save({"weights": weights.bfloat16(), "moments": moments}, path, codec="planes", durable=False)
    return path


@can_decode_planes
def test_planes_decoded_where_they_arrive(run: Run, planes: Path) -> None:
    code = """
assert engine_for("cpu", "decode_planes").name == "triton"
expected = fastckpt.load(path)
with delayed(DelayedDevice(0.0001)) as device:
    assert_same(load_through(path, staging_for(device, ring=WHOLE, verify="device"), None), expected)
print(json.dumps([sum(decoded), len(launches)]))
"""
    assert run(code, planes) == [2, 1]


@can_decode_planes
@pytest.mark.parametrize("place", [1, *(pytest.param(place, marks=pytest.mark.thorough) for place in (4, 90, 20_000))])
def test_damaged_planes(run: Run, planes: Path, tmp_path: Path, place: int) -> None:
    """The head, the tables, a value: the error of a load on the CPU."""
    raw = bytearray(planes.read_bytes())
    with fastckpt.open(planes) as ck:
        record = next(r for r in ck._file.records if any(e.name == "weights" for e in r.entries))
    raw[record.payload.offset + place] ^= 4
    (tmp_path / "bad").write_bytes(raw)
    code = """
assert engine_for("cpu", "decode_planes").name == "triton"
try:
    fastckpt.load(path)
except FastckptError as error:
    expected = str(error)
with delayed() as device:
    print(json.dumps([expected, outcome(device, ring=WHOLE), sum(decoded)]))
"""
    expected, (kind, message, tensor, chunk, _), decoded = run(code, tmp_path / "bad")
    assert (kind, tensor, chunk, decoded) == ("DamagedError", "weights", 0, 2)
    assert message == expected


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .safetensors with a seal, whose tensors begin where no kernel wants them."""
    path = tmp_path_factory.mktemp("device_check") / "s.safetensors"
    state: dict[str, torch.Tensor] = {"large": of_dtype(torch.bfloat16, 140_000)}
    state |= {f"small.{i}": pattern(i * 100 + 2, i).contiguous() for i in range(20)}
    save_file(state, path, {"odd": "x"})
    fastckpt.seal(path)
    return path


def test_a_sealed_file_is_checked_there_too(run: Run, sealed: Path) -> None:
    code = """
expected = fastckpt.load(path)
with delayed(DelayedDevice(0.0001)) as device:
    state = load_through(path, staging_for(device, ring=RING, verify="device"), None)
for name, tensor in expected.items():
    assert torch.equal(state[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert state[name].data_ptr() % 16 == 0
tensors = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
with delayed(DelayedDevice(0.0001)) as device, opened(path, None) as file:
    destination = ExistingTensors(device, file.entries, tensors)
    bring(file.origin_of(file.entries), destination, staging_for(device, ring=RING, verify="device"))
for name, tensor in expected.items():
    assert torch.equal(tensors[name].view(torch.uint8), tensor.view(torch.uint8)), name
print(json.dumps(len(launches)))
"""
    assert run(code, sealed) >= 2 * 7


def test_damage_in_a_sealed_file(run: Run, sealed: Path, tmp_path: Path) -> None:
    bad = tmp_path / sealed.name
    raw = bytearray(sealed.read_bytes())
    raw[100_000] ^= 1
    raw[250_000:250_050] = bytes(50)
    bad.write_bytes(raw)
    shutil.copyfile(f"{sealed}.fckpt-sums", f"{bad}.fckpt-sums")
    code = """
try:
    fastckpt.load(path)
except FastckptError as error:
    expected = str(error)
with delayed() as device:
    print(json.dumps([expected, outcome(device), outcome(device, stream=True)]))
"""
    expected, (kind, message, tensor, chunk, _), streamed = run(code, bad)
    assert (kind, tensor, chunk) == ("DamagedError", "large", None)
    assert message == expected
    assert streamed[0] == kind
    assert "large" not in streamed[4]


def test_a_bit_that_flips_on_the_way_from_a_sealed_file(run: Run, sealed: Path) -> None:
    code = """
with delayed(FlippingDevice(4)) as device:
    print(json.dumps(outcome(device)))
"""
    kind, message, *_ = run(code, sealed)
    assert kind == "DamagedError"
    assert "was damaged on its way to the device; in the file it is right" in message
