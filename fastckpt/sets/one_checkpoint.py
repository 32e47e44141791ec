"""The one checkpoint of several files that a directory is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from fastckpt.errors import NotACheckpointError, UsageError
from fastckpt.remote.path import Place
from fastckpt.sets import dcp, huggingface, own
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.recognise import recognise_steps
from fastckpt.text import quoted, some

_PREFERRED: Final = {".fckpt": 0, ".safetensors": 1}
"""As transformers does it, but for the format that proves every byte."""


def is_one_state(checkpoint: CheckpointSet) -> bool:
    """Whether its files together are one state: a model in shards, pieces, or a set of our own."""
    return checkpoint.kind.startswith(huggingface.KIND) or checkpoint.kind in (dcp.KIND, own.KIND)


def one_checkpoint(directory: Place) -> CheckpointSet:
    """The checkpoint in a directory whose files together are one state.

    Raises:
        UsageError: It holds several checkpoints, or files of several kinds.
        NotACheckpointError: It holds none.
    """
    found = recognise_steps(directory)
    one = found[0] if len(found) == 1 else _same_model(found)
    if one is not None and is_one_state(one):
        return one
    if not found:
        raise NotACheckpointError(
            "this is a directory, and no checkpoint of several files",
            path=directory,
            next_step=f"name a file in it; fastckpt inspect {quoted(os.fspath(directory))} shows what there is",
        )
    # The newest checkpoint comes first, and of one the model.
    paths = [member.path for member in one.members] if one is not None else [each.path for each in found[::-1]]
    what = f"a {one.kind}: several files" if one is not None else f"a directory of {len(found)} checkpoints"
    raise UsageError(f"this is {what}", path=directory, next_step=f"name one: {some(map(quoted, paths))}")


def _same_model(found: Sequence[CheckpointSet]) -> CheckpointSet | None:
    """Of one model that is there in several formats, the one that is proven best; None if these are several models."""
    names = [{name for member in each.members for name in member.tensors or ()} for each in found]
    if not names or not names[0] or any(each != names[0] for each in names):
        return None
    suffixes = [os.path.splitext(each.members[0].path)[1] for each in found]
    return min(zip(suffixes, found, strict=True), key=lambda pair: _PREFERRED.get(pair[0], len(_PREFERRED)))[1]
