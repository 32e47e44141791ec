"""Whether a checkpoint of several files is whole: all there, every byte as its format can prove it, all as named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG, SET_NAME, SET_OBJECTS, SET_TENSORS
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Kind, Report, VerifiedFile
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.safetensors_table import read_table
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.open_source import open_source
from fastckpt.io.source import Source
from fastckpt.io.there import is_there
from fastckpt.io.transfer import Progress
from fastckpt.layout.tree import TensorRef
from fastckpt.sets.items_of import items_of
from fastckpt.sets.listing import read_json
from fastckpt.sets.model import (
    JSON,
    UNREADABLE,
    CheckpointSet,
    Member,
    Problem,
    ProblemFacts,
    ShardContent,
    kind_of_fault,
)
from fastckpt.stored.verify import verify_source
from fastckpt.text import count_text, some
from fastckpt.verdicts import Verdict

NOT_WHOLE: Final = "not whole"
UNREAD: Final = "not read"
"""Instead, where the system could not read a part of it, which may be whole."""


class SetDocument(TypedDict):
    path: str
    kind: str
    step: int | None
    verdict: str
    of_one_save: bool
    unproven: int
    files: list[VerifiedFile]
    problems: list[ProblemFacts]
    exit_code: int
    next: str | None


@dataclass(slots=True)
class SetReport:
    """What was found about a set.

    Attributes:
        checkpoint: The set.
        files: The report on each of its files that could be read as a checkpoint.
        problems: What is wrong beside the findings in these.
    """

    checkpoint: CheckpointSet
    files: list[Report] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if it is whole; otherwise that of the worst of its files and problems."""
        return max([*(report.exit_code for report in self.files), *(each.exit_code for each in self.problems), 0])

    @property
    def is_whole(self) -> bool:
        """Whether every file is there, no byte that can be proven is wrong, and all is as the manifest says."""
        return self.exit_code == 0

    @property
    def is_of_one_save(self) -> bool:
        """Whether it is whole and proven to be of one save: it is one file, or its manifest has the digest of each."""
        members = [member for member in self.checkpoint.files if member.name != SET_NAME]
        is_one = len(members) == 1 and not members[0].pieces
        return self.is_whole and (is_one or all(member.root for member in members))

    @property
    def unread(self) -> list[Problem]:
        """What the system could not read: nothing says that it is not whole."""
        inside = [
            Problem(UNREADABLE, file.path, finding.message, finding.tensors)
            for file in self.files
            for finding in file.findings
            if finding.kind is Kind.UNREADABLE
        ]
        return [problem for problem in self.problems if problem.kind == UNREADABLE] + inside

    @property
    def unproven(self) -> int:
        """How many files have no checksum for every byte: they are present, and not proven."""
        return sum(report.verdict is Verdict.PRESENT for report in self.files)

    @property
    def reasons(self) -> list[str]:
        """Why it is not whole: a sentence for each file, with its path and its tensors."""
        said = [f"{problem.path}: {problem.message}" for problem in self.problems]
        for file in self.files:
            if not file.ok:
                what = file.findings[0].message
                names = some(name for name in file.damaged_tensors if name not in what)
                said.append(f"{file.path}: {what}{f' ({names})' if names else ''}")
        return said

    @property
    def next_step(self) -> str | None:
        """The command that helps."""
        for each in self.problems:
            if each.next_step is not None:
                return each.next_step
        return next((report.next_step for report in self.files if report.next_step is not None), None)

    def as_dict(self) -> SetDocument:
        """Plain values, for JSON."""
        return {
            "path": self.checkpoint.path,
            "kind": self.checkpoint.kind,
            "step": self.checkpoint.step,
            "verdict": Verdict.WHOLE.value if self.is_whole else UNREAD if self.unread else NOT_WHOLE,
            "of_one_save": self.is_of_one_save,
            "unproven": self.unproven,
            "files": [report.as_dict() for report in self.files],
            "problems": [problem.as_dict() for problem in self.problems],
            "exit_code": self.exit_code,
            "next": self.next_step,
        }


def judge(checkpoint: CheckpointSet, *, threads: int, progress: Progress | None = None) -> SetReport:
    """Read every byte of every file of a set, and compare what they hold with what the manifest says.

    What the system could not read is a problem of the kind `UNREADABLE`. ``progress`` counts from 0 for each file.
    """
    report = SetReport(checkpoint, [], list(checkpoint.problems))
    held: dict[str, list[Member]] = {}
    total = 0
    twins: dict[str | None, str] = {member.root: member.what for member in checkpoint.members if member.root}
    for member in checkpoint.files:
        looked_at = _look_at(member, twins, threads, progress)
        report.problems += looked_at.problems
        if looked_at.report is not None:
            report.files.append(looked_at.report)
        for name in () if member.is_beside else looked_at.tensors:
            held.setdefault(name, []).append(member)
        total += 0 if member.is_beside else looked_at.nbytes
    if not report.problems and all(file.ok for file in report.files):
        report.problems += _total_size(checkpoint, total)
    if all(member.pieces == () for member in checkpoint.members):
        report.problems += _twice(held)
    return report


@dataclass(slots=True)
class _LookedAt:
    problems: list[Problem] = field(default_factory=list)
    report: Report | None = None
    tensors: Sequence[str] = ()
    nbytes: int = 0


def _look_at(member: Member, twins: Mapping[str | None, str], threads: int, progress: Progress | None) -> _LookedAt:
    if not is_there(member.place):
        message = f"{member.name} is not there: {member.what}{_holding(member)}"
        return _LookedAt([Problem("missing", member.path, message, tuple(member.tensors or ()))])
    if member.read_as == JSON:
        try:
            read_json(member.place)
        except FastckptError as error:
            return _LookedAt([_refused(member, error)])
        return _LookedAt()
    try:
        return _verify(member, twins, threads, progress)
    except FastckptError as error:
        # .bin is the name of other data as well.
        if member.is_beside and isinstance(error, NotACheckpointError) and member.path.endswith(".bin"):
            return _LookedAt()
        return _LookedAt([_refused(member, error)])


def _refused(member: Member, error: FastckptError) -> Problem:
    """What could not be read at all is not called damaged: nothing is known about it."""
    kind, tensors = kind_of_fault(error), tuple(member.tensors or ())
    message = f"{member.name} ({member.what}{_holding(member)}): {error.message}"
    # Where the set has the digest of a shard, a file that is no checkpoint is damage.
    is_damage = member.root and isinstance(error, NotACheckpointError)
    code = DamagedError.exit_code if is_damage else error.exit_code
    return Problem(kind, member.path, message, tensors, True, code, error.next_step)


def _holding(member: Member) -> str:
    """What the manifest puts into a file."""
    tensors = member.tensors or ()
    return f" with {count_text(len(tensors), 'tensor')} ({some(tensors)})" if tensors else ""


def _verify(member: Member, twins: Mapping[str | None, str], threads: int, progress: Progress | None) -> _LookedAt:
    with open_source(member.place) as source:
        if not source.size and member.path.endswith(".distcp") and not member.pieces:
            return _LookedAt()  # A rank that had nothing of its own to write.
        report = verify_source(source, threads=threads, progress=progress)
        result = _LookedAt([], report)
        if not report.ok:
            return result
        if member.root and report.root != member.root:
            holding = _holding(member)
            here = f"{twins[report.root]} of this set" if report.root in twins else "of another save"
            message = f"{member.name} ({member.what}{holding}) is whole, but not what the set names: it is {here}"
            result.problems.append(Problem("inconsistent", member.path, message, tuple(member.tensors or ())))
            return result
        if member.pieces:
            result.problems += _pieces(member, open_foreign(source))
            return result
        sizes = tensors_in(source)
        if member.content is not None:
            result.problems += _compare_content(member, member.content, CheckpointFile(source))
            # Of tensors inside of objects the manifest says nothing.
            sizes = {name: size for name, size in sizes.items() if not name.startswith(f"{SET_OBJECTS}.")}
    result.tensors, result.nbytes = list(sizes), sum(sizes.values())
    if member.tensors is not None:
        result.problems += _compare_names(member, result.tensors)
    return result


def tensors_in(source: Source) -> dict[str, int]:
    """The bytes of each tensor in a file by its name, also where torch has no type for them."""
    kind = kind_of(source)
    if kind == "safetensors":
        return {row.name: row.end - row.start for row in read_table(source).rows}
    entries = CheckpointFile(source).checked_entries() if kind in (None, "fckpt") else open_foreign(source).entries
    return {entry.name: entry.nbytes for entry in entries}


def _compare_names(member: Member, found: Sequence[str]) -> Iterator[Problem]:
    named, there = set(member.tensors or ()), set(found)
    lost = [name for name in member.tensors or () if name not in there]
    extra = [name for name in found if name not in named]
    if lost:
        message = f"{member.name} ({member.what}) has no {some(lost)}, which the index puts into it"
        yield Problem("inconsistent", member.path, message, tuple(lost))
    if extra:
        message = f"{member.name} ({member.what}) has {some(extra)}, which the index does not put into it"
        yield Problem("inconsistent", member.path, message, tuple(extra))


def _compare_content(member: Member, content: ShardContent, file: CheckpointFile) -> Iterator[Problem]:
    """A shard must hold each part as `fastckpt.dcp` reads it, and every object."""
    tree, entries = file.tree(), file.checked_entries()
    parts, objects = (tree.get(key) if isinstance(tree, dict) else None for key in (SET_TENSORS, SET_OBJECTS))
    names = {entry.name for entry in entries}
    for key, (dtype, shape) in content.parts.items():
        ref, name = parts.get(key) if isinstance(parts, dict) else None, f"{SET_TENSORS}.{key}"
        if name not in names:
            continue  # `_compare_names` says so.
        entry = entries[ref.entry] if type(ref) is TensorRef else None
        is_plain = entry is not None and entry.is_contiguous and not entry.flags & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)
        if entry is None or not is_plain or (entry.name, entry.dtype, entry.shape) != (name, dtype, shape):
            message = f"{member.name} ({member.what}) does not hold {name} as {SET_NAME} says"
            yield Problem("inconsistent", member.path, message, (name,))
    lost = [name for name in content.objects if not isinstance(objects, dict) or name not in objects]
    if lost:
        message = f"{member.name} ({member.what}) has no {some(lost)}, which {SET_NAME} puts into it"
        yield Problem("inconsistent", member.path, message)


def _pieces(member: Member, opened: ForeignFile) -> Iterator[Problem]:
    """The archives of a file must be those that the manifest names: the same places, no more and no fewer."""
    named = {(piece.offset, piece.length): piece for piece in member.pieces}
    there = {(archive.begin, archive.end - archive.begin) for archive in opened.archives}
    lost = [piece for place, piece in named.items() if place not in there]
    extra = sorted(place for place in there if place not in named)
    if lost:
        names = tuple(dict.fromkeys(piece.name for piece in lost))
        message = f"{member.name} ({member.what}) does not hold {some(names)} where the manifest says"
        yield Problem("inconsistent", member.path, message, names)
    else:
        yield from _other_items(member, opened)
    if extra:
        message = (
            f"{member.name} ({member.what}) has {count_text(len(extra), 'archive')} that the manifest does not name"
        )
        yield Problem("inconsistent", member.path, message, loss=False, exit_code=1)


def _other_items(member: Member, opened: ForeignFile) -> Iterator[Problem]:
    """Archives that are something else than what the manifest says is there."""
    item_at = items_of(opened)
    for piece in member.pieces:
        item = item_at(piece)
        entry = opened.entries[item.entry] if type(item) is TensorRef else None
        said = None if piece.dtype is None else (piece.dtype, piece.sizes)
        # An object that is a tensor is one of the state that DCP was given no tensor for.
        if said is not None and (entry is None or (entry.dtype, entry.shape) != said):
            expected = f"{piece.dtype}{list(piece.sizes or ())}"
            actual = "no tensor" if entry is None else f"{entry.dtype}{list(entry.shape)}"
            message = f"{member.name} ({member.what}) has {actual} where the manifest says {piece.name}: {expected}"
            yield Problem("inconsistent", member.path, message, (piece.name,))


def _twice(held: dict[str, list[Member]]) -> Iterator[Problem]:
    """A name in two shards: which of the two is loaded depends on the order in which they are read."""
    shards = {name: members for name, members in held.items() if all(m.tensors is not None for m in members)}
    for name, members in shards.items():
        if len(members) > 1:
            message = f"{name} is in {some([member.name for member in members], 4)}"
            yield Problem("inconsistent", members[0].path, message, (name,))


def _total_size(checkpoint: CheckpointSet, total: int) -> Iterator[Problem]:
    if checkpoint.total_size is not None and checkpoint.total_size != total:
        message = f"the index states {checkpoint.total_size} bytes of tensors, and the shards have {total}"
        yield Problem("inconsistent", checkpoint.path, message, loss=False, exit_code=1)


__all__ = ["NOT_WHOLE", "SetDocument", "SetReport", "judge"]
