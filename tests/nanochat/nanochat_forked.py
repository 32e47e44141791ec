"""Ranks as processes: ``nanochat_forked.py``, then on each line of its input a JSON object that says what to run.

Importing torch takes longer than all else, so it is imported once, and the
ranks of each run are forked from here, in a process group of their own that can
be killed as a whole. For each run it writes the id of every rank's process,
then, when all have ended, how they ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # Optimizers import it, and it takes longer than torch.
import torch.distributed as dist
from nanochat_builds import meta_of
from nanochat_trainer import MuonAdamW, new_model, resume, train

from fastckpt.nanochat import load_checkpoint, save_checkpoint


def save_loop(rank: int, request: dict[str, Any]) -> None:
    """Save one step after the other until killed. No rank waits for another.

    All tensors of a save hold its number, by which a mix of two would show. The
    steps come again after ``cycle`` saves. What a rank has saved it says in a
    file of its own, which it overwrites in place.
    """
    directory, cycle = Path(request["directory"]), request["cycle"]
    done = os.open(directory / f"rank{rank}", os.O_RDWR | os.O_CREAT)
    number = request["first"]
    while True:
        model = {f"h.{i}": torch.full((40_000,), float(number)) for i in range(6)}
        optimizer = {"state": {i: {"step": number, "exp_avg": torch.full((30_000,), float(number))} for i in range(4)}}
        step = number % cycle if cycle else number
        save_checkpoint(directory, step, model, optimizer, {"step": step, "number": number}, rank=rank)
        os.pwrite(done, number.to_bytes(8, "little"), 0)
        number += 1


def resume_both(rank: int, request: dict[str, Any]) -> None:
    """Train, save as nanochat does and as we do, resume from each for three steps; write what came out."""
    directory, world = Path(request["directory"]), request["ranks"]
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world)
    model = new_model()
    optimizer = MuonAdamW(model)
    list(train(model, optimizer, 0, 3))
    model_pt, optimizer_pt = directory / "model_000003.pt", directory / f"optim_000003_rank{rank}.pt"
    if rank == 0:
        torch.save(model.state_dict(), model_pt)
    torch.save(optimizer.state_dict(), optimizer_pt)
    own = directory / "fckpt"
    save_checkpoint(own, 3, model.state_dict(), optimizer.state_dict(), meta_of(3), rank=rank)
    dist.barrier()
    results: list[Any] = [(list(train(model, optimizer, 3, 3)), model.state_dict(), optimizer.state_dict())]
    for loaded in (
        (torch.load(model_pt), torch.load(optimizer_pt)),
        load_checkpoint(own, 3, torch.device("cpu"), load_optimizer=True, rank=rank)[:2],
    ):
        again, its_optimizer = resume(*loaded)
        losses = list(train(again, its_optimizer, 3, 3))
        results.append((losses, again.state_dict(), its_optimizer.state_dict()))
    torch.save(results, directory / f"out{rank}")
    dist.barrier()
    dist.destroy_process_group()


def other_world(rank: int, request: dict[str, Any]) -> None:
    """Load on another number of ranks, which torch.distributed tells and no variable."""
    directory = Path(request["directory"])
    os.environ.pop("WORLD_SIZE")
    dist.init_process_group("gloo", init_method=f"file://{directory}/other", rank=rank, world_size=request["ranks"])
    try:
        load_checkpoint(directory / "fckpt", 3, "cpu", load_optimizer=True, rank=rank)
    except Exception as error:
        (directory / f"error{rank}").write_text(str(error))
    dist.destroy_process_group()


JOBS: dict[str, Callable[[int, dict[str, Any]], None]] = {
    "save_loop": save_loop,
    "resume_both": resume_both,
    "other_world": other_world,
}


def fork_rank(rank: int, request: dict[str, Any], group: int) -> int:
    child = os.fork()
    if child:
        os.setpgid(child, group or child)
        return child
    code = 1
    try:
        os.setpgid(0, group)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(request["ranks"])}
        JOBS[request["job"]](rank, request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    # Killing a process loses nothing that was written; fsync would only take the time of the tests.
    os.fsync = lambda fd: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        ranks: list[int] = []
        for rank in range(request["ranks"]):
            ranks.append(fork_rank(rank, request, ranks[0] if ranks else 0))
        print(json.dumps(ranks), flush=True)
        print(json.dumps([os.waitpid(child, 0)[1] for child in ranks]), flush=True)


if __name__ == "__main__":
    main()
