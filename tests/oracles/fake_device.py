"""A device without one: CPU tensors that saves and proofs treat as if no address reached them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

import fastckpt.saving.save
import fastckpt.saving.snapshots
import fastckpt.staging.fetching
from fastckpt import _core
from fastckpt.kernels.dispatch import Engine
from fastckpt.staging.ring import Ring

Memory = torch.Tensor | torch.UntypedStorage


def nbytes_of(memory: Memory) -> int:
    """Bytes of a storage, or of a tensor of bytes."""
    return memory.nbytes() if isinstance(memory, torch.UntypedStorage) else memory.nbytes


def pretend(
    patch: pytest.MonkeyPatch, far: Callable[[Memory], bool] = lambda memory: True, *, ring: Ring | None = None
) -> None:
    """Let the memory that ``far`` names lie on a device, behind slots of ``ring``."""
    for module in (fastckpt.staging.fetching, fastckpt.saving.save, fastckpt.saving.snapshots):
        patch.setattr(module, "on_device", far)
    if ring is not None:
        slots = fastckpt.staging.fetching.ring_slots
        patch.setattr(fastckpt.staging.fetching, "ring_slots", lambda target: slots(target, ring))


def device_engine(patch: pytest.MonkeyPatch) -> None:
    """Let the device have an engine: digests are taken from its own memory, leaf by leaf."""

    def hash_leaves(addresses: torch.Tensor, sizes: torch.Tensor, out: torch.Tensor) -> None:
        for number, (address, size) in enumerate(zip(addresses.tolist(), sizes.tolist(), strict=True)):
            digest = _core.leaf_digests(ctypes.string_at(address, size))
            out[number] = int.from_bytes(digest, "little", signed=True)

    for ask in ("engine_for", "engine_now"):
        patch.setattr(fastckpt.staging.fetching, ask, lambda *_, **__: Engine("triton", "for this test"))
    patch.setattr(fastckpt.staging.fetching, "hash_leaves", hash_leaves)
