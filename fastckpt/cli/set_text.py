"""Checkpoints of several files as text: what is missing or damaged of each, and which is the newest whole one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Output, Styled
from fastckpt.findings import UNSETTLED
from fastckpt.io.there import size_there
from fastckpt.io.transfer import thread_count
from fastckpt.nanochat.places import is_nanochat
from fastckpt.sets.judge import UNREAD, SetDocument
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.overview import SetsDocument, survey_sets
from fastckpt.sets.recognise import recognise_steps
from fastckpt.text import count_text, size_text, some
from fastckpt.verdicts import Verdict

_SHOWN_PROBLEMS = 20


def other_sets(path: str) -> list[CheckpointSet]:
    """The checkpoints in a directory that is none of nanochat's; none if it is, or is no directory."""
    if not os.path.isdir(path) or is_nanochat(path):
        return []
    return recognise_steps(path)


def show_sets(path: str, sets: Sequence[CheckpointSet], threads: int | None, out: Output) -> int:
    """Judge the checkpoints of a directory and show which are whole; returns the exit code."""
    places = [member.place for each in sets for member in each.files]
    with progress_bar("reading every byte", lambda: sum(size_there(place) or 0 for place in places)) as progress:
        facts = survey_sets(path, sets, threads=thread_count(threads), progress=progress).as_dict()
    out.show(facts, sets_lines)
    out.document(facts)
    return facts["exit_code"]


def set_lines(facts: SetDocument) -> Iterator[str | Styled]:
    """What is wrong with a checkpoint beside the damage inside its files, and its verdict."""
    problems = facts["problems"]
    for problem in problems[:_SHOWN_PROBLEMS]:
        yield Styled(f"{problem['kind']}  {_named(facts)}: {problem['message']}", "bad" if problem["loss"] else "warn")
    if len(problems) > _SHOWN_PROBLEMS:
        yield f"... and {count_text(len(problems) - _SHOWN_PROBLEMS, 'more problem')} (--json lists all)"
    following = f"; next: {facts['next']}" if facts["next"] is not None else ""
    yield Styled(f"{_named(facts)}: {verdict_text(facts)}{following}", _style(facts))


def verdict_text(facts: SetDocument) -> str:
    """The verdict on a checkpoint, and what it rests on."""
    files = facts["files"]
    size = size_text(sum(file["size"] for file in files))
    if facts["verdict"] == Verdict.WHOLE:
        unproven = facts["unproven"]
        note = f", {unproven} of them without checksums to prove every byte by" if unproven else ""
        note += "" if facts["of_one_save"] else f"; {UNSETTLED}"
        return f"{Verdict.WHOLE}: {facts['kind']}, {count_text(len(files), 'file')}, {size}{note}"
    missing = [os.path.basename(problem["path"]) for problem in facts["problems"] if problem["kind"] == "missing"]
    damaged = [os.path.basename(file["path"]) for file in files if not file["ok"]]
    others = len(facts["problems"]) - len(missing)
    reasons = [f"{some(missing)} missing"] if missing else []
    reasons += (
        [f"{some(damaged)} {'unreadable or damaged' if facts['verdict'] == UNREAD else 'damaged'}"] if damaged else []
    )
    reasons += [count_text(others, "problem")] if others else []
    return f"{facts['verdict']}: {facts['kind']}, {'; '.join(reasons)}"


def sets_lines(facts: SetsDocument) -> Iterator[str | Styled]:
    """All checkpoints of a directory, and what to do."""
    yield Styled(facts["path"], "bold")
    sets = facts["sets"]
    for each in sets:
        label = f"step {each['step']}" if each["step"] is not None else _named(each)
        yield Styled(f"  {label}: {verdict_text(each)}", _style(each))
    for each in sets:
        yield from _fault_lines(each)
    yield ""
    yield f"next: {facts['next']}"


def _fault_lines(facts: SetDocument) -> Iterator[str | Styled]:
    faults = [(problem["message"], problem["loss"]) for problem in facts["problems"]]
    faults += [
        (f"{os.path.basename(file['path'])}: {finding['message']}", finding["loss"])
        for file in facts["files"]
        if not file["ok"]
        for finding in file["findings"][:1]
    ]
    if faults:
        yield ""
    for message, loss in faults[:_SHOWN_PROBLEMS]:
        yield Styled(f"{'bad' if loss else 'warn'}  {_named(facts)}: {message}", "bad" if loss else "warn")
    if len(faults) > _SHOWN_PROBLEMS:
        yield f"... and {len(faults) - _SHOWN_PROBLEMS} more (--json lists all)"


def _named(facts: SetDocument) -> str:
    return os.path.basename(os.path.abspath(facts["path"]))


def _style(facts: SetDocument) -> str:
    if facts["verdict"] != Verdict.WHOLE:
        return "bad" if facts["exit_code"] != 1 else "warn"
    is_proven = facts["of_one_save"] and not facts["unproven"]
    return "good" if is_proven else "warn"
