"""What the ranks of a training run decide together: one small number, the same on all of them.

It goes over a process group of its own, on the CPU (gloo): the number never
enters the queue of a GPU, and no rank waits for a kernel to hear it. One
agreement costs the ranks an all-reduce of 8 bytes.
"""

from __future__ import annotations

import sys
from typing import Any


class Agreement:
    """The highest of the numbers that the ranks bring. Without torch.distributed, one's own.

    Every rank asks the same number of times, in the same order. The group is
    made when the first one asks, which all of them do at the same point.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._world: Any = None

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return _world() is None

    def highest(self, value: int) -> int:
        """The highest value of all ranks.

        Raises:
            RuntimeError: Of torch: a rank has gone.
        """
        world = _world()
        if world is None:
            return value
        import torch
        import torch.distributed as dist

        if self._world is not world:
            self._group, self._world = dist.new_group(backend="gloo"), world
        number = torch.tensor([value], dtype=torch.int64, device="cpu")
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number.item())


def _world() -> object:
    """The default process group; None if there is none, or this is its only rank."""
    # A program that has not imported it has not set it up.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    world: object = dist.group.WORLD
    return world
