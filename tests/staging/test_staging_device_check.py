"""Leaves checked where they arrive, by the Triton kernels in their interpreter: the whole way, in one process per case.

The interpreter is slow, so the states are small. Triton looks at TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from states import of_dtype, pattern

import fastckpt

pytest.importorskip("triton")

PROGRAM = """
import json, sys
import torch
sys.path.insert(0, sys.argv[2])
from delayed import DelayedDevice, FlippingDevice, delayed
from states import assert_same, copied, tensors_of
import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.loading.load_into import load_into
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.existing import ExistingTensors
from fastckpt.staging.stage import bring, staging_for
from fastckpt.loading.stream import load_through, opened, stream_through

path = sys.argv[1]
RING = fastckpt.Ring(2, 48 * 1024)
launches = []
start = LeafCheck.start
LeafCheck.start = lambda self, *arguments: (launches.append(1), start(self, *arguments))[1]

def outcome(device, *, stream=False):
    how = staging_for(device, ring=RING)
    assert how.proof == "device"
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

"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device_check") / "s.fckpt"
    state: dict[str, torch.Tensor] = {"large": of_dtype(torch.bfloat16, 140_000)}
    state |= {f"small.{i}": pattern(i * 100, i) for i in range(20)}
    fastckpt.save(state, path)
    return path


def run(code: str, path: Path) -> Any:
    """What the program prints, as JSON."""
    here = str(Path(__file__).parent)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM + code, str(path), here],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_intact(path: Path) -> None:
    code = """
expected = fastckpt.load(path)
with delayed(DelayedDevice(0.0001)) as device:
    state = load_through(path, staging_for(device, ring=RING), None)
assert_same(state, expected)
got = dict(fastckpt.stream(path, ring=RING, verify="device"))
assert_same({name: got[name] for name in expected}, expected)
print(json.dumps(len(launches)))
"""
    assert run(code, path) == 2 * 7, "one launch per slot"


def test_bits_that_flip_on_the_way(path: Path) -> None:
    """Found at exactly the leaf where they flipped, though the file is right."""
    code = """
found = []
for number in (1, 4):  # Every other copy is that of a table.
    for stream in (False, True):
        with delayed(FlippingDevice(2 * number)) as device:
            found.append(outcome(device, stream=stream))
print(json.dumps(found))
"""
    found = run(code, path)
    for number, (kind, message, tensor, chunk, names) in zip((1, 1, 4, 4), found, strict=True):
        assert (kind, tensor, chunk) == ("DamagedError", "large", 0)
        assert (
            f"leaf {3 * number + 1} did not arrive as it is in the file, which is right when it is read again"
            in message
        )
        assert names == []


def test_damage_in_the_file(path: Path, tmp_path: Path) -> None:
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


def test_into_tensors_that_exist(path: Path) -> None:
    code = """
expected = fastckpt.load(path)
state = copied(expected)
for tensor in tensors_of(state):
    tensor.zero_()
state["large"] = torch.zeros(2, 140_000, dtype=torch.bfloat16)[1]
tensors = dict(state)
with delayed(DelayedDevice(0.0001)) as device, opened(path, None) as file:
    destination = ExistingTensors(device, file.entries, tensors)
    bring(file.origin_of(file.entries), destination, staging_for(device, ring=RING))
    assert sum(device.allocated) < 100_000, device.allocated
for name, tensor in tensors.items():
    assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name
print(json.dumps(True))
"""
    assert run(code, path)
