"""Delete the steps of a directory that are no longer needed: nanochat's, a Trainer's, Lightning's, your own.

A step stays if a rule keeps it. The newest whole step always stays, and is
verified first; so does everything newer, which may still be being saved. If no
step is whole, nothing is deleted. What has no step in its name is left alone,
and named. Look first: --dry-run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Final, TypedDict

from fastckpt.cli.render import Output, Styled, columns
from fastckpt.keeping.retention import Decision, Retention, carry_out, decide, series_in
from fastckpt.text import count_text, size_text, some

RULES: Final = ("--keep-last", "--keep-every", "--keep-best", "--min-free")

EXAMPLES: Final = (
    "fastckpt prune base_checkpoints/d4 --keep-last 2 --dry-run",
    "fastckpt prune base_checkpoints/d4 --keep-last 1 --keep-every 10 --keep-best val_bpb",
    "fastckpt prune trainer --keep-last 2 --keep-best eval_loss --dry-run",
)


class PruneDocument(TypedDict):
    directory: str
    dry_run: bool
    steps: list[Decision]
    left_out: list[str]
    nbytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt prune``."""
    parser.add_argument("directory", metavar="DIR", help="a directory with steps: model_000500.pt, checkpoint-500/")
    add_rules(parser, keep_last=2)
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")


def add_rules(parser: argparse.ArgumentParser, *, keep_last: int | None) -> None:
    """The arguments that say which steps to keep.

    Args:
        parser: Of the command.
        keep_last: What ``--keep-last`` is if it is not given.
    """
    default = f" (default: {keep_last})" if keep_last else ""
    parser.add_argument(
        "--keep-last", type=int, default=keep_last, metavar="N", help=f"keep the N newest whole steps{default}"
    )
    parser.add_argument("--keep-every", type=int, metavar="N", help="keep every step that is a multiple of N")
    parser.add_argument("--keep-best", metavar="KEY", help="keep the step with the smallest KEY: val_bpb, eval_loss")
    parser.add_argument(
        "--min-free", metavar="X", help="delete only while less than this is free: 10%%, 50GB or bytes, oldest first"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Delete what no rule keeps, and show every decision."""
    policy = Retention(args.keep_last, args.keep_every, args.keep_best, args.min_free)
    series = series_in(args.directory)
    decisions = decide(policy, series) if args.dry_run else carry_out(policy, series)
    facts: PruneDocument = {
        "directory": args.directory,
        "dry_run": args.dry_run,
        "steps": decisions,
        "left_out": series.left_out,
        "nbytes": sum(decision.nbytes for decision in decisions if not decision.keep),
    }
    out.show(facts, _lines)
    out.document(facts)
    return 0


def _lines(facts: PruneDocument) -> Iterator[str | Styled]:
    drop = "would delete" if facts["dry_run"] else "deleted"
    rows = [["step", "frees", "", "why"]]
    for step in facts["steps"]:
        rows.append([f"{step.step:,}", size_text(step.nbytes), "keep" if step.keep else drop, step.why])
    head, *lines = columns(rows, right=(0, 1))
    yield Styled(head, "bold")
    for step, line in zip(facts["steps"], lines, strict=True):
        yield line if step.keep else Styled(line, "warn")
    dropped = sum(not step.keep for step in facts["steps"])
    kept = len(facts["steps"]) - dropped
    if facts["left_out"]:
        yield f"not looked at, their names say no step: {some(map(os.path.basename, facts['left_out']), 8)}"
    yield f"{drop} {count_text(dropped, 'step')}, {size_text(facts['nbytes'])}; {count_text(kept, 'step')} kept"
