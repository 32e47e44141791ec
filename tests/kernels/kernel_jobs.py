"""What the tests let child processes do: see conftest. Triton is imported in the functions only."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fastckpt.kernels import agrees_with_host, dispatch, launch
from fastckpt.kernels.decode_planes import compile_planes, decode_planes, room_for

Call = Callable[..., Any]
Rows = list[tuple[int, int]]
"""Leaves: the offset in some memory, and the size."""
CANARY = -0x0123456789ABCDEF


def set_environment(changes: dict[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _aligned(memory: bytes) -> torch.Tensor:
    buffer = torch.empty(len(memory) + 16, dtype=torch.uint8)
    start = -buffer.data_ptr() % 16
    ctypes.memmove(buffer.data_ptr() + start, memory, len(memory))
    return buffer[start:]


def _table(base: int, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    addresses = torch.tensor([base + offset for offset, _ in rows], dtype=torch.int64)
    return addresses, torch.tensor([size for _, size in rows], dtype=torch.int32)


def hash_rows(memory: bytes, rows: Rows) -> list[int]:
    """The digests of these leaves, by the kernel; rows before and behind those of ``out`` must stay as they were."""
    held = _aligned(memory)
    out = torch.full((len(rows) + 16,), CANARY, dtype=torch.int64)
    launch.hash_leaves(*_table(held.data_ptr(), rows), out[8:-8])
    assert set(out[:8].tolist() + out[-8:].tolist()) == {CANARY}
    return [digest % 2**64 for digest in out[8:-8].tolist()]


def check_rows(memory: bytes, rows: Rows, expected: list[int]) -> list[int]:
    """What the kernel writes to ``bad``, which was full of sevens."""
    held = _aligned(memory)
    signed = torch.tensor([digest - 2**64 if digest >> 63 else digest for digest in expected], dtype=torch.int64)
    bad = torch.full((len(rows) + 16,), 7, dtype=torch.int32)
    launch.check_leaves(*_table(held.data_ptr(), rows), signed, bad[8:-8])
    assert set(bad[:8].tolist() + bad[-8:].tolist()) == {7}
    return bad[8:-8].tolist()


def hash_at_the_edges(data: bytes) -> list[int]:
    """The digest of ``data`` right behind a page that must not be read, and right before one."""
    libc = ctypes.CDLL(None, use_errno=True)
    page, inner = mmap.PAGESIZE, -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, inner + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for guard in (base, base + page + inner):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    digests = []
    for start in (page, page + inner - len(data)):
        ctypes.memmove(base + start, data, len(data))
        out = torch.zeros(1, dtype=torch.int64)
        launch.hash_leaves(*_table(base, [(start, len(data))]), out)
        digests.append(out.item() % 2**64)
    return digests


def tensor_digests(tensors: list[torch.Tensor]) -> list[int]:
    """The digests of these small tensors, each where it lies in memory."""
    out = torch.zeros(len(tensors), dtype=torch.int64)
    launch.hash_leaves(*_table(0, [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]), out)
    return [digest % 2**64 for digest in out.tolist()]


def bytes_digests(data: bytes) -> list[int]:
    """The digest of every leaf of some bytes by the kernel, which is the engine for CPU tensors here."""
    assert dispatch.engine_for("cpu", "hash_kernel").name == "triton"
    held = _aligned(data)
    addresses, sizes = launch.leaf_table(held.data_ptr(), len(data), device="cpu")
    out = torch.zeros(len(addresses), dtype=torch.int64)
    launch.hash_leaves(addresses, sizes, out)
    return [digest % 2**64 for digest in out.tolist()]


def engine(device: str, kernel: launch.Kernel = "check_kernel") -> dispatch.Engine:
    """The engine, asked for the first time."""
    with mock.patch.object(dispatch, "_found", {}):
        return dispatch.engine_for(device, kernel)


def engine_with_a_default_device() -> dispatch.Engine:
    with torch.device("meta"):
        return engine("cpu")


def engine_without_triton() -> dispatch.Engine:
    with mock.patch.dict(sys.modules, {"triton": None}):
        return engine("cpu")


def engine_with_broken_triton(folder: str) -> dispatch.Engine:
    """A triton that fails to load its own library."""
    package = Path(folder, "triton")
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libtriton.so: wrong ELF class')\n")
    others = {name: module for name, module in sys.modules.items() if name.split(".")[0] != "triton"}
    with mock.patch.dict(sys.modules, others, clear=True), mock.patch.object(sys, "path", [folder, *sys.path]):
        return engine("cpu")


def engine_when(function: str, does: str) -> dispatch.Engine:
    """The engine when one of the two launches raises, leaves its output alone, or writes something wrong."""

    def raises(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify it via the CC environment variable.")

    def nothing(*_: object) -> None:
        pass

    def zeros(*columns: torch.Tensor) -> None:
        columns[-1].zero_()

    kernels: dict[str, launch.Kernel] = {"check_leaves": "check_kernel", "hash_leaves": "hash_kernel"}
    with mock.patch.object(launch, function, {"raises": raises, "nothing": nothing, "zeros": zeros}[does]):
        return engine("cpu", kernels[function])


def engine_when_decoding(does: str) -> dispatch.Engine:
    """The engine for planes when decoding does nothing, calls a right chunk bad, or writes a byte too many."""

    def wrong(chunks: torch.Tensor, bad: torch.Tensor, room: torch.Tensor, *, largest: int) -> None:
        if does == "nothing":
            return
        decode_planes(chunks, bad, room, largest=largest)
        if does == "flags":
            bad[0] = 1
        else:
            ctypes.memset(int(chunks[1, 2] + chunks[1, 3]), 1, 1)

    with mock.patch.object(agrees_with_host, "decode_planes", wrong):
        return engine("cpu", "decode_planes")


def launches_of_two_questions() -> int:
    """How many kernels run when the engine of one device is asked for twice, after the first time."""
    dispatch.engine_for("cpu", "hash_kernel")
    with mock.patch.object(launch, "hash_leaves", side_effect=AssertionError) as spy:
        dispatch.engine_for("cpu", "hash_kernel")
        dispatch.engine_for(torch.device("cpu"), "hash_kernel")
        return spy.call_count


def kernels_that_ran(kernel: launch.Kernel) -> list[str]:
    """What is launched to try a kernel."""
    ran: list[str] = []
    launch_ = launch._launch
    with mock.patch.object(launch, "_launch", lambda name, *columns: (ran.append(name), launch_(name, *columns))):
        assert engine("cpu", kernel).name == "triton"
    return ran


@contextmanager
def _no_launches() -> Iterator[None]:
    """Kernels are compiled for sm_90 where they would be launched, and not loaded: there is no device."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Device:
        """What Triton asks of a driver before it launches."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    def compile_only(function: Any, grid: object) -> Callable[..., object]:
        return lambda *columns, **options: function.run(*columns, grid=grid, warmup=True, **options)

    triton.runtime.driver.set_active(Device())
    with (
        mock.patch.object(triton.compiler.CompiledKernel, "_init_handles"),
        mock.patch.object(triton.JITFunction, "__getitem__", compile_only),
    ):
        yield


def compilations_of(kernel: launch.LeafKernel) -> list[int]:
    """How often a kernel was compiled: ahead, and then for each of the tables that a launch may bring."""
    from fastckpt.kernels import leaf_hash

    with _no_launches():
        binaries = getattr(leaf_hash, kernel).device_caches[0][0]
        launch.compile_kernel(kernel, torch.device("cpu"))
        counts = [len(binaries)]
        for count, first in ((4, 0), (1, 0), (2048, 1), (17, 3)):
            columns = [torch.zeros(count + first, dtype=dtype)[first:] for dtype in launch._COLUMNS[kernel]]
            launch._launch(kernel, *columns)
            counts.append(len(binaries))
    return counts


def compilations_of_planes() -> list[tuple[int, int]]:
    """The same of the two kernels that decode planes."""
    from fastckpt.kernels import planes

    with _no_launches():
        binaries = [kernel.device_caches[0][0] for kernel in (planes.plan_kernel, planes.tile_kernel)]
        compile_planes(torch.device("cpu"))
        counts = [tuple(map(len, binaries))]
        for count, first, largest in ((1, 0, 1), (16, 1, 2**20), (5, 3, 5000)):
            chunks = torch.zeros((count + first, 4), dtype=torch.int64)[first:]
            bad = torch.zeros(count + first, dtype=torch.int32)[first:]
            room = torch.zeros(room_for(count) + first * 4, dtype=torch.uint8)[first * 4 :]
            decode_planes(chunks, bad, room, largest=largest)
            counts.append(tuple(map(len, binaries)))
    return counts


def compile_for(module: str, kernel: str, capability: int) -> dict[str, Any]:
    """Compiles a kernel for sm_<capability> and reports what the machine code uses.

    Registers and stack are what Triton's own cuobjdump reads from the very binary that a launch would load.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastckpt.kernels import leaf_hash, planes

    types = {"addresses": "*i64", "sizes": "*i32", "constants": "*u64", "out": "*i64", "expected": "*i64"}
    types |= {"bad": "*i32", "count": "i32", "chunks": "*i64", "fields": "*i32", "plans": "*i32", "units": "*i32"}
    types |= {"symbols": "*u8", "most": "i32"}
    options = {"plan_kernel": planes.PLAN_OPTIONS, "tile_kernel": planes.TILE_OPTIONS}.get(kernel, leaf_hash.OPTIONS)
    function = getattr({"planes": planes, "leaf_hash": leaf_hash}[module], kernel)
    signature = {name: types[name] for name in function.arg_names}
    source = ASTSource(function, signature)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = Path(os.environ["TRITON_CACHE_DIR"], f"{kernel}_{capability}.cubin")
    cubin.write_bytes(binary.asm["cubin"])

    def cuobjdump(flag: str) -> str:
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        command = [str(tools / "cuobjdump"), flag, str(cubin)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", cuobjdump("-res-usage"))}
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", cuobjdump("-sass"), re.M)
    return {"usage": usage, "instructions": instructions}
