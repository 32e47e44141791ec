"""Say what is different between two checkpoints, and by how much.

A and B are .pt, .safetensors or .fckpt files in any combination, recognised by their
content, or directories: a model in shards, a checkpoint of torch.distributed.checkpoint
or a set, whatever their sharding; or steps of a run, or two of one: DIR --steps 500 1000.
Tensors are identical only if every bit is. Neither file is loaded, and nothing
in it is executed. The exit code is 0 if there is no difference and 1 if there
is one or if not everything could be compared, 2 if damage kept something from being compared.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from fastckpt.cli.diff_facts import DiffDirectoriesDocument, DiffDocument, DiffPair, FailedPair, pair_facts
from fastckpt.cli.diff_pairs import pair_directories
from fastckpt.cli.diff_sets import PairedDirectories, pair_checkpoints
from fastckpt.cli.diff_text import pair_lines, summary_lines, verdict_line
from fastckpt.cli.pages import refuse_page
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Output, Styled, error_facts
from fastckpt.cli.set_text import other_sets
from fastckpt.errors import FastckptError, TensorNotFoundError, UsageError
from fastckpt.io.commit import publish_bytes
from fastckpt.io.os_errors import refuse_missing
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.nanochat.places import is_nanochat
from fastckpt.sets.parts_of import WHOLE, StatePart
from fastckpt.stored.comparison import Comparison, compare
from fastckpt.text import quoted

EXAMPLES: Final = (
    "fastckpt diff model_000400.pt model_000500.pt --top 5",
    "fastckpt diff model_000500.pt model_000500.fckpt     # of any two formats",
    "fastckpt diff base_checkpoints/d4 --steps 10 20 --html d4.html",
    "fastckpt diff run-a/step-500 run-b/step-500         # saved on any ranks, by any program",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt diff``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="A and B: two files, or one or two directories")
    parser.add_argument("--steps", nargs=2, type=int, metavar="N", help="the step in A and the one in B")
    parser.add_argument("--keys", metavar="GLOB", help="compare only the tensors whose name matches")
    parser.add_argument("--structure-only", action="store_true", help="do not read what is in the tensors")
    parser.add_argument("--digests", action="store_true", help="do not read what has the same digests in both")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many differences to list (default: 20)")
    parser.add_argument("--all", action="store_true", help="list all differences")
    parser.add_argument("--html", metavar="HTML", help="draw it as a page, too: what changed, where, and by how much")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Compare the two; returns 0, 1 or the exit code of the worst failure."""
    if args.top < 0:
        raise UsageError("--top must not be negative", actual=args.top)
    limit = None if args.all else args.top
    if args.html is not None:
        refuse_page(args.html, args.paths)
    if len(args.paths) > 2:
        raise UsageError("diff compares two checkpoints", actual=f"{len(args.paths)} paths")
    directories = [is_directory_of_checkpoints(path) for path in args.paths]
    if any(directories) and (args.steps is None or all(directories)):
        return _run_directories(args, _paired(args.paths, args.steps), out, limit)
    if args.steps is not None:
        file = args.paths[directories.index(False)]
        refuse_missing(file)
        raise UsageError("--steps is for directories, not for files", path=file)
    if len(args.paths) != 2:
        raise UsageError("diff needs two files, or a directory and --steps", next_step="fastckpt diff --help")
    facts, code, found = _compare(StatePart.of_file(args.paths[0]), StatePart.of_file(args.paths[1]), args)
    if not _has_tensors(facts):
        _require_match(args)
    out.show(facts, lambda facts: pair_lines(facts, limit))
    _draw(args, args.paths[0], args.paths[1], [("", found, facts)])
    out.document(facts)
    return code


def _paired(paths: Sequence[str], steps: Sequence[int] | None) -> PairedDirectories:
    """What belongs together in two directories, or in a directory and a file."""
    ours = [is_nanochat(path) for path in paths]
    if not any(ours) and any(map(other_sets, paths)):
        return pair_checkpoints(paths, steps)
    for path in paths:
        is_file = not is_directory_of_checkpoints(path)
        if is_file or (any(ours) and other_sets(path)):
            what = "a file" if is_file else "this directory"
            raise UsageError(f"{what} cannot be compared with one of nanochat's directories", path=path)
    return pair_directories(paths, steps)


def _run_directories(args: argparse.Namespace, paired: PairedDirectories, out: Output, limit: int | None) -> int:
    pairs: list[tuple[str, DiffDocument | FastckptError]] = []
    files: list[DiffPair | FailedPair] = []
    codes = [1] if paired.only_a or paired.only_b else [0]
    drawn: list[tuple[str, Comparison, DiffDocument]] = []
    for role, a, b in paired.states:
        # A file that cannot be compared does not keep the others from it.
        try:
            facts, code, comparison = _compare(a, b, args)
        except FastckptError as error:
            if error.exit_code == 64:
                raise
            code = error.exit_code
            pairs.append((role, error))
            failed = error_facts(error)
            files.append({"role": role, "a": {"path": a.path}, "b": {"path": b.path}, "same": None, "error": failed})
        else:
            pairs.append((role, facts))
            files.append({"role": role, **facts})
            drawn.append((role, comparison, facts))
        codes.append(code)
    if not any(isinstance(found, FastckptError) or _has_tensors(found) for _, found in pairs):
        _require_match(args)
    alone = len(pairs) == 1 and paired.states[0].role == WHOLE
    for role, found in pairs:
        if isinstance(found, FastckptError):
            out.show([Styled(role, "bold"), Styled(f"  {found}", "bad")], list)
        else:
            out.show(found, partial(pair_lines, limit=limit, role=None if alone else role))
    summary: DiffDirectoriesDocument = {
        "a": paired.a,
        "b": paired.b,
        "same": max(codes) == 0,
        "only_in_a": paired.only_a,
        "only_in_b": paired.only_b,
        "files": files,
    }
    if not alone:
        out.show(summary, summary_lines)
    _draw(args, paired.a, paired.b, drawn)
    out.document(summary)
    return max(codes)


def _compare(a: StatePart, b: StatePart, args: argparse.Namespace) -> tuple[DiffDocument, int, Comparison]:
    start = time.perf_counter()
    label = f"comparing {os.path.basename(a.path)} with {os.path.basename(b.path)}"
    with a.open() as one, b.open() as other:
        total = 0 if args.structure_only else sum(one.storage_sizes)
        with progress_bar(label, lambda: total) as progress:
            found = compare(
                one,
                other,
                keys=args.keys,
                structure_only=args.structure_only,
                digests_only=args.digests,
                threads=args.threads,
                progress=progress,
            )
    facts: DiffDocument = {**pair_facts(found), "seconds": time.perf_counter() - start}
    return facts, 2 if found.damaged else int(found.same is not True), found


def _draw(args: argparse.Namespace, a: str, b: str, pairs: Sequence[tuple[str, Comparison, DiffDocument]]) -> None:
    """Write the page, if one is wanted."""
    if args.html is None:
        return
    from fastckpt.plotting.difference import Compared, difference_page

    alone = len(pairs) == 1
    told = []
    for role, found, facts in pairs:
        line = verdict_line(facts)
        told.append(Compared("" if alone else role, found, line.text, line.style))
    page = difference_page(a, b, told)
    publish_bytes(args.html, page.encode(), durable=False)


def _has_tensors(facts: DiffDocument) -> bool:
    return bool(facts["tensors"] or facts["only_in_a"] or facts["only_in_b"])


def _require_match(args: argparse.Namespace) -> None:
    """Raise TensorNotFoundError if names were asked for that no file has."""
    if args.keys is not None:
        next_step = f"fastckpt inspect {quoted(args.paths[0])}"
        raise TensorNotFoundError(f"no tensor matches {args.keys!r}", path=args.paths[0], next_step=next_step)
