"""Which engine hashes leaves, or decodes chunks, on a device, and why.

The Triton kernels run where Triton can be imported, can compile and launch,
and has been seen to give what the host gives on that very device: a compiler
that is wrong must cause neither false alarms nor false trust. Everywhere else
the answer is "host", with the reason, and never an exception.

Compiling takes seconds, the first time on a machine, and importing Triton a
third of one. So a thread does both, and whoever can begin without the answer
asks again later. The thread launches nothing: a kernel is tried, on 100 KB, in
the thread of whoever asks for it next.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch

from fastckpt.kernels import launch
from fastckpt.kernels.agrees_with_host import agrees_with_host
from fastckpt.kernels.decode_planes import compile_planes
from fastckpt.kernels.launch import Kernel


@dataclass(frozen=True, slots=True)
class Engine:
    """What does it on a device: ``name`` decides, ``why`` is for people."""

    name: Literal["triton", "host"]
    why: str


_OLDEST: Final = (8, 0)
"""Compute capability of Ampere, the oldest that Triton's README lists."""

WORTH_COMPILING: Final = 256 * 1024 * 1024
"""Bytes. The host proves less than this in a twentieth of a second; that is not worth a compiler at work."""

_PATIENCE: Final = 120.0
"""Seconds to wait for a compiler. One kernel took 1.3 to 4.2 s on a busy machine."""

_AT_EXIT: Final = 10.0
"""Seconds that the end of the process waits for compilers: a thread that comes back to an interpreter that is gone
may end the process with a signal."""

_Key = tuple[torch.device, Kernel]


class _Compilation:
    """A kernel that a thread compiles.

    Attributes:
        ended: Set when it is done.
        failure: Then: why it cannot be had, if so.
    """

    def __init__(self, device: torch.device, kernel: Kernel) -> None:
        self.ended = threading.Event()
        self.failure: Engine | None = None
        # A daemon: a compiler that never ends must not keep the process alive.
        threading.Thread(target=self._run, args=(device, kernel), name=f"fastckpt {kernel}", daemon=True).start()

    def _run(self, device: torch.device, kernel: Kernel) -> None:
        try:
            self.failure = _compiled(device, kernel)
        except BaseException as error:
            self.failure = _failed(device, error)
        finally:
            self.ended.set()


_found: Final[dict[_Key, Engine]] = {}
_compiling: Final[dict[_Key, _Compilation]] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    """In a child: the lock may be held by a thread that is not there, and so may those of Triton and of its import."""
    global _lock
    _lock = threading.Lock()
    for key, compilation in list(_compiling.items()):
        if not compilation.ended.is_set():
            del _compiling[key]
            _found[key] = Engine("host", "the process was forked while the kernel was compiled")


def _await_compilers() -> None:
    until = time.monotonic() + _AT_EXIT
    for compilation in list(_compiling.values()):
        compilation.ended.wait(max(0.0, until - time.monotonic()))


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_await_compilers)


def engine_for(device: torch.device | str, kernel: Kernel) -> Engine:
    """The engine that is live on this device; waits until that is known.

    CPU tensors can have the kernels too, in Triton's interpreter, if the
    environment says ``TRITON_INTERPRET=1`` before Triton is imported: that is for tests.
    """
    found = engine_now(device, kernel)
    if found is None:
        key = _key(device, kernel)
        with _lock:
            compilation = _compiling.get(key)
        if compilation is not None:
            compilation.ended.wait(_PATIENCE)
        found = engine_now(device, kernel)
    return found or Engine("host", f"the compiler of triton has not ended within {_PATIENCE:.0f} s")


def engine_now(device: torch.device | str, kernel: Kernel, *, nbytes: int = WORTH_COMPILING) -> Engine | None:
    """What `engine_for` says, if it is known without waiting; None: ask again later.

    Args:
        device: Where leaves lie.
        kernel: What is to be done with them.
        nbytes: How many bytes are. From WORTH_COMPILING on the first question has the kernel compiled.
    """
    key = _key(device, kernel)
    with _lock:
        if key not in _found:
            found = _next_step(key, nbytes)
            if found is None:
                return None
            _found[key] = found
        return _found[key]


def _key(device: torch.device | str, kernel: Kernel) -> _Key:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return device, kernel


def _next_step(key: _Key, nbytes: int) -> Engine | None:
    compilation = _compiling.get(key)
    if compilation is None:
        refused = _refused(key[0])
        if refused is None and nbytes >= WORTH_COMPILING:
            try:
                _compiling[key] = _Compilation(*key)
            except RuntimeError as error:  # No thread can be had.
                return _failed(key[0], error)
        return refused
    if not compilation.ended.is_set():
        return None
    del _compiling[key]
    if compilation.failure is not None:
        return compilation.failure
    try:
        return _tried(*key)
    except Exception as error:  # Whatever a driver or a launcher may raise: the host can always hash.
        return _failed(key[0], error)


def _refused(device: torch.device) -> Engine | None:
    """Why there can be no kernel, as far as that is known at once."""
    if device.type == "cpu" and not os.environ.get("TRITON_INTERPRET"):
        return Engine("host", "in host memory the native core does it")
    if device.type not in ("cpu", "cuda"):
        return Engine("host", f"the kernels are for CUDA devices, not for {device.type}")
    if importlib.util.find_spec("triton") is None:
        return Engine("host", "triton is not installed")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return Engine("host", "torch sees no CUDA device")
        try:
            capability = torch.cuda.get_device_capability(device)
        except (AssertionError, RuntimeError) as error:
            return _failed(device, error)
        if torch.version.hip is None and capability < _OLDEST:
            # Triton's compiler may end the process on these, instead of raising.
            return Engine("host", f"{_name(device)} is older than what triton supports")
    return None


def _compiled(device: torch.device, kernel: Kernel) -> Engine | None:
    """Compile it; why it cannot be had, if so."""
    try:
        import triton

        from fastckpt.kernels import leaf_hash, planes
    except ImportError as error:
        return Engine("host", f"triton cannot be imported: {_brief(error)}")
    # Asked of the kernel, not of the environment: what counts is how it was when Triton was imported.
    function = planes.tile_kernel if kernel == "decode_planes" else getattr(leaf_hash, kernel)
    interpreted = not isinstance(function, triton.JITFunction)
    if interpreted != (device.type == "cpu"):
        return Engine("host", f"triton was imported to {'interpret' if interpreted else 'compile'} kernels")
    if kernel == "decode_planes":
        compile_planes(device)
    else:
        launch.compile_kernel(kernel, device)
    return None


def _tried(device: torch.device, kernel: Kernel) -> Engine:
    """Run it, as loads and saves will, where the outcome is known."""
    import triton

    with _stream_of_its_own(device):
        agrees = agrees_with_host(device, kernel)
    if not agrees:
        what = "decodes wrong" if kernel == "decode_planes" else "gives wrong digests"
        return Engine("host", f"the kernel of triton {triton.__version__} {what} on {_name(device)}")
    return Engine("triton", f"triton {triton.__version__} on {_name(device)}")


def _stream_of_its_own(device: torch.device) -> AbstractContextManager[object]:
    """On the caller's stream it would wait for all that is queued there."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return "the CPU, in its interpreter"
    capability = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{capability[0]}{capability[1]})"


def _failed(device: torch.device, error: BaseException) -> Engine:
    """The first line of a message is enough: compilers write pages."""
    return Engine("host", f"the kernel does not run on {device}: {_brief(error)}")


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
