"""Say what is different between two checkpoints, and by how much.

A and B are .pt, .safetensors or .fckpt files in any combination, recognised by their
content; or two nanochat directories; or two steps of one: DIR --steps 500 1000.
Tensors are identical only if every bit is. Neither file is loaded, and nothing
in it is executed. The exit code is 0 if there is no difference and 1 if there
is one or if not everything could be compared, 2 if damage kept something from being compared.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import Final

from fastckpt.cli.diff_facts import DiffDirectoriesDocument, DiffDocument, DiffPair, FailedPair, pair_facts
from fastckpt.cli.diff_pairs import pair_directories
from fastckpt.cli.diff_text import pair_lines, summary_lines
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Output, Styled, error_facts
from fastckpt.errors import FastckptError, TensorNotFoundError, UsageError
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import storage_bytes
from fastckpt.text import quoted

EXAMPLES: Final = (
    "fastckpt diff model_000400.pt model_000500.pt --top 5",
    "fastckpt diff model_000500.pt model_000500.fckpt     # of any two formats",
    "fastckpt diff base_checkpoints/d4 --steps 10 20",
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
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Compare the two; returns 0, 1 or the exit code of the worst failure."""
    if args.top < 0:
        raise UsageError("--top must not be negative", actual=args.top)
    limit = None if args.all else args.top
    directories = [is_directory_of_checkpoints(path) for path in args.paths]
    if all(directories):
        return _run_directories(args, out, limit)
    if len(args.paths) != 2:
        raise UsageError("diff needs two files, or a directory and --steps", next_step="fastckpt diff --help")
    if any(directories):
        raise UsageError("a file cannot be compared with a directory", path=args.paths[directories.index(True)])
    if args.steps is not None:
        raise UsageError("--steps is for directories, not for files", path=args.paths[0])
    facts, code = _compare(args.paths[0], args.paths[1], args)
    if not _has_tensors(facts):
        _require_match(args)
    out.show(facts, lambda facts: pair_lines(facts, limit))
    out.document(facts)
    return code


def _run_directories(args: argparse.Namespace, out: Output, limit: int | None) -> int:
    paired = pair_directories(args.paths, args.steps)
    pairs: list[tuple[str, DiffDocument | FastckptError]] = []
    files: list[DiffPair | FailedPair] = []
    codes = [1] if paired.only_a or paired.only_b else [0]
    for role, a, b in paired.files:
        # A file that cannot be compared does not keep the others from it.
        try:
            facts, code = _compare(a, b, args)
        except FastckptError as error:
            if error.exit_code == 64:
                raise
            code = error.exit_code
            pairs.append((role, error))
            files.append({"role": role, "a": {"path": a}, "b": {"path": b}, "same": None, "error": error_facts(error)})
        else:
            pairs.append((role, facts))
            files.append({"role": role, **facts})
        codes.append(code)
    if not any(isinstance(found, FastckptError) or _has_tensors(found) for _, found in pairs):
        _require_match(args)
    for role, found in pairs:
        if isinstance(found, FastckptError):
            out.show([Styled(role, "bold"), Styled(f"  {found}", "bad")], list)
        else:
            out.show(found, partial(pair_lines, limit=limit, role=role))
    summary: DiffDirectoriesDocument = {
        "a": paired.a,
        "b": paired.b,
        "same": max(codes) == 0,
        "only_in_a": paired.only_a,
        "only_in_b": paired.only_b,
        "files": files,
    }
    out.show(summary, summary_lines)
    out.document(summary)
    return max(codes)


def _compare(path_a: str, path_b: str, args: argparse.Namespace) -> tuple[DiffDocument, int]:
    start = time.perf_counter()
    label = f"comparing {os.path.basename(path_a)} with {os.path.basename(path_b)}"
    with progress_bar(label, lambda: 0 if args.structure_only else storage_bytes(path_a)) as progress:
        found = compare(
            path_a,
            path_b,
            keys=args.keys,
            structure_only=args.structure_only,
            digests_only=args.digests,
            threads=args.threads,
            progress=progress,
        )
    facts: DiffDocument = {**pair_facts(found), "seconds": time.perf_counter() - start}
    return facts, 2 if found.damaged else int(found.same is not True)


def _has_tensors(facts: DiffDocument) -> bool:
    return bool(facts["tensors"] or facts["only_in_a"] or facts["only_in_b"])


def _require_match(args: argparse.Namespace) -> None:
    """Raise TensorNotFoundError if names were asked for that no file has."""
    if args.keys is not None:
        next_step = f"fastckpt inspect {quoted(args.paths[0])}"
        raise TensorNotFoundError(f"no tensor matches {args.keys!r}", path=args.paths[0], next_step=next_step)
