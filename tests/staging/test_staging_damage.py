"""Damage on the way through the pipeline: the error of a load on the CPU, and nothing wrong handed out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from delayed import DelayedDevice, FlippingDevice, delayed
from states import assert_same, compressible, element_bytes, pattern

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError, UsageError
from fastckpt.layout.blocks import Extent
from fastckpt.loading.stream import load_through, stream_through
from fastckpt.staging.device import HostDevice
from fastckpt.staging.stage import staging_for

RINGS = [fastckpt.Ring(), fastckpt.Ring(1, LEAF_SIZE), fastckpt.Ring(3, 1 << 20)]


def state_of(codec: str) -> dict[str, torch.Tensor]:
    make = compressible if codec == "zstd" else pattern
    state = {f"large.{i}": make(1_200_000, i) for i in range(3)}
    return state | {f"small.{i}": pattern(500, i) for i in range(200)}


def flip(raw: bytearray, payload: Extent) -> None:
    raw[payload.offset + payload.size * 2 // 3] ^= 16


def tear(raw: bytearray, payload: Extent) -> None:
    page = (payload.offset + payload.size // 2) // 4096 * 4096
    raw[page : page + 4 * LEAF_SIZE] = bytes(4 * LEAF_SIZE)


def many(raw: bytearray, payload: Extent) -> None:
    for place in range(payload.offset, payload.end, payload.size // 17):
        raw[place] ^= 1


def good_names(tensors: Iterator[tuple[str, torch.Tensor]], state: dict[str, torch.Tensor]) -> Iterator[str]:
    """The names of the tensors handed out, each of which must be as it was saved."""
    for name, tensor in tensors:
        assert element_bytes(tensor) == element_bytes(state[name])
        yield name


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("damage", [flip, tear, many])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_damaged_payload(
    tmp_path: Path, codec: str, damage: Callable[[bytearray, Extent], None], ring: fastckpt.Ring
) -> None:
    path = tmp_path / "s.fckpt"
    state = state_of(codec)
    fastckpt.save(state, path, codec=codec, durable=False)
    with fastckpt.open(path) as ck:
        payload = ck._file.records[1].payload
    raw = bytearray(path.read_bytes())
    damage(raw, payload)
    path.write_bytes(raw)
    with pytest.raises(DamagedError) as expected:
        fastckpt.load(path)
    with delayed(DelayedDevice(0.0002)) as device, pytest.raises(DamagedError) as caught:
        load_through(path, staging_for(device, ring=ring), None)
    assert str(caught.value) == str(expected.value)
    assert vars(caught.value) == vars(expected.value)

    good: list[str] = []
    with delayed(DelayedDevice(0.0002)) as device, pytest.raises(DamagedError) as caught:
        good.extend(good_names(stream_through(path, staging_for(device, ring=ring), None), state))
    assert caught.value.tensor not in good
    # The damage is in the middle: what is before it has been handed out.
    assert good == ["large.0"]
    if codec == "none":
        how = staging_for(HostDevice(), ring=ring, verify=False)
        assert_same(load_through(path, how, None), fastckpt.load(path, verify=False))


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_damaged_pt(tmp_path: Path, ring: fastckpt.Ring) -> None:
    path = tmp_path / "s.pt"
    state = state_of("none")
    torch.save(state, path)
    raw = bytearray(path.read_bytes())
    for name in ("large.1", "small.7", "small.8"):
        raw[raw.index(element_bytes(state[name])) + 300] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError) as expected:
        fastckpt.load(path)
    with delayed(DelayedDevice(0.0002)) as device, pytest.raises(DamagedError) as caught:
        load_through(path, staging_for(device, ring=ring), None)
    assert str(caught.value) == str(expected.value)
    good: list[str] = []
    with pytest.raises(DamagedError), delayed(DelayedDevice(0.0002)) as device:
        good.extend(good_names(stream_through(path, staging_for(device, ring=ring), None), state))
    assert good == ["large.0"]
    assert len(load_through(path, staging_for(HostDevice(), ring=ring, verify=False), None)) == len(state)


@pytest.mark.parametrize("suffix", ["fckpt", "pt"])
def test_file_that_is_cut_meanwhile(tmp_path: Path, suffix: str) -> None:
    """Cut while it is read, after its end has been seen: what is left is handed out, then it is an error."""
    path = tmp_path / f"s.{suffix}"
    state = state_of("none")
    (fastckpt.save if suffix == "fckpt" else torch.save)(state, path)
    for through in (
        lambda: fastckpt.stream(path, ring=fastckpt.Ring(2, 64 * 1024)),
        lambda: fastckpt.stream(path, ring=fastckpt.Ring(2, 64 * 1024), verify=False),
    ):
        raw = path.read_bytes()
        tensors = through()
        name, tensor = next(tensors)
        assert element_bytes(tensor) == element_bytes(state[name])
        os.truncate(path, 3_000_000)
        with pytest.raises(DamagedError, match=r"changed while|is missing|became shorter"):
            list(tensors)
        path.write_bytes(raw)


def test_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save(state_of("none"), path)
    tensors = fastckpt.stream(path, ring=fastckpt.Ring(2, 64 * 1024))
    next(tensors)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DamagedError, match="changed while it was read"):
        list(tensors)


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>
static int is_bad(off_t at, size_t size) {
  const off_t bad = atol(getenv("BAD_BYTE"));
  errno = EIO;
  return at <= bad && bad < at + (off_t)size;
}
#define READ(name)                                                              \\
  ssize_t name(int fd, void* to, size_t size, off_t at) {                       \\
    ssize_t (*real)(int, void*, size_t, off_t) = dlsym(RTLD_NEXT, #name);       \\
    return is_bad(at, size) ? -1 : real(fd, to, size, at);                      \\
  }
#define READ_PARTS(name)                                                                            \\
  ssize_t name(int fd, const struct iovec* to, int count, off_t at) {                               \\
    ssize_t (*real)(int, const struct iovec*, int, off_t) = dlsym(RTLD_NEXT, #name);                \\
    size_t size = 0;                                                                                \\
    for (int i = 0; i < count; ++i) size += to[i].iov_len;                                          \\
    return is_bad(at, size) ? -1 : real(fd, to, count, at);                                         \\
  }
#define READ_VECTOR(name)                                                                           \\
  ssize_t name(int fd, const struct iovec* to, int count, off_t at, int flags) {                    \\
    ssize_t (*real)(int, const struct iovec*, int, off_t, int) = dlsym(RTLD_NEXT, #name);           \\
    return is_bad(at, to[0].iov_len) ? -1 : real(fd, to, count, at, flags);                         \\
  }
READ(pread)
READ(pread64)
READ_PARTS(preadv)
READ_PARTS(preadv64)
READ_VECTOR(preadv2)
READ_VECTOR(preadv64v2)
"""

UNREADABLE = """
import os, sys, threading
import fastckpt
from fastckpt.errors import FastckptError
ring = fastckpt.Ring(2, 1 << 20)
for path in sys.argv[1:]:
    os.environ["BAD_BYTE"] = str(os.path.getsize(path) // 2)
    errors = []
    for load in (lambda: fastckpt.load(path), lambda: list(fastckpt.stream(path, ring=ring))):
        try:
            load()
        except FastckptError as error:
            errors.append((type(error).__name__, error.tensor, error.offset, error.chunk))
    print(errors[0] == errors[1], errors[1], threading.active_count())
"""


def test_unreadable_sector(tmp_path: Path) -> None:
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler for the shim: {error}")
    fastckpt.save(state_of("none"), tmp_path / "s.fckpt")
    fastckpt.save(state_of("zstd"), tmp_path / "z.fckpt", codec="zstd")
    torch.save(state_of("none"), tmp_path / "s.pt")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(UNREADABLE),
            *(tmp_path / name for name in ("s.fckpt", "z.fckpt", "s.pt")),
        ],
        env={**os.environ, "LD_PRELOAD": str(library), "BAD_BYTE": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stdout + run.stderr
    for line, kind in zip(lines, (DamagedError, DamagedError, CheckpointIOError), strict=True):
        assert re.fullmatch(rf"True \('{kind.__name__}', .*\) 1", line), run.stdout + run.stderr


@pytest.mark.parametrize("number", [0, 2, 5])
def test_bits_that_flip_behind_the_host_check_pass_it(tmp_path: Path, number: int) -> None:
    """Why leaves are checked on the device: what happens on the link is seen nowhere else."""
    saved = state_of("none")
    fastckpt.save(saved, tmp_path / "s")
    with delayed(FlippingDevice(number)) as device:
        state = load_through(tmp_path / "s", staging_for(device, ring=fastckpt.Ring(2, 1 << 20), verify="host"), None)
    assert sum(element_bytes(t) != element_bytes(saved[name]) for name, t in state.items()) == 1


def test_without_zstandard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is encoded needs it, and the error says of which file that is."""
    state = state_of("zstd")
    fastckpt.save(state, tmp_path / "z", codec="zstd", durable=False)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for load in (fastckpt.load, lambda path: list(fastckpt.stream(path, ring=fastckpt.Ring(2, 1 << 20)))):
        with pytest.raises(UsageError, match="needs the zstandard package") as caught:
            load(tmp_path / "z")
        assert caught.value.path == str(tmp_path / "z")
        assert (caught.value.chunk, caught.value.next_step) == (0, "pip install zstandard")
    with pytest.raises(UsageError, match="needs the zstandard package"):
        fastckpt.save(state, tmp_path / "new", codec="zstd")
    assert [path.name for path in tmp_path.iterdir()] == ["z"]
    fastckpt.save(state, tmp_path / "new")
    assert_same(fastckpt.load(tmp_path / "new"), state)
