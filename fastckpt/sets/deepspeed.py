"""What DeepSpeed writes: ``latest`` names a directory, which has a file for each rank of each kind.

``mp_rank_MM_model_states.pt`` has the model of a tensor-parallel rank and says
how many data-parallel ranks there were; ``zero_pp_rank_R_mp_rank_MM_optim_states.pt``
is the share of the optimizer that one of these had.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from fastckpt.errors import FastckptError
from fastckpt.io.there import read_whole
from fastckpt.remote.path import Place
from fastckpt.sets.expected_ranks import expected_ranks
from fastckpt.sets.files_beside import files_beside
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet, Member, Problem, kind_of_fault
from fastckpt.stored.open_file import open_file

KIND: Final = "DeepSpeed checkpoint"
LATEST: Final = "latest"
_MODEL: Final = r"(?:mp_rank_(\d+)|zero_pp_rank_(\d+)_mp_rank_(\d+))_model_states\.pt"
_OPTIM: Final = r"(?P<start>(?:bf16_)?zero_pp_rank_)(?P<rank>\d+)(?P<middle>_mp_rank_)(?P<mp>\d+)_optim_states\.pt"
_OPTIM_START: Final = "zero_pp_rank_"
_MAX_NAME: Final = 4096


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The steps below a directory, or the one step if the directory is one."""
    if listing.matching(_MODEL) or listing.matching(_OPTIM):
        return [_step(listing)]
    inner = [listing.inner(name) for name in listing.directories]
    steps = [step for step in inner if step.matching(_MODEL) or step.matching(_OPTIM)]
    found = sorted(map(_step, steps), key=lambda step: -1 if step.step is None else step.step)
    if found and LATEST in listing.names:
        problem = _check_latest(listing)
        if problem is not None:
            found[-1].problems.append(problem)
    return found


def _check_latest(listing: Listing) -> Problem | None:
    """``latest`` must name a directory that is there: DeepSpeed loads from the one that it names."""
    path = listing.path(LATEST)
    try:
        named = read_whole(listing.place(LATEST), limit=_MAX_NAME).decode(errors="replace").strip()
    except FastckptError as error:
        return Problem(kind_of_fault(error), path, f"`latest` cannot be read: {error.message}")
    if named in listing.directories:
        return None
    return Problem("missing", path, f"`latest` names {named[:80]!r}, which is not there")


def _step(listing: Listing) -> CheckpointSet:
    number = re.search(r"(\d+)$", listing.name)
    checkpoint = CheckpointSet(KIND, listing.directory, int(number[1]) if number is not None else None)
    models = listing.matching(_MODEL)
    optims = listing.matching(_OPTIM)
    said = _said_by([listing.place(match[0]) for match in models])
    named = {match[1] or match[3] for match in models} | {match["mp"] for match in optims}
    width = len(min(named))
    tensor_ranks = [f"{rank:0{width}d}" for rank in expected_ranks({int(rank) for rank in named}, said.tensor_ranks)]
    sharded = any(match[1] is None for match in models)
    seen = {int(match["rank"]) for match in optims} | {int(match[2]) for match in models if match[2] is not None}
    ranks = expected_ranks(seen, said.data_ranks)
    count = max(said.data_ranks, len(ranks))
    start = optims[0]["start"] if optims else _OPTIM_START if said.has_shares else ""
    for number_of_rank in tensor_ranks:
        if not sharded:
            name = f"mp_rank_{number_of_rank}_model_states.pt"
            checkpoint.members.append(Member(listing.place(name), f"model, tensor-parallel rank {number_of_rank}"))
        for rank in ranks:
            if sharded:
                name = f"zero_pp_rank_{rank}_mp_rank_{number_of_rank}_model_states.pt"
                checkpoint.members.append(Member(listing.place(name), f"model, rank {rank} of {count}"))
            if start:
                name = f"{start}{rank}_mp_rank_{number_of_rank}_optim_states.pt"
                checkpoint.members.append(Member(listing.place(name), f"optimizer, rank {rank} of {count}"))
    # Of a pipeline the layers, of a mixture the experts and their optimizers.
    checkpoint.beside = files_beside(listing, checkpoint.members)
    return checkpoint


class _Said(NamedTuple):
    """What a model file says of the run: how many ranks of each kind, and whether each has a share of the optimizer."""

    data_ranks: int = 0
    tensor_ranks: int = 0
    has_shares: bool = False


def _said_by(places: list[Place]) -> _Said:
    """What the first of the model files says that can be read; nothing if none can."""
    for place in places:
        try:
            with open_file(place) as opened:
                tree = opened.tree
        except FastckptError:
            continue  # Said when its bytes are looked at.
        if isinstance(tree, dict) and "dp_world_size" in tree:
            config = tree.get("ds_config")
            zero = config.get("zero_optimization") if isinstance(config, dict) else None
            stage = zero.get("stage") if isinstance(zero, dict) else None
            return _Said(
                _count(tree["dp_world_size"]),
                _count(tree.get("mp_world_size")),
                tree.get("optimizer") is None and type(stage) is int and stage > 0,
            )
    return _Said()


def _count(stated: object) -> int:
    return stated if type(stated) is int and 0 < stated < 10**6 else 0
