"""What fastckpt runs on here: processor, disk, versions, and what checks bytes on each device.

Only torch knows the devices, and only a kernel that ran there shows that it
runs: both are worth the seconds they take to a person who asks for the engine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypedDict

import fastckpt
from fastckpt.cli.render import columns

if TYPE_CHECKING:
    from fastckpt.kernels.launch import Kernel

_PACKAGES = ("torch", "triton", "zstandard", "xxhash", "safetensors", "isal", "numpy", "rich")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


class DeviceFacts(TypedDict):
    device: str
    engine: str
    why: str


class EngineDocument(TypedDict):
    fastckpt: str
    format_version: int
    python: str
    system: str
    simd: str
    simd_available: list[str]
    cpus: int | None
    threads: int
    huge_pages: str | None
    o_direct: bool | None
    verification: list[DeviceFacts]
    planes: list[DeviceFacts]
    packages: dict[str, str | None]


def engine_facts(path: str | None) -> EngineDocument:
    """The facts; with a file, also whether it can be read past the page cache."""
    from fastckpt import _core
    from fastckpt.io.source import Source
    from fastckpt.io.transfer import default_threads

    direct = None
    if path is not None:
        with Source(path) as source:
            direct = source.direct_fd >= 0
    return {
        "fastckpt": fastckpt.__version__,
        "format_version": _core.FORMAT_VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "simd": _core.simd_level(),
        "simd_available": list(_core.simd_levels()),
        "cpus": os.cpu_count(),
        "threads": default_threads(),
        "huge_pages": _huge_pages(),
        "o_direct": direct,
        "verification": _engines("check_kernel"),
        "planes": _engines("decode_planes"),
        # Asked of the installer's records: a package need not be importable to be reported.
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _engines(kernel: Kernel) -> list[DeviceFacts]:
    """For the CPU and each visible CUDA device, what does it there and why; none without torch."""
    if find_spec("torch") is None:
        return []
    import torch

    from fastckpt.kernels.dispatch import engine_for

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    engines = [engine_for(torch.device(device), kernel) for device in devices]
    return [
        {"device": device, "engine": engine.name, "why": engine.why}
        for device, engine in zip(devices, engines, strict=True)
    ]


def _huge_pages() -> str | None:
    try:
        with open(_HUGE_PAGES, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0] or None
    except (OSError, ValueError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def engine_lines(facts: EngineDocument) -> Iterator[str]:
    """The facts as text."""
    direct = {None: "not tested: name a file to test where it lies", True: "works", False: "does not work here"}
    rows = [
        ["fastckpt", f"{facts['fastckpt']}, format version {facts['format_version']}"],
        ["python", f"{facts['python']} on {facts['system']}"],
        ["simd", f"{facts['simd']} (available: {', '.join(facts['simd_available'])})"],
        ["threads", f"{facts['threads']} of {facts['cpus']} CPUs"],
        ["huge pages", facts["huge_pages"] or "not known"],
        ["O_DIRECT", direct[facts["o_direct"]]],
    ]
    rows += [[f"verify, {on['device']}", f"{on['engine']}: {on['why']}"] for on in facts["verification"]]
    rows += [[f"planes, {on['device']}", f"{on['engine']}: {on['why']}"] for on in facts["planes"]]
    rows += [[name, version or "not installed"] for name, version in facts["packages"].items()]
    yield from columns(rows, indent=0)
