"""Deal the optimizer of a nanochat step to another number of ranks, exactly.

DIR is a checkpoint directory with optim_*_rank*.pt or .fckpt files. nanochat can
resume only on as many GPUs as saved the step; this writes the very rank files
that another number of GPUs would have written, and the way back gives the old
ones again. They take the place of the old ones when all of them are written and
verified; a run that was killed is finished by running it again. With -o the
step goes to another directory, model and meta with it, and DIR stays as it is.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final, TypedDict, cast

from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Output, Styled
from fastckpt.nanochat.names import OPTIM
from fastckpt.nanochat.steps import read_steps
from fastckpt.text import count_text, duration_text, size_text
from fastckpt.verdicts import Verdict

EXAMPLES: Final = (
    "fastckpt reshard two_ranks --step 12 --world-size 1 -o one_rank",
    "fastckpt reshard two_ranks --step 12 --world-size 4",
)


class ReshardDocument(TypedDict):
    directory: str
    step: int
    form: str | None
    ranks_before: int | None
    ranks: int
    files: tuple[str, ...]
    removed: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...]
    resume: str | None
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt reshard``."""
    parser.add_argument("directory", metavar="DIR", help="the directory with the model_* files")
    parser.add_argument("--step", type=int, metavar="N", required=True, help="which step")
    parser.add_argument("--world-size", type=int, metavar="M", required=True, help="how many ranks will resume")
    parser.add_argument("-o", "--output", metavar="DST", help="write the step into this directory")
    parser.add_argument(
        "--codec", default="none", metavar="C", help="for .fckpt files: none, planes, zstd or zstd:1-22"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Reshard, then show what was written."""
    from fastckpt.doctor.facts import read_tag
    from fastckpt.doctor.resuming import resume_command
    from fastckpt.nanochat.resharding import reshard

    start = time.perf_counter()
    with progress_bar(f"resharding step {args.step}", lambda: _size(args.directory, args.step)) as progress:
        done = reshard(
            args.directory,
            args.output,
            step=args.step,
            world_size=args.world_size,
            codec=args.codec,
            threads=args.threads,
            progress=progress,
        )
    written = read_tag(done.directory, deep=False, threads=args.threads, progress=None).examine(done.step)
    # A note says how a revision is started that wants torchrun for a single rank, too.
    resume = resume_command(written) if not done.notes or done.ranks > 1 else None
    seconds = time.perf_counter() - start
    facts = cast(ReshardDocument, {**asdict(done), "resume": resume, "seconds": seconds})
    out.show(facts, _lines)
    out.document(facts)
    return 0


def _size(directory: str, number: int) -> int:
    """Bytes of optimizer there are: what the progress bar is out of. Zero if there is no such step."""
    step = read_steps(directory).get(number)
    ranks = [paths for stem, paths in step.states.items() if stem.role == OPTIM] if step else []
    return sum(os.path.getsize(next(iter(paths.values()))) for paths in ranks)


def _lines(facts: ReshardDocument) -> Iterator[str | Styled]:
    step = f"step {facts['step']} in {facts['directory']}"
    if not facts["files"]:
        yield f"{step}: nothing to write"
    else:
        ranks = f"{facts['ranks_before']} -> {facts['ranks']} ranks"
        size = f"{facts['form']}, {size_text(facts['nbytes'])} of optimizer state"
        yield Styled(f"{step}: {ranks}, {size}, {Verdict.VERIFIED}, {duration_text(facts['seconds'])}", "good")
        yield f"  written: {count_text(len(facts['files']), 'file')}"
    if facts["removed"]:
        yield f"  replaced: {', '.join(map(os.path.basename, facts['removed']))}"
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "warn")
    if facts["resume"] is not None:
        yield f"  next: {facts['resume']}"
