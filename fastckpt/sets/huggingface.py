"""Models in several shards, as Hugging Face writes them: an index names the shard of each tensor.

The index is ``NAME.index.json`` with a ``weight_map``; shards are numbered
``NAME-00001-of-00005.safetensors`` (or ``.bin``), so that one that is missing
can be told from its siblings even without the index.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.foreign.suffixes import INDEX_SUFFIX, own_name
from fastckpt.sets.listing import Listing, is_file_name, read_json
from fastckpt.sets.model import CheckpointSet, Member, Problem, kind_of_fault
from fastckpt.text import count_text, some

KIND: Final = "sharded model"
_NUMBERED: Final = r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin|pt|pth|fckpt)"
_SINGLE: Final = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors",
)
_MAX_COUNT: Final = 99_999
_HUB: Final = "if it comes from the Hugging Face Hub, `hf download` its repository's name"


def recognise(listing: Listing) -> list[CheckpointSet]:
    """The sharded models in a directory."""
    found = [read_index(listing, match[0]) for match in listing.matching(".+" + re.escape(INDEX_SUFFIX))]
    named = {os.path.basename(member.path) for checkpoint in found for member in checkpoint.members}
    stems: dict[tuple[str, str], dict[int, set[int]]] = {}
    for match in listing.matching(_NUMBERED):
        if match[0] not in named:
            counts = stems.setdefault((match["stem"], match["suffix"]), {})
            counts.setdefault(int(match["count"]), set()).add(int(match["number"]))
    for (stem, suffix), counts in stems.items():
        # A numbered file that no index names belongs to the set of its stem, if there is one.
        if not any(checkpoint.members and member_stem(checkpoint) == stem for checkpoint in found):
            found += [_by_numbers(listing, stem, suffix, count) for count in counts]
    return found


def member_stem(checkpoint: CheckpointSet) -> str:
    """What the names of the shards begin with."""
    return checkpoint.members[0].name.partition("-0")[0]


def model_of(listing: Listing) -> CheckpointSet | None:
    """The model of a directory that has one among other things: sharded, or a single file; None if there is none."""
    sharded = recognise(listing)
    if sharded:
        return sharded[0]
    for name in (*_SINGLE, *map(own_name, _SINGLE)):
        if name in listing.names:
            return CheckpointSet("model", listing.directory, None, [Member(listing.place(name), "model")])
    return None


def read_index(listing: Listing, name: str) -> CheckpointSet:
    """The model that an index names; what is wrong with the index is a problem of it."""
    path = listing.path(name)
    checkpoint = CheckpointSet(f"{KIND} ({name})", listing.directory)
    try:
        index = read_json(listing.place(name))
    except FastckptError as error:
        checkpoint.problems.append(Problem(kind_of_fault(error), path, f"{name}: {error.message}", next_step=_HUB))
        return checkpoint
    shards = _weight_map(index)
    if shards is None:
        message = f"{name} has no weight_map that gives each tensor the name of a file beside it"
        checkpoint.problems.append(Problem("damaged", path, message, next_step=_HUB))
        return checkpoint
    checkpoint.index = path
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    checkpoint.total_size = total if isinstance(total, int) and not isinstance(total, bool) else None
    names = sorted(shards)
    for number, shard in enumerate(names, 1):
        checkpoint.members.append(Member(listing.place(shard), f"shard {number} of {len(names)}", shards[shard]))
    checkpoint.problems += _left_out(listing, name, names)
    return checkpoint


def _weight_map(index: Any) -> dict[str, list[str]] | None:
    """The tensors of each shard; None if the index does not say it, or names files elsewhere."""
    rows = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(rows, dict) or not rows:
        return None
    shards: dict[str, list[str]] = {}
    for tensor, shard in rows.items():
        if not is_file_name(shard):
            return None
        shards.setdefault(shard, []).append(tensor)
    return shards


def _left_out(listing: Listing, index: str, shards: list[str]) -> list[Problem]:
    """Numbered files beside the shards that the index does not name, though their names say that they belong to it."""
    pattern = {(match["stem"], match["count"], match["suffix"]) for match in map(_numbered, shards) if match}
    problems = []
    for match in listing.matching(_NUMBERED):
        belongs = (match["stem"], match["count"], match["suffix"]) in pattern
        if belongs and match[0] not in shards:
            message = f"{match[0]} is not named by {index}: none of its tensors would be loaded"
            problems.append(Problem("inconsistent", listing.path(match[0]), message))
    for stem, count, suffix in sorted(pattern):
        named = sum(shard.startswith(f"{stem}-") and shard.endswith(f"-of-{count}.{suffix}") for shard in shards)
        if named < int(count) and not problems:
            message = f"{index} names {count_text(named, 'shard')}, though their names say that there are {int(count)}"
            problems.append(Problem("inconsistent", listing.path(index), message))
    return problems


def _numbered(name: str) -> re.Match[str] | None:
    return re.fullmatch(_NUMBERED, name)


def _by_numbers(listing: Listing, stem: str, suffix: str, count: int) -> CheckpointSet:
    """The shards that the numbers of others call for. Nothing says which tensors they have."""
    checkpoint = CheckpointSet(f"{KIND} ({stem}, without an index)", listing.directory)
    there = set(listing.names)
    names = [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, min(count, _MAX_COUNT) + 1)]
    missing = [name for name in names if name not in there]
    if len(missing) > len(names) - len(missing) and len(missing) > 100:
        # Not one problem for each of many thousand names that only a stray file calls for.
        message = f"{count_text(len(missing), 'shard')} of {count} are not there: {some(missing)}"
        checkpoint.problems.append(Problem("missing", listing.directory, message, next_step=_HUB))
        names = [name for name in names if name in there]
    for name in names:
        number = int(name[len(stem) + 1 : len(stem) + 6])
        checkpoint.members.append(Member(listing.place(name), f"shard {number} of {count}"))
    index = f"{stem}.{suffix}{INDEX_SUFFIX}"
    message = f"{index} is not there: nothing tells which tensors the model should have"
    problem = Problem("missing", listing.path(index), message, loss=False, exit_code=1, next_step=_HUB)
    checkpoint.problems.append(problem)
    return checkpoint
