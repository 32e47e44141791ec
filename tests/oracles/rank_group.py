"""Processes that are the ranks of a distributed program: started once, given many jobs, over gloo on the CPU.

A script that is a rank calls `serve` with its jobs. The tests start `RankGroup` with it, and `run` a job on all ranks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import forked

_ANSWER = "answer: "


class RankFailed(AssertionError):
    """What went wrong in a rank."""


class RankGroup:
    """So many ranks; a context manager that ends them.

    Args:
        script: A file that calls `serve` with its arguments.
        world: How many.
    """

    def __init__(self, script: Path, world: int) -> None:
        self.world = world
        self.is_closed = False
        self._directory = tempfile.TemporaryDirectory(prefix="ranks-")
        store = os.path.join(self._directory.name, "store")
        self._ranks = [forked.Forked(str(script), str(rank), str(world), store) for rank in range(world)]

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def strange_pickles(self) -> Path:
        """Where processes that the ranks start write what they see of `unpickling`; missing if that is nothing."""
        return Path(self._directory.name, "pickles")

    def run(self, job: str, **arguments: Any) -> list[Any]:
        """Run a job on all ranks; what each of them returns. After a failure the group is of no use any more."""
        for rank in self._ranks:
            rank.stdin.write(json.dumps({"job": job, "arguments": arguments}) + "\n")
            rank.stdin.flush()
        answers = [self._answer(rank) for rank in self._ranks]
        wrong = [answer["error"] for answer in answers if "error" in answer]
        if wrong:
            self.close()
            raise RankFailed("\n".join(wrong))
        return [answer["value"] for answer in answers]

    def _answer(self, rank: forked.Forked) -> dict[str, Any]:
        for line in rank.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        return {"error": f"a rank is dead: {rank.communicate(10)[1][-2000:]}"}

    def close(self) -> None:
        """End all ranks."""
        if self.is_closed:
            return
        self.is_closed = True
        for rank in self._ranks:
            rank.stdin.close()
        for rank in self._ranks:
            try:
                rank.wait(10)
            except TimeoutError:
                rank.kill()
                rank.wait(10)
        self._directory.cleanup()


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """Be a rank: ``sys.argv`` is its number, how many there are, and the file in which they meet."""
    import torch
    import torch.distributed as dist

    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # For what torch starts itself: the processes of an async save.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    meeting = f"file://{store}"
    dist.init_process_group("gloo", meeting, timeout=timedelta(seconds=60), rank=rank, world_size=world)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": jobs[request["job"]](**request["arguments"])}
        except BaseException:
            answer = {"error": f"rank {rank}: {traceback.format_exc()}"}
        print(f"{_ANSWER}{json.dumps(answer)}", flush=True)
    dist.destroy_process_group()
