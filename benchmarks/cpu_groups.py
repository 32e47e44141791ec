"""The groups of the CPU benchmark: jobs that run in turn, because they are compared with each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cpu_peers as peers
import limits
import safetensors.torch
import torch
from bench import Bench, Job, fsync, touch
from cpu_inputs import Inputs

import fastckpt


def memory(bench: Bench, of: Inputs) -> None:
    """What memory itself does."""
    other = limits.touched_memory(of.size)
    copy: dict[str, Job] = {
        "limit: memcpy into touched memory": lambda: limits.copy_memory(other, of.touched, of.threads)
    }
    bench.group(copy, of.size)


def mapped(bench: Bench, of: Inputs) -> None:
    """Warm files through a map: what the call takes, and what the call and the first use take together."""
    jobs: dict[str, Job] = {
        "limit: read the warm map, xxhash": lambda: limits.read_map(of.ours, of.threads),
        "limit: read the warm map, populated, xxhash": lambda: limits.read_map(of.ours, of.threads, populated=True),
        "fastckpt.load(mmap=True)": lambda: fastckpt.load(of.ours, mmap=True),
        "fastckpt.load(mmap=True) + touch": lambda: touch(fastckpt.load(of.ours, mmap=True)),
        "fastckpt.load(mmap=True, verify=False) + touch": lambda: touch(
            fastckpt.load(of.ours, mmap=True, verify=False)
        ),
        "fastckpt.verify": lambda: fastckpt.verify(of.ours),
        "ztensor.verify": lambda: peers.verify_ztensor(of.zt),
        "ztensor.open, verified + touch": lambda: touch(peers.load_ztensor(of.zt, verify=True)),
        "ztensor.open + touch": lambda: touch(peers.load_ztensor(of.zt, verify=False)),
        "torch.load(mmap=True) + touch": lambda: touch(torch.load(of.pt, mmap=True)),
        "safetensors.load_file + touch": lambda: touch(safetensors.torch.load_file(of.st)),
    }
    _ = of.ours, of.zt, of.pt, of.st
    bench.group(jobs, of.nbytes, before=of.settle)


def into(bench: Bench, of: Inputs) -> None:
    """Warm files into memory that is in use."""
    into_state = of.other_state
    bench.group(
        {
            "limit: pread into huge pages in use": lambda: limits.read_file(
                of.ours, [of.touched], of.threads, direct=False
            ),
            "limit: pread into the tensors": lambda: limits.read_file(
                of.ours, of.other_pages, of.threads, direct=False
            ),
            "fastckpt.load_into": lambda: fastckpt.load_into(into_state, of.ours),
        },
        of.nbytes,
        before=of.settle,
    )
    assert torch.equal(into_state["model"]["lm_head.weight"], of.state["model"]["lm_head.weight"])


def fresh(bench: Bench, of: Inputs) -> None:
    """Warm files into memory of one's own."""
    jobs: dict[str, Job] = {
        "limit: pread into fresh huge pages": lambda: limits.read_fresh(of.ours, of.threads, direct=False),
        "fastckpt.load": lambda: fastckpt.load(of.ours),
        "fastckpt.load (.pt, CRCs checked)": lambda: fastckpt.load(of.pt),
        "fastckpt.load (.safetensors)": lambda: fastckpt.load(of.st),
        "safetensors.load_file, copied": lambda: {
            name: tensor.clone() for name, tensor in safetensors.torch.load_file(of.st).items()
        },
        "runai-model-streamer": lambda: peers.load_run_ai(of.st),
        "torch.load": lambda: torch.load(of.pt),
        "dcp.load": lambda: peers.load_dcp(of.state, of.dcp),
        "moonclip.load_latest": lambda: peers.load_moonclip(of.moonclip),
    }
    _ = of.ours, of.pt, of.st, of.dcp, of.moonclip
    bench.group(jobs, of.nbytes, before=of.settle)


def cold(bench: Bench, of: Inputs) -> None:
    """Files that only the disk has."""
    into_state, most = of.other_state, of.many[-1]
    # Each of ours right behind its limit: a disk on a network gives its first seconds faster than those that follow.
    jobs: dict[str, Job] = {
        "limit: O_DIRECT read": lambda: limits.read_file(of.ours, [of.touched], most, direct=True),
        "fastckpt.verify, cold": lambda: fastckpt.verify(of.ours),
        "limit: O_DIRECT read into the tensors": lambda: limits.read_file(of.ours, of.other_pages, most, direct=True),
        "fastckpt.load_into, cold": lambda: fastckpt.load_into(into_state, of.ours),
        "limit: O_DIRECT into fresh huge pages": lambda: limits.read_fresh(of.ours, most, direct=True),
        "fastckpt.load, cold": lambda: fastckpt.load(of.ours),
        "fastckpt.stream, cold": lambda: [None for _ in fastckpt.stream(of.ours)],
        "fastckpt.load (.pt, CRCs checked), cold": lambda: fastckpt.load(of.pt),
        "fastckpt.load (.safetensors), cold": lambda: fastckpt.load(of.st),
        "fastckpt.load(mmap=True) + touch, cold": lambda: touch(fastckpt.load(of.ours, mmap=True)),
        "ztensor.open, verified + touch, cold": lambda: touch(peers.load_ztensor(of.zt, verify=True)),
        "runai-model-streamer, cold": lambda: peers.load_run_ai(of.st),
        "safetensors.load_file + touch, cold": lambda: touch(safetensors.torch.load_file(of.st)),
        "torch.load, cold": lambda: torch.load(of.pt),
    }
    _ = of.ours, of.zt, of.pt, of.st
    bench.group(jobs, of.nbytes, before=of.cool)


def _clean(of: Inputs) -> Callable[[], None]:
    """Before a save: nothing there that an earlier one wrote, nothing left to write."""

    def clean() -> None:
        for path in Path(of.directory).glob("new*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()
        limits.settle(of.size)

    return clean


def durable(bench: Bench, of: Inputs) -> None:
    """Saves that outlive a power cut."""
    new, flat = of.at("new"), of.flat
    jobs: dict[str, Job] = {
        f"limit: O_DIRECT write + fsync, {n} threads": lambda n=n: limits.write_file(  # type: ignore[misc]
            new, of.pages, n, direct=True, sync=True
        )
        for n in of.many
    }
    jobs |= {
        f"limit: hashed, O_DIRECT write + fsync, {n} threads": lambda n=n: limits.write_file(  # type: ignore[misc]
            new, of.pages, n, direct=True, sync=True, hashed=True
        )
        for n in of.many
    }
    jobs |= {
        "fastckpt.save": lambda: fastckpt.save(of.state, new),
        "torch.save + fsync": lambda: (torch.save(of.state, new), fsync(new)),
        "safetensors.save_file + fsync": lambda: (safetensors.torch.save_file(flat, new), fsync(new)),
        "ztensor.Writer + fsync": lambda: (peers.save_ztensor(flat, new), fsync(new)),
        "dcp.save (syncs)": lambda: peers.save_dcp(of.state, of.at("new_dcp")),
        "moonclip.save (syncs)": lambda: peers.save_moonclip(of.state, of.at("new_moonclip")),
    }
    bench.group(jobs, of.nbytes, before=_clean(of))
    _clean(of)()


def buffered(bench: Bench, of: Inputs) -> None:
    """Saves that end in the page cache."""
    new, flat = of.at("new"), of.flat
    jobs: dict[str, Job] = {
        f"limit: buffered pwrite, {n} threads": lambda n=n: limits.write_file(  # type: ignore[misc]
            new, of.pages, n, direct=False, sync=False
        )
        for n in (1, of.threads)
    }
    jobs |= {
        "fastckpt.save(durable=False)": lambda: fastckpt.save(of.state, new, durable=False),
        "torch.save": lambda: torch.save(of.state, new),
        "safetensors.save_file": lambda: safetensors.torch.save_file(flat, new),
        "ztensor.Writer": lambda: peers.save_ztensor(flat, new),
    }
    bench.group(jobs, of.nbytes, before=_clean(of))
    _clean(of)()


def stall(bench: Bench, of: Inputs) -> None:
    """How long a save in the background keeps training waiting; its end is waited for, not timed."""
    stager = peers.dcp_stager()
    jobs: dict[str, Job] = {
        "limit: clone every tensor": lambda: [tensor.clone() for tensor in of.flat.values()],
        "fastckpt.save_async, until it returns": lambda: fastckpt.save_async(of.state, of.at("new.fckpt")),
        "dcp.async_save, until it returns": lambda: peers.save_dcp_async(of.state, of.at("new_dcp"), stager),
    }
    bench.group(
        jobs,
        of.nbytes,
        before=_clean(of),
        after=lambda saving: saving.result() if hasattr(saving, "result") else None,
    )
    _clean(of)()


def convert(bench: Bench, of: Inputs) -> None:
    """A .pt to a .fckpt and back."""
    clean, new, there = _clean(of), of.at("new"), of.at("new.fckpt")

    def convert_with_torch(*, mmap: bool) -> None:
        torch.save(torch.load(of.pt, mmap=mmap), new)
        fsync(new)

    def clean_and_warm() -> None:
        limits.warm(of.pt)
        clean()

    bench.group(
        {
            "fastckpt.convert (.pt, durable)": lambda: fastckpt.convert(of.pt, there),
            "torch.load + torch.save + fsync": lambda: convert_with_torch(mmap=False),
            "torch.load(mmap=True) + torch.save + fsync": lambda: convert_with_torch(mmap=True),
        },
        of.nbytes,
        before=clean_and_warm,
    )
    clean()
    bench.results["convert: peak memory"] = {"bytes": _peak_of_conversion(of.pt, there), "of": of.nbytes}
    back = subprocess.run(["cmp", of.pt, fastckpt.convert(there, of.at("new.pt"))[0].destination], check=False)
    assert back.returncode == 0, "the way back is not exact"
    clean()


def _peak_of_conversion(source: str, destination: str) -> int:
    """Peak resident memory in bytes of a process that converts and does nothing else."""
    # VmHWM starts anew with the program; getrusage's figure is inherited from the parent.
    program = (
        "import sys, fastckpt; fastckpt.convert(sys.argv[1], sys.argv[2]);"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, source, destination], capture_output=True, text=True, check=True
    )
    return int(run.stdout) * 1024


GROUPS: Final[dict[str, Callable[[Bench, Inputs], Any]]] = {
    group.__name__: group for group in (memory, mapped, into, fresh, cold, durable, buffered, stall, convert)
}
"""By name, in the order in which they run."""
