"""Changes to a step that were cut short: see `fastckpt.nanochat.step_change` for what they leave.

What the step was before is kept, and is what is loaded, until all of the new files
are there. Everything else that lies hidden counts for nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.directories import join, subdirectories
from fastckpt.doctor.facts import TagFacts
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.names import BEFORE, hidden_name, parse_hidden
from fastckpt.nanochat.step_change import GONE, LINKING, NEW


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
        if step.before is None or asked not in (None, number):
            continue
        path = join(tag.path, hidden_name(number, BEFORE))
        state = step_state(step, verify=False, threads=tag.threads)
        if state.before and state.complete:
            yield Diagnosis(
                "unfinished",
                "warn",
                path,
                number,
                f"a save or reshard of step {number} was cut short, or is going on: not all of its new files are there",
                f"the step as it was before is whole, in {os.path.basename(path)}, and is loaded until then: "
                "if no process is writing it any more, the command gives these files their names back",
                commands.put_back(path, [os.path.basename(each) for each in step.own_paths]),
            )
        elif state.complete:
            yield _left_over(path, number)


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
