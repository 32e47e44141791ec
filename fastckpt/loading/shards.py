"""A model in shards as one flat dict; of some tensors, only their shards are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fastckpt.io.open_source import open_source
from fastckpt.layout.selection import select_names
from fastckpt.sets.contents import names_in
from fastckpt.sets.judge import tensors_in
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.require_sound import require_indexed, require_manifest, require_there


def load_shards(
    checkpoint: CheckpointSet, keys: str | Iterable[str] | None, load_file: Callable[..., Any]
) -> dict[str, torch.Tensor]:
    """The tensors of all shards in their order, or of those that ``keys`` name; ``load_file`` reads a shard.

    Raises:
        DamagedError: A shard that is needed is missing, damaged, or does not hold what the index says.
        TensorNotFoundError: A key matches no tensor.
    """
    wanted = keys if keys is None or isinstance(keys, str) else list(keys)
    if wanted is None:
        require_manifest(checkpoint)
        require_there(checkpoint, checkpoint.members)
    by_shard: dict[str, Member] = {}
    names: list[str] = []
    for member in checkpoint.members:
        own = member.tensors if member.tensors is not None else names_in(member)
        names += own
        by_shard |= dict.fromkeys(own, member)
    chosen = names if wanted is None else select_names(names, wanted, checkpoint.path)
    state: dict[str, torch.Tensor] = {}
    for member in checkpoint.members:
        own = [name for name in chosen if by_shard[name] is member]
        if not own:
            continue
        require_there(checkpoint, [member])
        with open_source(member.place) as source:
            there = tensors_in(source)
            require_indexed(own, there, member.path, whole=wanted is None)
            # A shard that is wanted whole is read as a whole: nothing has to be looked up by name.
            loaded = load_file(source, keys=None if len(own) == len(there) else own)
            state |= loaded if isinstance(loaded, dict) else {}
    return {name: state[name] for name in chosen}
