"""A checkpoint that is several files, as its own manifest or the names of its files describe it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypedDict

from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.remote.path import Place

JSON: Final = "JSON"
"""What a member is read as if it is no checkpoint file."""

UNREADABLE: Final = "unreadable"
"""The kind of problem that says nothing about a file: the system could not open or read it."""


def kind_of_fault(error: FastckptError) -> str:
    """The kind of problem that a file is which could not be read as what it should be."""
    return UNREADABLE if isinstance(error, CheckpointIOError) else "damaged"


class Piece(NamedTuple):
    """An archive in a file: a part of a tensor, or an object.

    Attributes:
        name: The flat name of what it is a part of.
        offsets: Where it begins in the tensor; None for an object.
        file: The name of the file that it is in.
        offset: Its first byte in that file.
        length: Its bytes.
        dtype: Its element type; None for an object, or for a part that the tensor does not have.
        sizes: Its extents; None as well.
    """

    name: str
    offsets: tuple[int, ...] | None
    file: str
    offset: int
    length: int
    dtype: str | None = None
    sizes: tuple[int, ...] | None = None


class ShardContent(NamedTuple):
    """What a shard of a set of our own holds: dtype and shape of each part by its key, and the names of all else."""

    parts: Mapping[str, tuple[str, tuple[int, ...]]]
    objects: Sequence[str]


class ProblemFacts(TypedDict):
    kind: str
    path: str
    message: str
    tensors: list[str]
    loss: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a set beyond the damage inside one of its files.

    Attributes:
        kind: ``missing``, ``damaged``, ``inconsistent`` or ``unreadable``.
        path: The file it is about.
        message: One sentence for a person.
        tensors: Flat names of the tensors concerned.
        loss: Whether training or loading cannot go on from this set as it is.
        exit_code: What it makes a command end with.
        next_step: What helps; None if nothing special does.
    """

    kind: str
    path: str
    message: str
    tensors: tuple[str, ...] = ()
    loss: bool = True
    exit_code: int = 2
    next_step: str | None = None

    def as_dict(self) -> ProblemFacts:
        """Plain values, for JSON."""
        return {
            "kind": self.kind,
            "path": self.path,
            "message": self.message,
            "tensors": list(self.tensors),
            "loss": self.loss,
        }


@dataclass(frozen=True, slots=True)
class Member:
    """A file that belongs to a set.

    Attributes:
        place: Where it should be.
        what: What it is: ``shard 2 of 5``, ``optimizer``.
        tensors: Flat names of the tensors that the manifest of the set puts into it; None if it does not say.
        read_as: ``""`` for a checkpoint file, whose bytes are verified; `JSON` for one that only has to be valid.
        pieces: Which archives the manifest says that it has, and where, if it says that.
        content: What the manifest says of a shard of a set of our own; None of any other file.
        root: The root digest that the manifest says it has; ``""`` if it does not.
        is_beside: Whether nothing names it, and it only lies beside the others.
    """

    place: Place
    what: str
    tensors: Sequence[str] | None = None
    read_as: str = ""
    pieces: Sequence[Piece] = ()
    root: str = ""
    content: ShardContent | None = None
    is_beside: bool = False

    @property
    def path(self) -> str:
        """The path of the file."""
        return os.fspath(self.place)

    @property
    def name(self) -> str:
        """The name of the file without its directory."""
        return os.path.basename(self.path)


@dataclass(slots=True)
class CheckpointSet:
    """The files that make one checkpoint.

    Attributes:
        kind: What it is, in words: ``sharded model``, ``Trainer checkpoint``.
        path: The directory (or the one file) that people name when they mean it.
        step: The step of training; None if nothing tells.
        members: The files it should have.
        problems: What the manifest, or the names alone, show to be wrong.
        total_size: Bytes of all tensors, as the manifest says; None if it does not.
        index: The file that says which shard has which tensor; None if there is none that could be read.
        beside: Checkpoint files in its directory that nothing names.
        manifest: What its own manifest says, if it has one that could be read: a `SetManifest`, or a `Metadata`.
    """

    kind: str
    path: str
    step: int | None = None
    members: list[Member] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    total_size: int | None = None
    index: str | None = None
    beside: list[Member] = field(default_factory=list)
    manifest: object = None

    @property
    def is_one_file(self) -> bool:
        """Whether it is one file, and no directory."""
        return [member.path for member in self.members] == [self.path]

    @property
    def files(self) -> list[Member]:
        """All files that have to be undamaged."""
        return [*self.members, *self.beside]
