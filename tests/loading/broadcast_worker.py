"""One process of a group that loads together: ``broadcast_worker.py DIRECTORY RANK WORLD`` (see test_broadcast.py).

Runs every scenario, and writes what came of it to ``DIRECTORY/result.RANK.json``.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from states import everything, same

import fastckpt
from fastckpt.loading import broadcast as sharing

TIMEOUT = datetime.timedelta(seconds=60)
"""After this, who waits in vain gives up: the test fails."""


def main(directory: Path, rank: int, world: int) -> None:
    """Run the scenarios in step with the other processes."""
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'meet'}", rank=rank, world_size=world, timeout=TIMEOUT
    )
    sharing.BUCKET = 256 * 1024
    results: dict[str, Any] = {}
    state = torch.load(directory / "state.pt")

    def run(name: str, work: Callable[[], object]) -> None:
        try:
            results[name] = work()
        except Exception as error:
            results[name] = [type(error).__name__, getattr(error, "message", str(error)), getattr(error, "path", None)]

    def shared(file: str, **options: Any) -> Any:
        return fastckpt.load(directory / file, share="broadcast", **options)

    run("whole", lambda: same(shared("s.fckpt"), state))
    run("encoded", lambda: same(shared("z.fckpt"), state))
    run("foreign", lambda: same(shared("large.pt"), torch.load(directory / "large.pt")))
    run("everything", lambda: same(shared("everything.fckpt"), everything()))
    run("empty", lambda: shared("empty.fckpt"))

    def only_here() -> list[Any]:
        flat = fastckpt.load(directory / "s.fckpt", keys=f"layer.{rank}")
        mine = shared("s.fckpt", keys=[f"layer.{rank}"])
        return [list(mine), same(mine, flat)]

    run("own keys", only_here)
    run("one wants all", lambda: same(shared("s.fckpt", keys=None if rank == 1 else "small.*"), state))
    run("missing key", lambda: shared("s.fckpt", keys="layer.*" if rank else "nothing"))
    run("missing key elsewhere", lambda: shared("s.fckpt", keys="nothing" if rank == world - 1 else "layer.0"))
    run("damaged", lambda: shared("damaged.fckpt"))
    run("missing file", lambda: shared("none.fckpt"))
    run("not here", lambda: shared("s.fckpt" if rank == 0 else "none.fckpt") is not None)

    allocate = sharing._storages

    def no_room(*arguments: Any) -> Any:
        raise MemoryError("no room here")

    sharing._storages = no_room if rank == world - 1 else allocate
    run("no room", lambda: shared("s.fckpt"))
    sharing._storages = allocate
    links = dist.get_backend_config
    dist.get_backend_config = (lambda group: "cuda:nccl") if rank == world - 1 else links
    run("no link", lambda: shared("s.fckpt"))
    dist.get_backend_config = links
    reversed_group = dist.new_group(list(range(1, world)), timeout=TIMEOUT)
    if rank:
        run("group", lambda: same(shared("s.fckpt", group=reversed_group), state))
    else:
        run("group", lambda: shared("s.fckpt", group=reversed_group))
    run("still together", lambda: same(shared("s.fckpt"), state))
    (directory / f"result.{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
