"""Which steps of a directory are complete: every file there, whole, and of one and the same save.

Files that `fastckpt.nanochat.save_checkpoint` wrote carry marks
(`fastckpt.nanochat.save_mark`), and the marks decide; the rule is in
docs/nanochat.md. Files without marks, which nanochat wrote or which were converted
from such, are judged by `fastckpt.nanochat.checks`.

A step can lie there in two formats. Its files are then taken from one of them,
or from both if they belong together; `StepState.files` says which, and a load
takes exactly these, so that all ranks choose alike. Where a save was cut short that
replaced a complete step, they are what the step was before (`fastckpt.nanochat.step_change`).

"Cannot be read" is not "not whole": where the system did not give what was
asked of it (too many open files, no permission, a device that fails), nothing
is known about the step, and `StepState.unread` says so. No one may delete,
replace or pass over anything because of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Kind
from fastckpt.nanochat.checks import check_step, find_missing_ranks, judge_meta, salvaged_note
from fastckpt.nanochat.facts import Facts, holds_other, read_facts
from fastckpt.nanochat.meta import read_meta_bytes
from fastckpt.nanochat.names import META, MODEL, OPTIM, Stem, parse_name
from fastckpt.nanochat.save_mark import SaveMark, meta_digest, parse_mark
from fastckpt.nanochat.steps import Step, list_numbers, read_steps, versions

_DAMAGED: Final = 2
"""Exit code of a report from which on tensors are lost."""

Files = Mapping[Stem, str]
"""Model and optimizer files of a step: the path by what the file is."""


@dataclass(frozen=True, slots=True)
class StepState:
    """Whether a step is complete, and why not.

    Attributes:
        step: The step.
        complete: Whether it is known that a run can go on from it.
        verified: Whether every tensor was found to be intact. None if that was not asked for, or if the step was
            found incomplete without reading its tensors.
        reasons: Why it is not complete, one sentence each.
        world_size: How many ranks saved it; None if that cannot be told.
        missing_ranks: Ranks whose optimizer file is not there.
        files: The files that make up the step, meta first, model last. Files of other saves are not among them.
        suffix: Of its model and optimizer files, with the dot; empty if they are of both formats.
        unread: Whether the system did not let a file be read, which is one of the reasons. It may be complete.
        before: Whether this is what the step was before a save or a reshard that was cut short.
        flaws: Where a verified step is damaged around its tensors, of which every one loads: one sentence each.
    """

    step: int
    complete: bool
    verified: bool | None
    reasons: tuple[str, ...]
    world_size: int | None
    missing_ranks: tuple[int, ...]
    files: tuple[str, ...]
    suffix: str
    unread: bool = False
    before: bool = False
    flaws: tuple[str, ...] = ()


def newest_complete(directory: str | os.PathLike[str], *, verify: bool) -> tuple[StepState | None, list[StepState]]:
    """The newest complete step of a directory, and the newer ones that were passed over, newest first.

    Of those, the ones that are `StepState.unread` may be complete all the same.

    Args:
        directory: With the ``model_*`` files.
        verify: Read every byte of a step before it counts as complete.

    Raises:
        CheckpointIOError: The directory cannot be read.
    """
    passed: list[StepState] = []
    for _, step in sorted(read_steps(os.fsdecode(directory)).items(), reverse=True):
        state = step_state(step, verify=verify)
        if state.complete:
            return state, passed
        passed.append(state)
    return None, passed


def step_state(step: Step, *, verify: bool, threads: int | None = None) -> StepState:
    """Whether a step is complete. Damage is a reason, never raised, and so is what cannot be read.

    Args:
        step: Of `fastckpt.nanochat.steps.read_steps`.
        verify: Read every byte. Otherwise only the structure of the files is looked at.
        threads: Worker threads; None takes one per CPU.
    """
    state = state_at_names(step, verify=verify, threads=threads)
    if step.before is None or state.complete or state.unread:
        return state
    before = state_at_names(step.before, verify=verify, threads=threads)
    return replace(before, before=True) if before.complete or before.unread else state


def step_in_use(step: Step) -> Step:
    """The step, or what it was before if that is what counts: as `step_state` without ``verify`` tells it."""
    return step.before if step.before is not None and step_state(step, verify=False).before else step


def state_at_names(step: Step, *, verify: bool, threads: int | None = None) -> StepState:
    """The same of the files that have the names of the step, whatever is kept of it."""
    judged = []
    for files in _candidates(step):
        state = _judge(step, files, verify=verify, threads=threads)
        if state.complete:
            return state
        judged.append(state)
    # Where one set is known to be no step and another could not be read, the step may be complete.
    return next((state for state in judged if state.unread), judged[0])


def choose_files(step: Step) -> tuple[Step, Files]:
    """The step, or what it was before, and the files of it that a load takes, on every rank the same.

    Where there is a choice, every byte is read to tell which files make a complete step; what has
    its names is preferred, and ``.fckpt``. If none do, the files that could be loaded are given all the same.

    Raises:
        CheckpointIOError: A file that the choice depends on cannot be read: another rank could choose otherwise.
    """
    sources = [step] if step.before is None else [step, step.before]
    candidates = [(source, files) for source in sources for files in _candidates(source)]
    in_both = any({"fckpt", "pt"} <= paths.keys() for paths in step.states.values())
    if len(candidates) == 1 or not (in_both or step.before is not None):
        return candidates[0]
    for source, files in candidates:
        state = _judge(source, files, verify=True, threads=None)
        if state.complete:
            parsed = ((parse_name(os.path.basename(path)), path) for path in state.files)
            return source, {found[0]: path for found, path in parsed if found is not None and found[0].role != META}
        if state.unread:
            raise unread_error(state, os.path.dirname(next(iter(files.values()))))
    return candidates[0]


def unread_error(state: StepState, directory: str) -> CheckpointIOError:
    """The error where something depends on a step that cannot be read."""
    return CheckpointIOError(
        f"whether step {state.step} is complete cannot be told: {'; '.join(state.reasons)}",
        path=directory,
        next_step="make it readable (open files, permissions, the disk), then run this again",
    )


def _candidates(step: Step) -> Iterator[dict[Stem, str]]:
    """Sets of files that the step could be read from, the preferred one first."""
    tried: list[dict[Stem, str]] = []
    for wanted in (("fckpt", "pt"), ("fckpt",), ("pt",)):
        files = {}
        for stem, paths in step.states.items():
            path = next((paths[suffix] for suffix in wanted if suffix in paths), None)
            if path is not None:
                files[stem] = path
        if files not in tried and (files or not tried):
            tried.append(files)
            yield files


class _Reason(NamedTuple):
    """Why a step is not complete, in one sentence; ``unread`` if only because the system did not let it be read."""

    text: str
    unread: bool = False

    @classmethod
    def of(cls, path: str, error: FastckptError) -> _Reason:
        return cls(f"{_name(path)}: {error.message}", isinstance(error, CheckpointIOError))


class _Judgement(NamedTuple):
    """What is found about one set of files: why it is no complete step, and which of the files are needed for one."""

    reasons: list[_Reason]
    needed: Files
    world_size: int | None
    missing_ranks: Sequence[int] = ()


def _judge(step: Step, files: Files, *, verify: bool, threads: int | None) -> StepState:
    marks: dict[Stem, SaveMark | None] = {}
    faults: dict[Stem, _Reason] = {}
    for stem, path in files.items():
        try:
            marks[stem], salvaged = _read_metadata(path)
        except FastckptError as error:
            faults[stem] = _Reason.of(path, error)
        else:
            if salvaged:
                faults[stem] = _Reason(salvaged_note(path))
    judge = _judge_marked if any(marks.values()) else _judge_unmarked
    reasons, needed, world_size, missing_ranks = judge(step, files, marks, faults)
    verified: bool | None = None
    flaws: list[str] = []
    if verify and not reasons:
        reasons, flaws = _verify(needed.values(), threads)
        verified = not reasons
    suffixes = {os.path.splitext(path)[1] for path in needed.values()}
    return StepState(
        step.number,
        complete=not reasons,
        verified=verified,
        reasons=tuple(reason.text for reason in reasons),
        world_size=world_size,
        missing_ranks=tuple(missing_ranks),
        files=(*([step.meta] if step.meta else []), *needed.values()),
        suffix=suffixes.pop() if len(suffixes) == 1 else "",
        unread=any(reason.unread for reason in reasons),
        flaws=tuple(flaws),
    )


def _read_metadata(path: str) -> tuple[SaveMark | None, bool]:
    """The mark of a file, and whether salvage put something else in the place of what was lost."""
    if not path.endswith(".fckpt"):
        return None, False
    with CheckpointFile(path) as file:
        file.checked_entries()  # With these, everything but the tensors is proven: the file is loadable.
        metadata = file.manifest.metadata
    return parse_mark(metadata), holds_other(metadata)


def _verify(paths: Iterable[str], threads: int | None) -> tuple[list[_Reason], list[str]]:
    """Why tensors of these files are not intact, and where else something is damaged."""
    from fastckpt.stored.verify import verify as verify_file  # Most ask for the structure alone.

    reasons, flaws = [], []
    for path in paths:
        try:
            report = verify_file(path, threads=threads)
        except FastckptError as error:
            reasons.append(_Reason.of(path, error))
            continue
        if report.exit_code >= _DAMAGED:
            lost = [finding for finding in report.findings if finding.loss]
            unread = next((finding for finding in lost if finding.kind is Kind.UNREADABLE), None)
            # Bytes that were not read could have explained the others.
            shown, how = (unread, "cannot be read") if unread is not None else (lost[0], "is damaged")
            reasons.append(_Reason(f"{_name(path)} {how}: {shown.message}", unread is not None))
        elif not report.ok:
            shown = next(finding for finding in report.findings if finding.kind is not Kind.UNPROVEN)
            unread = next((finding for finding in report.findings if finding.kind is Kind.UNREADABLE), None)
            if unread is not None:
                reasons.append(_Reason(f"{_name(path)} cannot be read: {unread.message}", unread=True))
            else:
                flaws.append(f"{_name(path)} is damaged around its tensors: {shown.message}")
    return reasons, flaws


def _name(path: str) -> str:
    return os.path.basename(path)


def _judge_marked(
    step: Step, files: Files, marks: Mapping[Stem, SaveMark | None], faults: Mapping[Stem, _Reason]
) -> _Judgement:
    """The rule of docs/nanochat.md."""
    model = marks.get(step.model)
    # Without a model, any rank tells how many there should be.
    lead = model or next(mark for mark in marks.values() if mark is not None)
    ranks = range(lead.world_size if lead.optimizer else 0)
    wanted = [*(optimizer_stem(files, step.number, rank) for rank in ranks), step.model]
    needed = {stem: files[stem] for stem in wanted if stem in files}
    missing = [rank for rank in ranks if wanted[rank] not in files]
    reasons = []
    if step.model not in files:
        reasons.append(_Reason(f"there is no {step.model}: the save was cut short, or is going on"))
    reasons += _meta_reasons(step, model)
    reasons += _missing_reason(missing, lead.world_size)
    for stem, path in needed.items():
        mark = marks.get(stem)
        if stem in faults:
            reasons.append(faults[stem])
        elif mark is None:
            reasons.append(_Reason(f"{_name(path)} does not say which save it belongs to, as others of the step do"))
        elif mark.stem != stem:
            reasons.append(_Reason(f"{_name(path)} was saved as {mark.stem}"))
        elif not mark.agrees_with(lead):
            reasons.append(_Reason(f"{_name(path)} is of another save than {lead.stem}"))
    return _Judgement(reasons, needed, lead.world_size, missing)


def _missing_reason(missing: Sequence[int], world_size: int) -> list[_Reason]:
    plural = "s" if len(missing) > 1 else ""
    text = f"there is no optimizer of rank{plural} {list_numbers(missing)} of {world_size}"
    return [_Reason(text)] if missing else []


def _meta_reasons(step: Step, model: SaveMark | None) -> list[_Reason]:
    if step.meta is None:
        return [_Reason(note) for note in judge_meta(step.number, None)[1]]
    try:
        data = read_meta_bytes(step.meta)
    except FastckptError as error:
        return [_Reason.of(step.meta, error)]
    if model is not None and model.meta != meta_digest(data):
        return [_Reason(f"{_name(step.meta)} is not the one that was saved with the model")]
    return []


def optimizer_stem(files: Files, step: int, rank: int) -> Stem:
    """How the optimizer file of a rank is called. The only file of old, without a rank, is that of rank 0."""
    stem = Stem(OPTIM, step, rank)
    old = Stem(OPTIM, step)
    return old if rank == 0 and stem not in files and old in files else stem


def _judge_unmarked(
    step: Step, files: Files, marks: Mapping[Stem, SaveMark | None], faults: Mapping[Stem, _Reason]
) -> _Judgement:
    """The rules of `fastckpt.nanochat.checks`, and nothing may be missing."""
    needed = dict(sorted(files.items(), key=lambda item: (item[0].role == MODEL, item[0].rank or 0)))
    facts: list[Facts] = []
    reasons = list(faults.values())
    for stem in [stem for stem in needed if stem not in faults]:
        try:
            facts.append(read_facts(needed[stem], stem))
        except FastckptError as error:
            reasons.append(_Reason.of(needed[stem], error))
    reasons += [_Reason(salvaged_note(file.path)) for file in facts if file.holds_other]
    try:
        meta, notes = judge_meta(step.number, step.meta)
        if not reasons:
            check_step(step.number, facts, step.meta)
    except FastckptError as error:
        reason = _Reason(error.message, isinstance(error, CheckpointIOError))
        return _Judgement([*reasons, reason], needed, None)
    reasons += map(_Reason, notes)
    if step.before is not None and _is_mixed(step, files, step.before):
        reasons.append(_Reason(f"{Stem(META, step.number)}.json is of a save that was cut short"))
    if step.model not in files:
        reasons.append(_Reason(f"there is no {step.model}"))
    ranks = [stem.rank for stem in needed if stem.role == OPTIM]
    missing, world_size = find_missing_ranks(facts, meta)
    # Of several ranks nanochat kept only the first until November 2025: such a step was never more than this.
    if ranks != [None]:
        reasons += _missing_reason(missing, world_size)
    return _Judgement(reasons, needed, world_size if ranks else None, missing)


def _is_mixed(step: Step, files: Files, before: Step) -> bool:
    """Whether the meta file is newer than what is kept of the step, and the model is not. No mark tells it here."""
    if step.model not in files or step.meta is None or before.meta is None:
        return False
    kept = versions(before.own_paths).items()
    return versions([step.meta]).items() - kept != set() and versions([files[step.model]]).items() <= kept
