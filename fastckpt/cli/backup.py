"""Put a verified copy of every whole step of a directory into another one: nanochat's, a Trainer's, your own.

On one file system files are reflinked, or hard-linked if they are .fckpt; else
they are copied, and what the disk gives back is compared. A run that was cut
short is finished by running it again. A step that is damaged, or not all there,
is left out and named: the exit code is 1 if it only lacks files or could not be
read, 3 if it is damaged, 2 if nothing could be backed up. What is no step is
named, and not copied.

DST can be a URL (s3://, gs://, az://, see docs/recipes.md): a step is verified, then
sent, what makes it one last; fastckpt sync goes on doing so while a run saves.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, TypedDict

from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output, Styled, columns
from fastckpt.keeping.backup import backup
from fastckpt.nanochat.backing_up import Backup, CopiedFile, LeftOut
from fastckpt.nanochat.wholeness import NO_OPTIMIZER
from fastckpt.remote.url import is_url, parse_url
from fastckpt.text import count_text, duration_text, size_text, some
from fastckpt.verdicts import Verdict

EXAMPLES: Final = (
    "fastckpt backup base_checkpoints/d4 /backup/d4",
    "fastckpt backup base_checkpoints/d4 /backup/d4 --step 20",
    "fastckpt backup trainer /backup/trainer",
)


class BackupStep(TypedDict):
    step: int
    files: list[CopiedFile]


class BackupDocument(TypedDict):
    source: str
    destination: str
    steps: list[BackupStep]
    left_out: list[LeftOut]
    no_optimizer: list[int]
    others: list[str]
    nbytes: int
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt backup``."""
    parser.add_argument("source", metavar="DIR", help="a directory with steps: model_000500.pt, checkpoint-500/")
    parser.add_argument("destination", metavar="DST", help="where the copies go, under the same names")
    parser.add_argument("--step", type=int, metavar="N", help="only this step")
    parser.add_argument("--copy", action="store_true", help="copy the bytes also where they could be shared")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Back up, then show what was copied how, and what was left out."""
    start = time.perf_counter()
    name = os.path.basename(os.path.abspath(args.source))
    with progress_bar(f"backing up {name}", lambda: bytes_at(args.source)) as progress:
        done = backup(
            args.source,
            args.destination,
            step=args.step,
            share=not args.copy,
            threads=args.threads,
            progress=progress,
        )
    facts = backed_up(done, args.source, args.destination, start)
    out.show(facts, backup_lines)
    out.document(facts)
    return _exit_code(done)


def backed_up(done: Backup, source: str, destination: str, start: float) -> BackupDocument:
    """What was done from a moment on (`time.perf_counter`), as facts."""
    return {
        "source": source,
        "destination": parse_url(destination).shown if is_url(destination) else destination,
        "steps": [{"step": step, "files": files} for step, files in done.steps.items()],
        "left_out": done.left_out,
        "no_optimizer": done.no_optimizer,
        "others": done.others,
        "nbytes": sum(file.nbytes for files in done.steps.values() for file in files),
        "seconds": time.perf_counter() - start,
    }


def _exit_code(done: Backup) -> int:
    if not done.left_out:
        return 0
    if not done.steps:
        return 2
    return 3 if any(left.damaged for left in done.left_out) else 1


def backup_lines(facts: BackupDocument) -> Iterator[str | Styled]:
    """The facts as text."""
    rows = [
        [f"step {step['step']}", size_text(sum(file.nbytes for file in step["files"])), _how(step["files"])]
        for step in facts["steps"]
    ]
    if rows:
        yield from columns(rows, right=(1,))
    for left in facts["left_out"]:
        what = "damaged" if left.damaged else "could not be read" if left.unread else "not whole"
        what = "something else is in its place" if left.taken else what
        yield Styled(f"  step {left.step}  left out, {what}: {'; '.join(left.reasons)}", "bad")
    for step in facts["no_optimizer"]:
        yield Styled(f"  note: step {step}: {NO_OPTIMIZER}; it is copied, and training cannot go on from it", "warn")
    if facts["others"]:
        yield f"  of no step, and not copied: {some(facts['others'], 8)}"
    if not facts["steps"]:
        yield Styled("nothing was backed up", "bad")
        return
    total = count_text(len(facts["steps"]), "step")
    amount = f"{total}, {size_text(facts['nbytes'])}"
    # Of an object what arrived is not read again.
    claim = f"{Verdict.VERIFIED} before it was sent to" if is_url(facts["destination"]) else f"{Verdict.VERIFIED} in"
    text = f"{amount}, {claim} {facts['destination']} ({duration_text(facts['seconds'])})"
    yield Styled(text, "warn" if facts["left_out"] or facts["no_optimizer"] else "good")


def _how(files: list[CopiedFile]) -> str:
    counts = Counter(file.how for file in files)
    words = {
        "copy": "copied",
        "sent": "sent",
        "reflink": "reflinked",
        "hard link": "hard-linked",
        "already there": "already there",
    }
    return ", ".join(f"{count_text(count, 'file')} {words[how]}" for how, count in counts.items())
