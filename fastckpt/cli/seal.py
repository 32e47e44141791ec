"""Write checksums beside files that are to stay as they are, and check them.

For each file NAME a file NAME.fckpt-sums is written, with a digest for every 16 KiB of it. The file can be anything: a
.safetensors, which has no checksums of its own, a .pt, a .gguf, a configuration. A directory stands for all files in it
and in those inside it. From then on verify, load and all else of fastckpt use the seal that is there.

With --check nothing is written: every byte is compared with the seals. Files of a directory that have none, and seals
whose file is gone, are named. The exit code is that of the worst.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypedDict, TypeVar

from fastckpt.cli.near import with_near_names
from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import ErrorFacts, Output, Styled, error_facts, range_lines
from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import FastckptError, NotACheckpointError, UsageError
from fastckpt.io.transfer import Progress
from fastckpt.sealing.check import Checked, CheckedFacts, check
from fastckpt.sealing.files import files_to_seal, sealed_files_gone
from fastckpt.sealing.seal import Sealed, SealedFacts, seal
from fastckpt.seals.names import is_sums_path
from fastckpt.text import count_text, shown_path, size_text
from fastckpt.verdicts import Verdict

EXAMPLES: Final = (
    "fastckpt seal model.safetensors",
    "fastckpt seal --parity 3% my-model                # so that fastckpt repair can heal it",
    "fastckpt seal --sha256 my-model                   # every file in a directory",
    "fastckpt seal --check --quiet my-model            # in CI: says only what is wrong",
    "fastckpt seal --update config.json                # after a change on purpose",
)

T = TypeVar("T")


class NotSealed(TypedDict):
    path: str
    error: ErrorFacts


class SealDocument(TypedDict):
    sealed: Sequence[SealedFacts]
    failed: Sequence[NotSealed]


class SealCheckDocument(TypedDict):
    verdict: str | None
    files: Sequence[CheckedFacts]
    failed: Sequence[NotSealed]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt seal``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file of any kind, or a directory")
    parser.add_argument("--check", action="store_true", help="write nothing, compare every byte with the seals")
    parser.add_argument("--update", action="store_true", help="seal anew what was changed on purpose")
    parser.add_argument(
        "--parity", metavar="SHARE", help="keep parity, too, 3%% or 10%%: repair heals that much of the file from it"
    )
    parser.add_argument("--sha256", action="store_true", help="keep SHA-256, too; with --check compare it")
    parser.add_argument("--quiet", action="store_true", help="say nothing of files that are as they should be")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Seal, or check; returns the highest exit code."""
    writing = "--update" if args.update else "--parity" if args.parity else None
    if args.check and writing is not None:
        raise UsageError(f"--check writes nothing, and {writing} does", next_step="fastckpt seal --help")
    return _check(args, out) if args.check else _seal(args, out)


def _seal(args: argparse.Namespace, out: Output) -> int:
    sealed: list[Sealed] = []

    def one(path: str, progress: Progress | None) -> Sealed:
        return seal(
            path,
            parity=args.parity,
            sha256=args.sha256,
            update=args.update,
            threads=args.threads,
            progress=progress,
        )

    def show(made: Sealed) -> None:
        sealed.append(made)
        out.show(made, lambda made: [] if args.quiet else [_sealed_line(made)])

    paths = _without_sums_of([path for given in args.paths for path in _files_in(given)])
    failed, code = _each("sealing", paths, one, show, out)
    document: SealDocument = {"sealed": [made.as_dict() for made in sealed], "failed": failed}
    out.document(document)
    return code


def _sealed_line(made: Sealed) -> str:
    if not made.is_new:
        return f"{shown_path(made.path)}: sealed already"
    tensors = f", {count_text(made.tensors, 'tensor')}" if made.tensors else ""
    sha256 = f", SHA-256 {made.sha256}" if made.sha256 is not None else ""
    parity = f", parity {made.parity}" if made.parity is not None else ""
    sums = f"(sums {size_text(made.sums_size)}{parity})"
    return f"{shown_path(made.path)}: sealed, {size_text(made.size)}{tensors} {sums}{sha256}"


def _check(args: argparse.Namespace, out: Output) -> int:
    found: list[Checked] = []

    def one(path: str, progress: Progress | None) -> Checked:
        return check(path, sha256=args.sha256, threads=args.threads, progress=progress)

    def show(checked: Checked) -> None:
        found.append(checked)
        out.show(checked, lambda checked: _checked_lines(checked, quiet=args.quiet))

    paths = _without_sums_of([path for given in args.paths for path in _files_in(given, gone=True)])
    failed, code = _each("checking", paths, one, show, out)
    every = not failed and all(checked.verdict is Verdict.AS_SEALED for checked in found)
    verdict = Verdict.ALL_AS_SEALED if every else None
    if not (args.quiet and every):
        out.show(found, lambda found: _sum_lines(found, len(failed), verdict))
    document: SealCheckDocument = {
        "verdict": verdict.value if verdict is not None else None,
        "files": [checked.as_dict() for checked in found],
        "failed": failed,
    }
    out.document(document)
    return max([code, *(checked.exit_code for checked in found)])


def _checked_lines(checked: Checked, *, quiet: bool) -> Iterable[str | Styled]:
    if checked.verdict is Verdict.AS_SEALED:
        signed = f" ({Verdict.AS_SIGNED})" if checked.signed else ""
        if not quiet:
            yield Styled(f"{shown_path(checked.path)}: {Verdict.AS_SEALED}{signed}", "good")
        return
    style = "warn" if checked.exit_code == 1 else "bad"
    yield Styled(f"{shown_path(checked.path)}: FAILED ({checked.state}): {checked.message}", style)
    if checked.state == "changed":
        yield from range_lines([finding.as_dict() for finding in checked.findings])
    if checked.next_step is not None:
        yield f"  next: {checked.next_step}"


def _sum_lines(found: Sequence[Checked], failed: int, verdict: Verdict | None) -> Iterable[Styled]:
    good = [checked for checked in found if checked.verdict is Verdict.AS_SEALED]
    total, size = len(found) + failed, sum(checked.size for checked in good)
    if verdict is not None:
        yield Styled(f"{count_text(total, 'file')}, {size_text(size)}: {verdict}", "good")
    else:
        yield Styled(f"{count_text(total, 'file')}: {len(good)} as sealed, {total - len(good)} not", "bad")


def _files_in(path: str, *, gone: bool = False) -> list[str]:
    """The files that a path stands for; ``gone``: also those of which only the seal is there."""
    if not os.path.isdir(path):
        return [path]
    found = [*files_to_seal(path), *(sealed_files_gone(path) if gone else ())]
    if not found:
        raise NotACheckpointError("there is no file in this directory", path=path)
    return sorted(found)


def _without_sums_of(paths: Sequence[str]) -> list[str]:
    """The paths without sums files of files that are among them: ``seal *`` is given both."""
    given = set(paths)
    return [path for path in paths if not (is_sums_path(path) and path.removesuffix(SUMS_SUFFIX) in given)]


def _each(
    doing: str, paths: Sequence[str], one: Callable[[str, Progress | None], T], show: Callable[[T], None], out: Output
) -> tuple[list[NotSealed], int]:
    """Do something with each file, and go on with the others where that fails; the failures, and the highest code."""
    failed: list[NotSealed] = []
    code = 0
    for path in dict.fromkeys(paths):
        try:
            with progress_bar(f"{doing} {os.path.basename(path)}", lambda path=path: bytes_at(path)) as progress:  # type: ignore[misc]
                done = one(path, progress)
        except FastckptError as error:
            if len(paths) == 1 or error.exit_code == UsageError.exit_code:
                raise
            code = max(code, with_near_names(error).exit_code)
            out.show([Styled(str(error), "bad")], list)
            failed.append({"path": path, "error": error_facts(error)})
        else:
            show(done)
    return failed, code
