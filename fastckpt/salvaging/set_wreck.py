"""A damaged checkpoint of several files as one wreck: its tensors put together, with holes where pieces are lost."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import UNSETTLED, Finding, Kind
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.prefixes import with_names
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors, tensors_below
from fastckpt.salvaging.healed_view import healed_view
from fastckpt.salvaging.set_fragments import NOT_OF_THIS_SAVE, Box, Fragment, Outline, Wanted, box_at, fragments
from fastckpt.salvaging.set_spool import SetSpool
from fastckpt.sets import dcp, own
from fastckpt.sets.dcp_metadata import GlobalTensor, uncovered
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.nesting import nested
from fastckpt.sets.part_bytes import runs
from fastckpt.surveying.fates import THERE, Status
from fastckpt.surveying.holes import Hole, merge_holes
from fastckpt.surveying.wreck import StorageState, Wreck
from fastckpt.text import quoted, some

_MOST_HOLES: Final = 100_000
"""Holes of one tensor that are told apart; of more, all between the first and the last counts as lost."""


@dataclass(slots=True)
class _Whole:
    """A tensor that is put together, and why pieces of it are not there."""

    described: GlobalTensor
    state: StorageState
    missing: dict[Box, str]
    is_wrong: bool
    """Whether its pieces do not make it, however many are there."""


class SetWreck:
    """Takes what the files of one checkpoint still hold.

    Args:
        checkpoint: Its files.
        outline: What should be in them.
        spool: Takes the tensors; None if only their fates are wanted.
        threads: Worker threads.
        progress: Called with the bytes of the files that are done.
    """

    def __init__(
        self,
        checkpoint: CheckpointSet,
        outline: Outline,
        spool: SetSpool | None,
        *,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.outline = outline
        self.spool = spool
        self.threads = threads
        self.progress = progress
        structure = "like" if outline.is_other else "from shards" if outline.is_of_shards else "whole"
        self.wreck = Wreck(checkpoint.path, checkpoint.kind, 0, structure=structure)
        self.wreck.is_open = outline.is_of_shards
        # Its tensors have their places in the spool only.
        self.wreck.is_inflated = True
        self.nodes: dict[str, Any] = {}
        self.wholes: dict[str, _Whole] = {}
        for name, tensor in outline.tensors.items():
            self.nodes[name], state = self._add(
                Entry(name, tensor.dtype, tensor.shape, contiguous_stride(tensor.shape), 0, 0)
            )
            wrong = uncovered(tensor)
            if wrong is None:
                missing = {box_at(*chunk): "nothing says where it is" for chunk in tensor.chunks}
            else:
                missing = {box_at([0] * len(tensor.shape), tensor.shape): f"the manifest is wrong: {wrong}"}
            self.wholes[name] = _Whole(tensor, state, missing, wrong is not None)

    def run(self) -> Wreck:
        """All of it: the wreck, whose tensors are in the spool."""
        members = {member.name: self._where_it_is(member) for member in self.checkpoint.members}
        for name, wanted in self.outline.wanted.items():
            member = members.get(name) or Member(os.path.join(self.checkpoint.path, name), "shard")
            self._take_file(member, wanted)
            if os.path.isfile(member.path):
                self.wreck.size += os.path.getsize(member.path)
            if self.progress is not None:
                self.progress(self.wreck.size)
        for name in self.outline.unknown:
            message = f"{name} cannot be read, and nothing else says what it holds"
            self.wreck.findings.append(Finding(Kind.MISSING, message, 0, 0))
        for name, whole in self.wholes.items():
            if whole.missing:
                self._say_what_is_lost(name, whole)
        if self.checkpoint.kind == dcp.KIND:
            # Their archives are proven one by one; nothing in them tells one save from another of the same shapes, and
            # nothing proves the manifest, which alone says what they are.
            self.wreck.unsettled = UNSETTLED
            self.wreck.findings.append(Finding(Kind.UNPROVEN, UNSETTLED, 0, 0, loss=False))
        for problem in self.checkpoint.problems:
            kind = Kind.MISSING if problem.kind == "missing" else Kind.INCONSISTENT
            self.wreck.findings.append(Finding(kind, problem.message, 0, 0, tensors=problem.tensors, loss=problem.loss))
        self.wreck.tree = nested(self.outline.paths, self.nodes)
        self.wreck.entries = with_names(self.wreck.entries, self.wreck.tree)
        return self.wreck

    def _add(self, entry: Entry) -> tuple[TensorRef, StorageState]:
        """A whole tensor, on a storage of its own."""
        offset = self.spool.reserve(entry.nbytes) if self.spool is not None else None
        state = StorageState(entry.nbytes, offset, proven=True)
        self.wreck.storages.append(state)
        flags = entry.flags & ~(ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)
        own = entry._replace(stride=contiguous_stride(entry.shape), storage_offset=0, flags=flags)
        self.wreck.entries.append(own._replace(storage=len(self.wreck.storages) - 1))
        return TensorRef(len(self.wreck.entries) - 1), state

    # --- what is there ----------------------------------------------------------

    def _where_it_is(self, member: Member) -> Member:
        """A shard that is in the directory under the name of another one, by its root digest, under that name."""
        if not member.root or self._roots.get(member.path) == member.root:
            return member
        path = next((path for path, root in self._roots.items() if root == member.root), None)
        if path is None:
            return member
        message = f"{member.name} ({member.what}) is here as {os.path.basename(path)}"
        self.wreck.findings.append(Finding(Kind.INCONSISTENT, message, 0, 0, loss=False))
        return replace(member, place=path)

    @cached_property
    def _roots(self) -> dict[str, str]:
        """The root digest of each file of a set of our own whose end is whole."""
        roots: dict[str, str] = {}
        for member in self.checkpoint.members if self.checkpoint.kind == own.KIND else ():
            with suppress(FastckptError), Source(member.path) as source:
                roots[member.path] = CheckpointFile(source).footer.root.hex()
        return roots

    def _take_file(self, member: Member, wanted: Sequence[Wanted]) -> None:
        waiting = dict.fromkeys(wanted)
        label = f"{member.name} ({member.what})"
        try:
            with ExitStack() as stack:
                source = self._healed(stack.enter_context(Source(member.path)), label, stack)
                is_other = self.outline.is_other
                for found in fragments(source, member, wanted, is_other=is_other, threads=self.threads):
                    del waiting[found.wanted]
                    if found.status not in THERE:
                        self._lose(found.wanted, f"{label}: {found.reason}")
                    elif found.wanted.name in self.wholes:
                        self._take(source, found)
                    else:
                        self._take_object(source, found)
                source.require_unchanged(next_step="salvage it again")
        except FastckptError as error:
            unread = isinstance(error, CheckpointIOError) and os.path.exists(member.path)
            kind = Kind.UNREADABLE if unread else Kind.MISSING
            names = tuple(dict.fromkeys(each.name for each in waiting))
            self.wreck.findings.append(Finding(kind, f"{label}: {error.message}", error.offset or 0, 0, tensors=names))
            for each in waiting:
                self._lose(each, f"{label}: {error.message}")

    def _healed(self, source: Source, label: str, stack: ExitStack) -> Source:
        """A file with all that its parity heals, for as long as ``stack``."""
        view = healed_view(source, self.spool.path if self.spool is not None else None, stack, threads=self.threads)
        self.wreck.healed += [replace(found, message=f"{label}: {found.message}") for found in view.healed]
        self.wreck.notes += [f"{label}: {note}" for note in view.notes]
        if view.heals_all:
            self.wreck.repairs.append(f"fastckpt repair {quoted(source.path)}")
        return view.source

    def _take(self, source: Source, fragment: Fragment) -> None:
        whole, box, entry = self.wholes[fragment.wanted.name], fragment.wanted.box, fragment.entry
        if whole.is_wrong:
            return
        if box is None or entry is None or entry.dtype != whole.described.dtype:
            self._lose(fragment.wanted, "what is there is not what the manifest says")
            return
        whole.missing.pop(box, None)
        if fragment.status is Status.UNVERIFIED:
            whole.state.proven, whole.state.reason = False, whole.state.reason or fragment.reason
            if fragment.reason == NOT_OF_THIS_SAVE:
                self.wreck.unsettled = UNSETTLED
        self._copy(source, fragment.wreck, entry, whole.state, whole.described.shape, [first for first, _ in box])

    def _take_object(self, source: Source, fragment: Fragment) -> None:
        refs: dict[int, TensorRef] = {}
        for number in tensors_below(fragment.node):
            entry = fragment.wreck.entries[number]
            refs[number], state = self._add(entry)
            state.proven = fragment.status is Status.INTACT
            self._copy(source, fragment.wreck, entry, state, entry.shape, [0] * len(entry.shape))
        self.nodes[fragment.wanted.name] = map_tensors(fragment.node, lambda ref: refs[ref.entry])
        self.wreck.opaque += fragment.wreck.opaque

    def _copy(
        self,
        source: Source,
        wreck: Wreck,
        entry: Entry,
        state: StorageState,
        shape: Sequence[int],
        start: Sequence[int],
    ) -> None:
        if self.spool is not None and state.offset is not None:
            self.spool.copy(source, wreck, entry, state.offset, shape, start)

    # --- what is not ------------------------------------------------------------

    def _lose(self, wanted: Wanted, reason: str) -> None:
        if wanted.name not in self.wholes:
            self.wreck.findings.append(Finding(Kind.MISSING, f"{wanted.name} is lost; {reason}", 0, 0))
            self.wreck.lost_values.append(wanted.name)
        elif wanted.box is not None and not self.wholes[wanted.name].is_wrong:
            self.wholes[wanted.name].missing[wanted.box] = reason

    def _say_what_is_lost(self, name: str, whole: _Whole) -> None:
        """Which pieces of a tensor are lost, why, and where they are in its bytes."""
        itemsize = BY_NAME[whole.described.dtype].itemsize
        runs = [run for box in whole.missing for run in _ranges(box, whole.described.shape)]
        if len(runs) > _MOST_HOLES:
            runs = [(min(first for first, _ in runs), max(end for _, end in runs))]
        whole.state.holes = merge_holes(Hole(a * itemsize, b * itemsize, Kind.MISSING) for a, b in runs if b > a)
        pieces = [f"[{','.join(f'{first}:{end}' for first, end in box)}]" for box in whole.missing if box]
        what = f"{some(pieces)} of it {'is' if len(pieces) == 1 else 'are'}" if pieces else "it is"
        whole.state.reason = f"{what} lost; {some(list(dict.fromkeys(whole.missing.values())), 2)}"
        self.wreck.findings.append(Finding(Kind.MISSING, f"{name}: {whole.state.reason}", 0, 0, tensors=(name,)))


def _ranges(box: Box, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The elements of a part of a tensor, as ranges in row-major order; of too many, one from the first to the last."""
    lows, sizes = [a for a, _ in box], [b - a for a, b in box]
    count = 0
    for found in runs(shape, lows, sizes, 1, 0, math.prod(shape)):
        count += found.times
        if count > _MOST_HOLES:
            break
    if count > _MOST_HOLES:
        strides = contiguous_stride(tuple(shape))
        last = sum((b - 1) * stride for (_, b), stride in zip(box, strides, strict=True))
        yield sum(a * stride for a, stride in zip(lows, strides, strict=True)), last + 1
        return
    for found in runs(shape, lows, sizes, 1, 0, math.prod(shape)):
        for number in range(found.times):
            begin = found.whole + number * found.step
            yield begin, begin + found.size
