"""The files of one step, opened together: its model and the optimizer of every rank.

They are taken only if the step is complete (`fastckpt.nanochat.completeness`)
and every byte of it is as it was written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastckpt.errors import DamagedError, MismatchError, UnsupportedStateError
from fastckpt.nanochat.completeness import StepState, step_state, unread_error
from fastckpt.nanochat.names import META, MODEL, OPTIM, ask_doctor, parse_name
from fastckpt.nanochat.save_mark import SaveMark, parse_mark
from fastckpt.nanochat.scratch import BLOCK, piece_reader
from fastckpt.nanochat.shard_pieces import Shard, ShardRange, Shards
from fastckpt.nanochat.steps import Step, list_numbers
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened


@dataclass(frozen=True, slots=True)
class RankFiles:
    """The open files of a step.

    Attributes:
        step: The step.
        model: Its model.
        meta: The path of its meta file.
        ranks: The optimizer of every rank, in order.
        model_mark: The save mark of the model, if it has one.
        suffix: Of all files, with the dot; ``.fckpt`` if they are of both formats.
        before: Whether they are what the step was before a change that was cut short.
    """

    step: int
    model: Opened
    meta: str
    ranks: Sequence[Opened]
    model_mark: SaveMark | None
    suffix: str
    before: bool

    def shards(self) -> Shards:
        """The optimizer files as the rules take them."""
        return Shards([Shard(file.path, file.tree, file.entries) for file in self.ranks])

    def check_unchanged(self) -> None:
        """Raise DamagedError if a file was written to since it was opened."""
        for file in (self.model, *self.ranks):
            file.require_unchanged(next_step="run this again")


@contextlib.contextmanager
def open_rank_files(step: Step, *, threads: int) -> Iterator[RankFiles]:
    """Open a step that is complete, every byte verified.

    Raises:
        MismatchError: Files are missing or not of one save.
        DamagedError: A file is damaged.
        UnsupportedStateError: It has no optimizer.
        CheckpointIOError
    """
    state = step_state(step, verify=True, threads=threads)
    _check(state)
    paths = {MODEL: "", META: ""}
    optimizers = []
    for path in state.files:
        stem = _parsed(path)
        if stem == OPTIM:
            optimizers.append(path)
        else:
            paths[stem] = path
    with contextlib.ExitStack() as stack:
        model, *ranks = [stack.enter_context(open_file(path)) for path in (paths[MODEL], *optimizers)]
        mark = parse_mark(model.metadata)
        yield RankFiles(step.number, model, paths[META], ranks, mark, state.suffix or ".fckpt", state.before)


def _parsed(path: str) -> str:
    parsed = parse_name(os.path.basename(path))
    assert parsed is not None  # The files of a step are found by their names.
    return parsed[0].role


def _check(state: StepState) -> None:
    directory = os.path.dirname(state.files[0]) if state.files else None
    look = ask_doctor(directory) if directory else None
    if state.unread:
        raise unread_error(state, directory or "")
    if not state.complete:
        kind = DamagedError if state.verified is False else MismatchError
        raise kind(f"step {state.step} is not complete: {'; '.join(state.reasons)}", path=directory, next_step=look)
    if not any(_parsed(path) == OPTIM for path in state.files):
        raise UnsupportedStateError(
            f"step {state.step} was saved without its optimizer: there is nothing to reshard",
            path=directory,
            next_step="load the model; it is the same for any number of ranks",
        )
    if state.missing_ranks:
        raise MismatchError(
            f"the optimizer of rank {list_numbers(state.missing_ranks)} of {state.world_size} was never saved",
            path=directory,
            next_step="resume without the optimizer",
        )


def check_bytes(shards: Shards, files: Sequence[Opened]) -> None:
    """Compare what can only be judged by its bytes.

    Raises:
        MismatchError: Ranks differ where they must not, or rows that stand for no parameter are not zero.
    """
    for pieces in shards.equal:
        for other in pieces[1:]:
            if not _same(pieces[0], other, files):
                raise MismatchError(
                    f"{other.entry.name} differs from that of rank {pieces[0].rank}; all ranks of a save have the same",
                    path=files[other.rank].path,
                    next_step="use the rank files of one and the same save",
                )
    for piece in shards.zero:
        read = piece_reader(piece, files)
        if any(read(start, end) != bytearray(end - start) for start, end in _blocks(piece)):
            raise MismatchError(
                f"{piece.entry.name} is not zero in rows that stand for no parameter",
                path=files[piece.rank].path,
                next_step="resume on as many ranks as saved it, or without the optimizer",
            )


def _same(one: ShardRange, other: ShardRange, files: Sequence[Opened]) -> bool:
    ours, theirs = piece_reader(one, files), piece_reader(other, files)
    return all(ours(start, end) == theirs(start, end) for start, end in _blocks(one))


def _blocks(piece: ShardRange) -> Iterator[tuple[int, int]]:
    size = piece.end - piece.start
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)
