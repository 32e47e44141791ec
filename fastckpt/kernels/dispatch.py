"""Which engine hashes leaves on a device, and why.

The Triton kernels run where Triton can be imported, can compile and launch,
and has been seen to give the right digests on that very device: a compiler
that is wrong must cause neither false alarms nor false trust. Everywhere else
the answer is "host", with the reason, and never an exception.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.transfer import default_threads
from fastckpt.kernels import launch, reference


@dataclass(frozen=True, slots=True)
class Engine:
    """What hashes leaves on a device: ``name`` decides, ``why`` is for people."""

    name: Literal["triton", "host"]
    why: str


_OLDEST: Final = (8, 0)
"""Compute capability of Ampere, the oldest that Triton's README lists."""

_found: Final[dict[torch.device, Engine]] = {}
_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked child: the lock may be held, for as long as a compiler takes, by a thread that is not there."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def engine_for(device: torch.device | str) -> Engine:
    """The engine that is live on this device.

    The first question about a device compiles the kernels (Triton keeps them on disk) and runs them once on 100 KB,
    which waits for the device; after that it is a look-up. CPU tensors can have the kernels too, in Triton's
    interpreter, if the environment says ``TRITON_INTERPRET=1`` before Triton is imported: that is for tests.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    with _lock:
        if device not in _found:
            _found[device] = _find_engine(device)
        return _found[device]


def leaf_digests(data: Tensor) -> Tensor:
    """The digest of every leaf of some contiguous bytes, computed where they are by the engine that is live there.

    Asynchronous with Triton on the current stream of the device. Without it a CPU tensor is hashed by the native core,
    and any other by the reference in torch, which is right and slow.

    Args:
        data: uint8, one dimension, contiguous.

    Returns:
        int64 [ceil(len(data) / 16384)] on the same device, with the bits of the u64.

    Raises:
        ValueError: ``data`` is not uint8, one-dimensional and contiguous.
    """
    if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous():
        raise ValueError(f"leaves are hashed of contiguous bytes, not of {data.dtype} {tuple(data.shape)}")
    if engine_for(data.device).name == "triton":
        return _kernel_digests(data)
    if data.device.type == "cpu":
        return _host_digests(data)
    return reference.leaf_digests(data)


def _find_engine(device: torch.device) -> Engine:
    if device.type == "cpu" and not os.environ.get("TRITON_INTERPRET"):
        return Engine("host", "tensors in host memory are hashed by the native core")
    if device.type not in ("cpu", "cuda"):
        return Engine("host", f"the kernels are for CUDA devices, not for {device.type}")
    try:
        return _try_triton(device)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return Engine("host", "triton is not installed" if missing else f"triton cannot be imported: {_brief(error)}")
    except Exception as error:  # whatever a compiler, a driver or a launcher may raise: the host can always hash
        return Engine("host", f"the kernel does not run on {device}: {_brief(error)}")


def _try_triton(device: torch.device) -> Engine:
    import triton

    from fastckpt.kernels import leaf_hash

    # Asked of the kernel, not of the environment: what counts is how it was when Triton was imported.
    interpreted = not isinstance(leaf_hash.hash_kernel, triton.JITFunction)
    if interpreted != (device.type == "cpu"):
        return Engine("host", f"triton was imported to {'interpret' if interpreted else 'compile'} kernels")
    where = "the CPU, in its interpreter"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        where = f"{torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]})"
        if torch.version.hip is None and capability < _OLDEST:
            # Triton's compiler may end the process on these, instead of raising.
            return Engine("host", f"{where} is older than what triton supports")
    if not _agrees_with_host(device):
        return Engine("host", f"the kernel of triton {triton.__version__} gives wrong digests on {where}")
    return Engine("triton", f"triton {triton.__version__} on {where}")


def _agrees_with_host(device: torch.device) -> bool:
    """Runs both kernels on leaves of every kind: whole and aligned, unaligned, short."""
    # Devices are named here, because torch.set_default_device() may say another.
    generator = torch.Generator("cpu").manual_seed(1)
    sample = torch.randint(0, 256, (6 * LEAF_SIZE + 1000,), dtype=torch.uint8, device="cpu", generator=generator)
    whole, ragged = sample[: 5 * LEAF_SIZE], sample[5 * LEAF_SIZE + 7 :]
    on_device = sample.to(device)
    for part in (whole, ragged):
        start = part.storage_offset()
        there = on_device[start : start + len(part)]
        expected = _host_digests(part)
        if not torch.equal(_kernel_digests(there).cpu(), expected):
            return False
        addresses, sizes = launch.leaf_table(there.data_ptr(), len(there), device=device)
        wrong = torch.zeros_like(expected, dtype=torch.uint8)
        wrong[-1] = 1
        bad = torch.full_like(wrong, 7).to(device)
        launch.check_leaves(addresses, sizes, (expected ^ wrong).to(device), bad)
        if not torch.equal(bad.cpu(), wrong):
            return False
    return True


def _kernel_digests(data: Tensor) -> Tensor:
    addresses, sizes = launch.leaf_table(data.data_ptr(), len(data), device=data.device)
    out = torch.empty(len(addresses), dtype=torch.int64, device=data.device)
    launch.hash_leaves(addresses, sizes, out)
    return out


def _host_digests(data: Tensor) -> Tensor:
    if not len(data):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    memory = (ctypes.c_ubyte * len(data)).from_address(data.data_ptr())
    return torch.frombuffer(bytearray(_core.leaf_digests(memory, default_threads())), dtype=torch.int64)


def _brief(error: BaseException) -> str:
    """The first line of a message: compilers write pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
