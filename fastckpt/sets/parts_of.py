"""What a checkpoint is made of: the states that can be opened by themselves, each under the name of its part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Final, NamedTuple

from fastckpt.foreign.model import ForeignFile
from fastckpt.io.os_errors import exists
from fastckpt.io.source import Source
from fastckpt.sets import accelerate, trainer
from fastckpt.sets.huggingface import model_of
from fastckpt.sets.listing import Listing, read_json
from fastckpt.sets.model import JSON, CheckpointSet, Member
from fastckpt.sets.one_checkpoint import is_one_state
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened


class StatePart(NamedTuple):
    """A state, perhaps in several files.

    Attributes:
        path: The file, or the directory.
        open: Opens it; raises what `fastckpt.load` does.
        several: The files that it is in, where it is more than one.
    """

    path: str
    open: Callable[[], Opened]
    several: CheckpointSet | None = None

    @classmethod
    def of_file(cls, path: str) -> StatePart:
        """One file."""
        return cls(path, partial(open_file, path))


WHOLE: Final = "checkpoint"
"""The part that a checkpoint is which is one state."""
MODEL: Final = "model"


def parts_of(checkpoint: CheckpointSet) -> dict[str, StatePart]:
    """The states of a checkpoint that are there, by what they are in it, the model first.

    Of another program's files the names say that; a model is one, in however many shards and of whatever format.
    """
    if is_one_state(checkpoint):
        return {WHOLE: _set(checkpoint)} | _files(checkpoint.beside, set())
    if checkpoint.is_one_file:
        return {WHOLE: StatePart.of_file(checkpoint.path)}
    parts: dict[str, StatePart] = {}
    taken: set[str] = set()
    model = model_of(Listing(checkpoint.path)) if checkpoint.kind in (trainer.KIND, accelerate.KIND) else None
    if model is not None:
        taken = {member.path for member in model.members}
        parts[MODEL] = _set(model) if is_one_state(model) else StatePart.of_file(model.members[0].path)
    return parts | _files(checkpoint.files, taken)


def _files(members: Iterable[Member], taken: Set[str]) -> dict[str, StatePart]:
    """Each file by its name, but for those that are taken and those that are not there."""
    return {
        member.name: StatePart(member.path, partial(_open_json if member.read_as == JSON else open_file, member.path))
        for member in members
        if member.path not in taken and exists(member.path)
    }


def _set(checkpoint: CheckpointSet) -> StatePart:
    return StatePart(checkpoint.path, lambda: OpenedSet(checkpoint), checkpoint)


def _open_json(path: str) -> OpenedForeign:
    """A JSON file as a state without tensors.

    Raises:
        DamagedError: It is no JSON.
        CheckpointIOError, NotACheckpointError
    """
    source = Source(path)
    try:
        return OpenedForeign(source, ForeignFile(path, "json", source.size, read_json(path), [], []))
    except BaseException:
        source.close()
        raise
