"""The part of a tensor that a rank holds, without the rest of the memory that it lies in."""

from __future__ import annotations

import ctypes

import torch


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements on a storage of exactly their bytes. In host memory nothing is copied if they lie together.

    `fastckpt.save` keeps whole storages, so that views of one stay views of one;
    of a shard that is a part of a larger buffer it would save all of that.
    """
    # A conjugated or negated view says so beside its bytes: the values are written.
    plain = tensor.detach().resolve_conj().resolve_neg()
    nbytes = plain.numel() * plain.element_size()
    if plain.untyped_storage().nbytes() == nbytes and plain.is_contiguous():
        return plain
    lies_together = plain.device.type == "cpu" and plain.is_contiguous()
    if not lies_together or not nbytes:
        return plain.contiguous().clone()
    memory = (ctypes.c_char * nbytes).from_address(plain.data_ptr())
    vars(memory)["tensor"] = plain  # The memory lives as long as what looks at it.
    return torch.frombuffer(memory, dtype=torch.uint8).view(plain.dtype).view(plain.shape)
