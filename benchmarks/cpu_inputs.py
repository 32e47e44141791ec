"""What the CPU benchmark works on: one large state, and a file of it for each library."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import cpu_peers
import limits
import safetensors.torch
import torch
from bench import flat_tensors
from workloads import gpt_state, state_bytes

import fastckpt
from fastckpt.io.transfer import default_threads


class Inputs:
    """A state of a GPT of some depth; files of it are made when they are first asked for, and stay.

    Attributes:
        directory: Where the files are.
        threads: What fastckpt takes by default.
        many: Counts of threads of which the best makes a limit of the disk.
    """

    def __init__(self, directory: str, depth: int) -> None:
        self.directory, self.depth = directory, depth
        self.threads = default_threads()
        self.many = sorted({self.threads, 2 * self.threads, 4 * self.threads})
        self.in_use: list[str] = []

    def at(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.directory, name)

    @cached_property
    def state(self) -> dict[str, Any]:
        """The state."""
        return gpt_state(self.depth)

    @cached_property
    def other_state(self) -> dict[str, Any]:
        """One of the same shapes and other numbers, to load into."""
        return gpt_state(self.depth, seed=1)

    @cached_property
    def flat(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        return flat_tensors(self.state)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return state_bytes(self.state)

    @cached_property
    def size(self) -> int:
        """Bytes of the .fckpt file, whole pages of which the limits move."""
        return os.path.getsize(self.ours)

    @cached_property
    def touched(self) -> memoryview:
        """As much memory in huge pages, all of them there."""
        return limits.touched_memory(self.size)

    @cached_property
    def pages(self) -> list[memoryview]:
        """The memory that the state itself is in: a disk takes other memory, huge pages above all, at another speed."""
        return limits.whole_pages(self.flat.values())

    @cached_property
    def other_pages(self) -> list[memoryview]:
        """That of the state to load into."""
        return limits.whole_pages(flat_tensors(self.other_state).values())

    @cached_property
    def ours(self) -> str:
        """As a .fckpt."""
        return self._made("state.fckpt", lambda path: fastckpt.save(self.state, path))

    @cached_property
    def pt(self) -> str:
        """As torch saves it."""
        return self._made("state.pt", lambda path: torch.save(self.state, path))

    @cached_property
    def st(self) -> str:
        """As a .safetensors."""
        return self._made("state.safetensors", lambda path: safetensors.torch.save_file(self.flat, path))

    @cached_property
    def zt(self) -> str:
        """As a .zt, where ztensor is installed."""
        return self._made("state.zt", lambda path: cpu_peers.save_ztensor(self.flat, path))

    @cached_property
    def dcp(self) -> str:
        """As a directory of torch.distributed.checkpoint."""
        return self._made("dcp", lambda path: cpu_peers.save_dcp(self.state, path))

    @cached_property
    def moonclip(self) -> str:
        """As a directory of moonclip, where it is installed."""
        return self._made("moonclip", lambda path: cpu_peers.save_moonclip(self.state, path))

    def _made(self, name: str, make: Callable[[str], object]) -> str:
        path = self.at(name)
        if not os.path.exists(path):
            with suppress(ModuleNotFoundError):  # Then the jobs that want it say so.
                make(path)
        # Writers leave pages of different sizes in the page cache, which alone makes reading one file half as fast as
        # another: all are brought in anew, in the same way.
        if os.path.isfile(path):
            limits.evict(path)
            limits.warm(path)
            self.in_use.append(path)
        return path

    def settle(self) -> None:
        """All files in the page cache, and as much memory real as a job may take."""
        # A system short of memory drops cached files that nobody reads: all of them are read again. That may
        # take memory, so it comes first: what the job takes is what was settled last.
        for path in self.in_use:
            limits.warm(path)
        limits.settle(self.size)

    def cool(self) -> None:
        """No file in the page cache, and as much memory real as a job may take."""
        for path in self.in_use:
            limits.evict(path)
        limits.settle(self.size)
