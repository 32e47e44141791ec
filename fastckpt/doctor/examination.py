"""Examine a directory or a file: facts first, then every family of findings."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from fastckpt.doctor import commands
from fastckpt.doctor.damage import Salvager, diagnose_damage, diagnose_file
from fastckpt.doctor.diagnosis import Diagnosis, Severity, worst_first
from fastckpt.doctor.directories import Places, diagnose_places, diagnose_strays, find_places
from fastckpt.doctor.disk import Space, diagnose_orphans, diagnose_space, read_space
from fastckpt.doctor.facts import MOST_TRIED, FileFacts, StepFacts, TagFacts, read_file
from fastckpt.doctor.interrupted import diagnose_interrupted, wait_for_names
from fastckpt.doctor.meta import diagnose_meta
from fastckpt.doctor.moments import diagnose_lone_numbers, diagnose_numbers, diagnose_shapes
from fastckpt.doctor.not_found import missing_step, missing_tag, nothing_there
from fastckpt.doctor.numbers import FIRST_BYTES
from fastckpt.doctor.prefixes import diagnose_prefix
from fastckpt.doctor.ranks import diagnose_ranks
from fastckpt.doctor.resuming import resume_command
from fastckpt.doctor.sizes import Sizes, diagnose_sizes, sizes_of_model
from fastckpt.doctor.tokenizer import diagnose_tokenizer
from fastckpt.doctor.unreadable import diagnose_unreadable
from fastckpt.doctor.versions import diagnose_version, model_shapes, version_range
from fastckpt.errors import CheckpointIOError
from fastckpt.io.os_errors import exists
from fastckpt.io.transfer import Progress
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.nanochat.checks import salvaged_note
from fastckpt.nanochat.names import MODEL, Stem, parse_name
from fastckpt.nanochat.places import BASE

NEWEST: Final = 8
"""Steps of a tag whose files are read, unless all are wanted."""

_NOTHING: Final = ("not-found", "missing-step")
_JUST_NOW: Final = 60
"""Seconds in which a save may still be going on."""
_AS_IN_A_SAVE: Final = ("torn", "ranks-missing", "optimizer-missing", "model-missing", "meta-missing", "meta-torn")
_GET_AROUND: Final = ("world-size", "size", "damaged-copy")
"""Findings about a step that do not speak against it: it is whole, and used in another way it works."""
_NOT_WHY: Final = (*_GET_AROUND, "meta-made")
"""Findings that do not tell why a step is not whole."""


class ExaminedStep(TypedDict):
    step: int
    whole: bool | None
    sound: bool
    reasons: tuple[str, ...]
    world_size: int | None
    nbytes: int
    suffix: str


class TagSpace(TypedDict):
    free: int | None
    next_save: int | None
    saves: int | None


class TagSummary(TypedDict):
    path: str
    tag: str
    steps: list[int]
    examined: list[ExaminedStep]
    newest_whole: int | None
    newest_sound: int | None
    sizes: str | None
    nanochat: str | None
    resume_step: int | None
    resume: str | None
    space: TagSpace


class Looked(TypedDict):
    files: int
    unproven: int | None
    tensors: int
    sampled: int
    first_bytes: int | None


class DoctorDocument(TypedDict):
    path: str
    deep: bool
    looked: Looked
    tags: list[TagSummary]
    findings: list[Diagnosis]
    free: int | None
    exit_code: int


@dataclass(frozen=True, slots=True)
class Question:
    """What the user wants to know.

    Attributes:
        tag: Only this tag.
        step: This step.
        sizes: With which sizes the model is to be loaded.
        sizes_as: How the user says that: ``--depth 12``.
        world_size: On how many ranks.
        deep: Read every byte, and look at the numbers.
        every: Look at every step, not only at the newest ones.
    """

    tag: str | None = None
    step: int | None = None
    sizes: Sizes | None = None
    sizes_as: str = ""
    world_size: int | None = None
    deep: bool = False
    every: bool = False


@dataclass(slots=True)
class Examination:
    """What was found.

    Attributes:
        path: What was examined.
        looked: What was looked at.
        tags: What each checkpoint directory holds.
        diagnoses: Worst first.
        space: Room on the file system, measured by the newest model's save.
        exit_code: 0 nothing wrong, 1 something to get around, 2 loss, 4 no checkpoint there, 5 nothing at all.
    """

    path: str
    looked: Looked
    tags: list[TagSummary] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    space: Space | None = None
    exit_code: int = 0


def examine(
    path: str, question: Question, *, threads: int | None = None, progress: Progress | None = None
) -> Examination:
    """Examine a file, a checkpoint directory or a base directory. Damage is never raised.

    Raises:
        CheckpointIOError: The system does not say what the path is.
    """
    result = Examination(path, _looked([], deep=question.deep))
    if not exists(path):
        result.diagnoses = [nothing_there(path)]
        return _conclude(result)
    if not _is_directory(path):
        parsed = parse_name(os.path.basename(path))
        if parsed is None or not os.path.exists(path):
            file = read_file(path, Stem(MODEL, 0), deep=question.deep, threads=threads, progress=progress)
            result.diagnoses = list(_lone_file(file, Salvager.with_limits(threads, deep=question.deep)))
            result.looked = _looked([file], deep=question.deep)
            return _conclude(result)
        question = replace(question, tag=None, step=parsed[0].step)
        path = os.path.dirname(path) or "."
    places = find_places(path, deep=question.deep, threads=threads, progress=progress)
    if not places.tags:
        result.diagnoses = [*diagnose_places(places)] or [nothing_there(path)]
        return _conclude(result)
    tags = [tag for tag in places.tags if question.tag in (None, tag.name, tag.label)]
    if not tags:
        result.diagnoses = [missing_tag(places, str(question.tag))]
        return _conclude(result)
    # A step, or a depth, that one of several tags has is not missed in the others.
    tags = [tag for tag in tags if question.step in tag.steps] or tags
    of_depth = [tag for tag in tags if question.sizes is not None and tag.name == f"d{question.sizes.n_layer}"]
    salvager = Salvager.with_limits(threads, deep=question.deep)
    found = list(diagnose_places(places))
    for tag in tags:
        asked = question if tag in (of_depth or tags) else replace(question, sizes=None)
        found += _diagnose_tag(tag, asked, salvager)
    found += _diagnose_base(places, tags)
    result.diagnoses = worst_first(found)
    files = [file for tag in tags for step in tag.examined for file in step.files]
    result.looked = _looked(files, deep=question.deep)
    result.tags = [_summary(tag, result.diagnoses) for tag in tags]
    result.space = read_space(path, next((tag for tag in tags if tag.newest_whole is not None), None))
    return _conclude(result)


def _looked(files: Sequence[FileFacts], *, deep: bool) -> Looked:
    whole = [file for file in files if file.is_whole]
    looks = [file.look for file in whole if file.look is not None]
    return {
        "files": len(whole),
        "unproven": sum(not file.proven for file in whole) if deep else None,
        "tensors": sum(look.tensors for look in looks),
        "sampled": sum(len(look.numbers) for look in looks),
        "first_bytes": None if deep else FIRST_BYTES,
    }


def _is_directory(path: str) -> bool:
    try:
        return is_directory_of_checkpoints(path)
    except CheckpointIOError as error:
        if error.errno == errno.ELOOP:
            return False  # A circle of symbolic links is one file that cannot be read.
        raise


def _conclude(result: Examination) -> Examination:
    found = result.diagnoses
    if any(one.kind in _NOTHING or (one.kind == "not-a-checkpoint" and one.step is None) for one in found):
        result.exit_code = 4 if os.path.lexists(result.path) else 5
    elif any(one.loss for one in found):
        result.exit_code = 2
    elif any(one.severity != "note" for one in found):
        result.exit_code = 1
    return result


def _diagnose_base(places: Places, tags: Sequence[TagFacts]) -> Iterator[Diagnosis]:
    for directory in places.siblings:
        yield from diagnose_orphans(directory, os.path.basename(os.path.abspath(directory)))
    if places.is_base:
        whole = (tag.newest_whole for tag in tags)
        yield from diagnose_tokenizer(places.root, next((step for step in whole if step is not None), None))


def _diagnose_tag(tag: TagFacts, question: Question, salvager: Salvager) -> Iterator[Diagnosis]:
    wanted = question.step
    if wanted is not None and wanted not in tag.steps:
        yield missing_step(tag, wanted)
        return
    for number in _to_examine(tag, question):
        tag.examine(number)
    asked = tag.examine(wanted) if wanted is not None else None
    target = asked or tag.newest_whole or tag.examine(max(tag.steps))
    yield from diagnose_interrupted(tag, wanted)
    steps = [asked] if asked is not None else tag.examined
    # Where files are damaged, it matters whether another step can be made whole without loss: those come first.
    for step in sorted(steps, key=lambda step: bool(step.broken)):
        found = list(_diagnose_step(tag, step, question, salvager, is_target=step is target))
        found = wait_for_names(step, found)
        if not step.is_whole and all(one.mends for one in found if one.severity == "bad"):
            tag.mendable.append(step)
        yield from found
    if asked is None:
        yield from diagnose_strays(tag)
        yield from diagnose_orphans(tag.path, tag.label)
        yield from diagnose_space(tag, read_space(tag.path, tag))


def _to_examine(tag: TagFacts, question: Question) -> list[int]:
    numbers = sorted(tag.steps, reverse=True)
    if question.step is not None:
        # Where training could go on instead.
        near = tag.whole_near(question.step)
        return [question.step, *(step.number for step in near if step is not None)]
    if question.deep or question.every:
        return numbers
    newest = numbers[:NEWEST]
    if not any(tag.examine(number).is_whole for number in newest):
        for number in numbers[NEWEST:MOST_TRIED]:
            newest.append(number)
            if tag.examine(number).is_whole:
                break
    return newest


def _diagnose_step(
    tag: TagFacts, step: StepFacts, question: Question, salvager: Salvager, *, is_target: bool
) -> Iterator[Diagnosis]:
    if step.is_unread:
        yield from diagnose_unreadable(step)
        return
    fallback = tag.fallback(step.number)
    others_whole = fallback is not None
    faults = [*diagnose_damage(tag, step, salvager)]
    faults += diagnose_ranks(tag, step, question.world_size if is_target else None)
    if step.model is None:
        what = f"step {step.number} has no {Stem(MODEL, step.number)}"
        cause = "the save was interrupted, or the model was deleted to save space"
        faults.append(_incomplete(step, "model-missing", what, cause, others_whole=others_whole))
    faults += diagnose_meta(tag, step)
    faults += diagnose_prefix(step)
    yield from _perhaps_saving(step, faults) if step.number == max(tag.steps) else faults
    told = any(one.severity != "note" and one.kind not in _NOT_WHY for one in faults)
    if not told and step.reasons:
        what = f"step {step.number} is not whole: {step.reasons[0]}"
        yield _salvaged(step, others_whole=others_whole) or _incomplete(
            step, "incomplete", what, "its files are of different saves", others_whole=others_whole
        )
    asked = question.sizes if is_target else None
    yield from diagnose_sizes(step, asked, question.sizes_as, resume_command(step), fallback)
    if step.is_whole:
        yield from diagnose_shapes(step, others_whole=others_whole)
    if is_target:
        yield from diagnose_version(step, others_whole=others_whole)
    yield from diagnose_numbers(step, others_whole=others_whole)


def _perhaps_saving(step: StepFacts, faults: list[Diagnosis]) -> list[Diagnosis]:
    """The same, with a warning if the step was written a moment ago: nanochat's own saves hold no lock."""
    age = step.age
    if not 0 <= age < _JUST_NOW:
        return faults
    asked = f"; written {age:.0f} s ago: is the save still going on?"
    return [
        replace(one, cause=one.cause + asked) if one.kind in _AS_IN_A_SAVE and one.severity == "bad" else one
        for one in faults
    ]


def _incomplete(step: StepFacts, kind: str, what: str, cause: str, *, others_whole: bool) -> Diagnosis:
    """A step that cannot be used, for a reason that no family of findings has."""
    command = commands.set_step_aside(step.directory, step.number)
    if not others_whole and step.model is None:
        command = commands.find_copy(os.path.join(step.directory, f"{Stem(MODEL, step.number)}.pt"))
    elif not others_whole:
        command = shlex.join(["fastckpt", "verify", *(file.path for file in step.files)])
    return Diagnosis(kind, "bad", step.directory, step.number, what, cause, command, loss=not others_whole)


def _salvaged(step: StepFacts, *, others_whole: bool) -> Diagnosis | None:
    """A step that lacks nothing but what salvage could not bring back; None for any other."""
    files = [file for file in step.files if file.says is not None and file.says.holds_other]
    if not files or set(step.reasons) - {salvaged_note(file.path) for file in files}:
        return None
    what = f"step {step.number}: {step.reasons[0]}"
    cause = "it loads where its number is named, without what was lost"
    command = commands.set_step_aside(step.directory, step.number) if others_whole else resume_command(step)
    severity: Severity = "warn" if command is not None else "note"
    return Diagnosis("salvaged", severity, files[0].path, step.number, what, cause, command, loss=not others_whole)


def _summary(tag: TagFacts, diagnoses: Sequence[Diagnosis]) -> TagSummary:
    about = [one for one in diagnoses if _is_about(one, tag) and one.step is not None and one.kind not in _GET_AROUND]
    against = {one.step for one in about if one.severity == "bad"}
    mended = against - {one.step for one in about if one.severity == "bad" and not one.mends}
    sound = next((step for step in tag.examined if step.is_whole and step.number not in against), None)
    goal = next((step for step in tag.examined if step is sound or step.number in mended), None)
    shown = sound or tag.examined[0]
    versions = version_range(shown)
    config = shown.meta.section("model_config") if shown.meta is not None else {}
    made = sizes_of_model(model_shapes(shown), config)
    resumes = tag.source in ("", BASE) and goal is not None
    space = read_space(tag.path, tag)
    return {
        "path": tag.path,
        "tag": tag.label,
        "steps": sorted(tag.steps),
        "examined": [
            {
                "step": step.number,
                "whole": None if step.is_unread else step.is_whole,
                "sound": step.is_whole and step.number not in against,
                "reasons": step.reasons,
                "world_size": step.world_size,
                "nbytes": step.nbytes,
                "suffix": step.state.suffix,
            }
            for step in tag.examined
        ],
        "newest_whole": tag.newest_whole.number if tag.newest_whole is not None else None,
        "newest_sound": sound.number if sound is not None else None,
        "sizes": str(made) if made is not None else None,
        "nanochat": str(versions) if versions is not None and not versions.conflict else None,
        "resume_step": goal.number if resumes and goal is not None else None,
        "resume": resume_command(goal, like=sound or _with_options(tag)) if resumes and goal is not None else None,
        "space": {"free": space.free, "next_save": space.save, "saves": space.saves},
    }


def _with_options(tag: TagFacts) -> StepFacts | None:
    """A step that says with which options the run was started."""
    return next((s for s in tag.examined if s.meta is not None and s.meta.section("user_config")), None)


def _is_about(one: Diagnosis, tag: TagFacts) -> bool:
    return tag.path in (one.path, os.path.dirname(one.path))


def _lone_file(file: FileFacts, salvager: Salvager) -> Iterator[Diagnosis]:
    """A file that is not named as nanochat names its own."""
    path = file.path
    yield from diagnose_file(file, salvager)
    yield from diagnose_lone_numbers(file)
    yield Diagnosis(
        "not-nanochat",
        "note",
        path,
        None,
        f"{os.path.basename(path)} is not named as nanochat names its checkpoints",
        "only its own bytes are examined, not whether it belongs to a step",
        shlex.join(["fastckpt", "inspect", path]) if file.error is None else None,
    )
