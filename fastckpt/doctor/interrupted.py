"""Changes to a step that were cut short: see `fastckpt.nanochat.step_change` for what they leave.

What the step was before is kept, and is what is loaded, until all of the new files
are there. Everything else that lies hidden counts for nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.directories import join, subdirectories
from fastckpt.doctor.facts import StepFacts, TagFacts
from fastckpt.nanochat.names import BEFORE, hidden_name, parse_hidden
from fastckpt.nanochat.step_change import GONE, LINKING, NEW
from fastckpt.nanochat.steps import Step
from fastckpt.text import some


def diagnose_interrupted(tag: TagFacts, asked: int | None) -> Iterator[Diagnosis]:
    """What they left: what is used instead of the new files, and what can go.

    Args:
        tag: The directory.
        asked: Only about this step.
    """
    for name in subdirectories(tag.path):
        of, kind = parse_hidden(name) or (0, "")
        path = join(tag.path, name)
        if kind in (NEW, LINKING, GONE) and not _is_held(path) and asked in (None, of):
            yield _left_over(path, of)
    for number, step in tag.steps.items():
        if step.before is not None and asked in (None, number):
            yield from _kept(tag, number, step)


def _kept(tag: TagFacts, number: int, step: Step) -> Iterator[Diagnosis]:
    """About what a step was before: its files get their names back, or it goes, and neither where it is damaged."""
    path = join(tag.path, hidden_name(number, BEFORE))
    name = os.path.basename(path)
    facts = tag.examine(number)
    state = facts.state
    if facts.is_unread or not state.complete:
        return  # That is told of the step itself.
    damaged = _damaged(facts)
    if not state.before and not damaged:
        yield _replaced(tag, path, facts)
        return
    what = f"a save or reshard of step {number} was cut short, or is going on: "
    what += "not all of its new files are there and whole" if state.before else "its new files are damaged"
    if damaged:
        lies = f"the step as it was before is loaded until then, from {name}, and {some(damaged, 3)} in it is damaged"
        if not state.before:
            lies = f"what is in {name}, the step as it was before, is not whole either"
        cause = f"{lies}: the damage, told of the step, comes first"
        yield Diagnosis("unfinished", "note", path, number, what, cause)
        return
    proven = tag.deep and all(file.proven for file in facts.files)
    cause = f"the step as it was before {'is whole, in' if proven else 'has all of its files in'} {name}"
    cause += "" if proven else (", not all of them with checksums" if tag.deep else " (--deep reads them)")
    cause += ", and is loaded until then: if no process is writing it any more, the command gives these files their "
    cause += "names back"
    command = commands.put_back(path, [os.path.basename(each) for each in step.own_paths])
    yield Diagnosis("unfinished", "warn", path, number, what, cause, command)


def wait_for_names(step: StepFacts, found: list[Diagnosis]) -> list[Diagnosis]:
    """The same, without commands for files that another command gives their names back first."""
    if not step.state.before or _damaged(step):
        return found
    kept = hidden_name(step.number, BEFORE)
    later = "; ask again once the files have their names back"
    return [
        replace(one, next=None, severity="note", cause=one.cause + later) if kept in (one.next or "") else one
        for one in found
    ]


def _damaged(step: StepFacts) -> list[str]:
    return [file.name for file in step.files if not file.is_whole]


def _replaced(tag: TagFacts, path: str, facts: StepFacts) -> Diagnosis:
    """About what is kept of a step that was then replaced: it goes once every byte of the new files was read."""
    if tag.deep and all(file.proven for file in facts.files):
        return _left_over(path, facts.number)
    name = os.path.basename(path)
    checked = [os.path.basename(file) for file in facts.state.files if not file.endswith(".json")]
    return Diagnosis(
        "orphans",
        "warn",
        path,
        facts.number,
        f"{name}: left behind by a save or reshard of step {facts.number} that was killed",
        "nothing in it is needed if the new files are intact: the command reads them, and deletes it only then",
        commands.remove_if_intact(path, checked),
    )


def _left_over(path: str, step: int) -> Diagnosis:
    return Diagnosis(
        "orphans",
        "warn",
        path,
        step,
        f"{os.path.basename(path)}: left behind by a save or reshard of step {step} that was killed",
        "nothing in it is needed",
        commands.remove_directory(path),
    )


def _is_held(path: str) -> bool:
    """Whether a process is at it, or at any hidden directory beside it."""
    return any(map(_is_locked, (path, os.path.dirname(path) or ".")))


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
