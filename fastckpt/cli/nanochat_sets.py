"""Are the steps of a nanochat directory whole, whose files were verified? `fastckpt.nanochat.wholeness` says so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from fastckpt.cli.render import Styled
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.findings import VerifiedFile
from fastckpt.nanochat.checks import check_step
from fastckpt.nanochat.completeness import StepState, step_state
from fastckpt.nanochat.facts import Facts, read_facts
from fastckpt.nanochat.names import BEFORE, Stem, parse_hidden
from fastckpt.nanochat.steps import Step, read_steps
from fastckpt.nanochat.wholeness import lacks_optimizer, wholeness
from fastckpt.sets.judge import NOT_WHOLE, UNREAD, SetDocument
from fastckpt.sets.model import UNREADABLE, Problem
from fastckpt.text import quoted
from fastckpt.verdicts import Verdict

_KIND = "step of nanochat"


def judge_steps(
    directory: str, verified: Mapping[str, VerifiedFile], codes: Mapping[str, int], *, recursive: bool
) -> Iterator[SetDocument]:
    """The steps of a directory, and with ``recursive`` of those inside it.

    Args:
        directory: It.
        verified: What was found about their files, by absolute path, but for those that could not be verified.
        codes: The exit code that follows from each of the files, by absolute path.
        recursive: Whether the directories inside it were looked at.
    """
    for where in _directories(directory, recursive=recursive):
        steps = read_steps(where)
        for named in steps.values():
            state = step_state(named, verify=False)
            step = named.before if state.before and named.before is not None else named
            if all(path in codes for path in _states(step)):  # Others are judged as another kind of checkpoint.
                yield _judge(where, step, state, steps, verified, codes)


def _directories(directory: str, *, recursive: bool) -> Iterator[str]:
    yield directory
    for where, inner, _ in os.walk(directory) if recursive else ():
        # What is kept of a step belongs to the directory that it is kept in.
        inner[:] = sorted(name for name in inner if (hidden := parse_hidden(name)) is None or hidden[1] != BEFORE)
        yield from (path for name in inner if not os.path.islink(path := os.path.join(where, name)))


def _states(step: Step) -> list[str]:
    return [os.path.abspath(path) for by_suffix in step.states.values() for path in by_suffix.values()]


def _judge(
    where: str,
    step: Step,
    state: StepState,
    steps: Mapping[int, Step],
    verified: Mapping[str, VerifiedFile],
    codes: Mapping[str, int],
) -> SetDocument:
    facts: dict[Stem, list[Facts]] = {}
    reasons: list[str] = []
    unread = state.unread
    for stem, by_suffix in step.states.items():
        for path in by_suffix.values():
            if codes[os.path.abspath(path)]:
                continue
            try:
                facts.setdefault(stem, []).append(read_facts(path, stem))
            except FastckptError as error:
                unread = unread or isinstance(error, CheckpointIOError)
                reasons.append(f"{os.path.basename(path)}: {error.message}")
    against = wholeness(step, state, facts, steps.values())
    unread = unread or bool(against.unread)
    is_whole = against.is_whole and not unread
    # Of damage inside a file, the file's own lines tell.
    told = tuple(f"{os.path.basename(path)}: " for path in _states(step) if codes[path])
    reasons = [reason for reason in (*against.reasons, *reasons, *against.unread) if not reason.startswith(told)]
    if is_whole:
        reasons = check_step(step.number, [copies[0] for copies in facts.values()], step.meta)
    kind = "inconsistent"
    if unread and not against.mixed:
        kind = UNREADABLE
    elif not against.mixed and _lacks_a_file(step, state, steps):
        kind = "missing"
    code = 0 if is_whole else CheckpointIOError.exit_code if kind == UNREADABLE else 2
    problems = [Problem(kind, where, reason, loss=not is_whole, exit_code=code) for reason in dict.fromkeys(reasons)]
    inside = [] if is_whole else [codes[path] for path in _states(step)]
    files = [verified[path] for path in _states(step) if path in verified]
    return {
        "path": where,
        "kind": _KIND,
        "step": step.number,
        "verdict": Verdict.WHOLE.value if is_whole else UNREAD if unread and not against.mixed else NOT_WHOLE,
        "of_one_save": is_whole and all(file.mark is not None for copies in facts.values() for file in copies),
        "unproven": sum(file["verdict"] == Verdict.PRESENT for file in files),
        "files": files,
        "problems": [problem.as_dict() for problem in problems],
        "exit_code": max([*inside, *(problem.exit_code for problem in problems), 0]),
        "next": None if is_whole else f"fastckpt doctor {quoted(where)}",
    }


def _lacks_a_file(step: Step, state: StepState, steps: Mapping[int, Step]) -> bool:
    """Whether what speaks against it is something that is not there."""
    there = step.meta is not None and step.model in step.states and not state.missing_ranks
    return not there or lacks_optimizer(step, steps.values())


def step_lines(facts: SetDocument) -> Iterator[Styled]:
    """What there is to say about a step beside what its files say."""
    name = f"{os.path.basename(os.path.abspath(facts['path']))}, step {facts['step']}"
    is_whole = facts["verdict"] == Verdict.WHOLE
    for problem in facts["problems"]:
        kind = "note" if is_whole else problem["kind"]
        yield Styled(f"{kind}  {name}: {problem['message']}", "warn" if is_whole else "bad")
    if not is_whole:
        yield Styled(f"{name}: {facts['verdict']}; next: {facts['next']}", "bad")
