"""Check every byte of checkpoint files.

A .fckpt file is checked by its digests, a .pt file by its CRCs; a .safetensors
file has no checksums, so its tensors can be present but never proven, unless
there is a seal beside it (fastckpt seal), which proves any file. A directory
stands for all checkpoint files in it. What is several files (a model in shards,
a Trainer's step, torch.distributed.checkpoint, DeepSpeed) has to be whole as
well: all of them there, each with what the others say; and so has each step of
nanochat. The exit code is that of the worst.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final, TypedDict, cast

from fastckpt.cli.files import checkpoint_files
from fastckpt.cli.nanochat_facts import notes_on_meta
from fastckpt.cli.nanochat_sets import judge_steps, step_lines
from fastckpt.cli.near import with_near_names
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import ErrorFacts, Output, Styled, error_facts
from fastckpt.cli.set_text import set_lines
from fastckpt.errors import FastckptError
from fastckpt.findings import UNSETTLED, ByteCounts, Kind, VerifiedFile
from fastckpt.io.there import size_there
from fastckpt.io.transfer import thread_count
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.remote.path import Place, as_place, located
from fastckpt.sets.judge import SetDocument, judge
from fastckpt.sets.model import UNREADABLE, CheckpointSet
from fastckpt.sets.recognise import recognise
from fastckpt.stored.inspection import storage_bytes
from fastckpt.stored.verify import verify
from fastckpt.text import count_text, duration_text, rate_text, share_text, size_text, some
from fastckpt.verdicts import Verdict

_SHOWN_FINDINGS = 50

EXAMPLES: Final = (
    "fastckpt verify model_000500.fckpt",
    "fastckpt verify -r base_checkpoints               # all below it",
    "fastckpt verify broken.pt --json",
)


class VerifyDocument(VerifiedFile):
    seconds: float


class FailedFile(TypedDict):
    path: str
    ok: bool
    error: ErrorFacts


class VerifySeveralDocument(TypedDict):
    files: Sequence[VerifyDocument | VerifiedFile | FailedFile]
    sets: Sequence[SetDocument]
    meta_notes: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt verify``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a checkpoint file, or a directory with some in it")
    parser.add_argument("-r", "--recursive", action="store_true", help="also the directories inside a directory")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Verify all paths; returns the highest exit code."""
    named: list[Place] = [as_place(located(path)) for path in args.paths]
    directories = [path for path in named if is_directory_of_checkpoints(path)]
    by_directory = {path: recognise(path) for path in directories}
    sets = [each for found in by_directory.values() for each in found]
    judged, inside = [_judge(checkpoint, args.threads) for checkpoint in sets], _files_of(sets)
    with_sets = {path for path, found in by_directory.items() if found}
    paths, single = checkpoint_files(named, recursive=args.recursive, besides=inside, may_be_empty=with_sets)
    if single:
        facts, code = _verify(paths[0], args.threads)
        out.show(facts, _lines)
        out.document(facts)
        return code
    verified: list[VerifiedFile] = []
    files: list[VerifiedFile | FailedFile] = []
    codes: dict[str, int] = {}
    for path in paths:
        try:
            facts, code = _verify(path, args.threads)
        except FastckptError as error:
            if error.exit_code == 64:
                raise
            code = with_near_names(error).exit_code
            # The error's own text begins with the path.
            out.show([Styled(str(error), "bad")], list)
            files.append({"path": os.fspath(path), "ok": False, "error": error_facts(error)})
        else:
            out.show(facts, lambda facts: _lines(facts, prefix=f"{facts['path']}: "))
            verified.append(facts)
            files.append(facts)
        codes[os.path.abspath(path)] = code
    by_path = {os.path.abspath(file["path"]): file for file in verified}
    steps = [
        step
        for path in dict.fromkeys(_here(directories))
        for step in judge_steps(path, by_path, codes, recursive=args.recursive)
    ]
    for checkpoint in judged:
        out.show(checkpoint, _set_lines)
        verified += checkpoint["files"]
        files += checkpoint["files"]
    for step in steps:
        out.show(step, step_lines)
    notes = notes_on_meta(_here(paths))
    out.show(notes, lambda notes: [Styled(f"{path}: {note}", "warn") for path, note in notes.items()])
    refused = sum(_refused(checkpoint) for checkpoint in judged)
    out.show(verified, lambda verified: _summary_lines(verified, len(files) + refused, [*judged, *steps]))
    summary: VerifySeveralDocument = {"files": files, "sets": [*judged, *steps], "meta_notes": notes}
    out.document(summary)
    return max([*codes.values(), *(checkpoint["exit_code"] for checkpoint in [*judged, *steps])])


def _here(paths: Iterable[Place]) -> list[str]:
    """Those that are on this computer: of a step of nanochat in a store each file is verified, and no more."""
    return [path for path in paths if isinstance(path, str)]


def _judge(checkpoint: CheckpointSet, threads: int | None) -> SetDocument:
    with progress_bar(
        f"verifying {os.path.basename(checkpoint.path)}",
        lambda: sum(size_there(member.place) or 0 for member in checkpoint.files),
    ) as progress:
        return judge(checkpoint, threads=thread_count(threads), progress=progress).as_dict()


def _refused(checkpoint: SetDocument) -> int:
    """How many files of it are there and could not be verified at all."""
    read = {file["path"] for file in checkpoint["files"]}
    bad = {problem["path"] for problem in checkpoint["problems"] if problem["kind"] in ("damaged", UNREADABLE)}
    return len(bad - read)


def _files_of(sets: Iterable[CheckpointSet]) -> set[str]:
    """What is judged with its set, and not once more by itself."""
    return {member.path for checkpoint in sets for member in checkpoint.files}


def _verify(path: Place, threads: int | None) -> tuple[VerifyDocument, int]:
    with progress_bar(f"verifying {os.path.basename(path)}", lambda: storage_bytes(path)) as progress:
        start = time.perf_counter()
        report = verify(path, threads=threads, progress=progress)
    seconds = time.perf_counter() - start
    return {**report.as_dict(), "seconds": seconds}, report.exit_code


def _set_lines(facts: SetDocument) -> Iterable[str | Styled]:
    for file in facts["files"]:
        yield from _lines(file, prefix=f"{file['path']}: ")
    yield from set_lines(facts)


def _lines(facts: VerifiedFile, prefix: str = "") -> Iterable[str | Styled]:
    findings = facts["findings"]
    for finding in findings[:_SHOWN_FINDINGS]:
        first, size = finding["offset"], finding["size"]
        place = f"bytes {first}-{first + size - 1}" if size else f"byte {first}"
        yield f"{prefix}{finding['kind']}  {place}  {finding['message']}"
    if len(findings) > _SHOWN_FINDINGS:
        yield f"{prefix}... and {len(findings) - _SHOWN_FINDINGS} more findings (--json lists all)"
    text, style = _verdict(facts)
    yield Styled(prefix + text, style)
    if facts["signed"]:
        yield f"{prefix}{Verdict.AS_SIGNED}"


def _verdict(facts: VerifiedFile) -> tuple[str, str]:
    size, verified = facts["size"], facts["verified_bytes"]
    if facts["verdict"] == Verdict.INTACT:
        what = _what_is_proven(facts)
        seconds = cast(VerifyDocument, facts).get("seconds")
        if seconds is None:  # One of several files that were looked at together.
            return f"{Verdict.INTACT}: {size_text(size)}, {what}", "good"
        speed = f" ({rate_text(verified, seconds)})" if verified else ""
        return f"{Verdict.INTACT}: {size_text(size)}, {what} in {duration_text(seconds)}{speed}", "good"
    if facts["verdict"] == Verdict.PRESENT:
        unproven = sum(finding["size"] for finding in facts["findings"])
        if not unproven and facts["findings"]:
            return f"{Verdict.PRESENT}: {size_text(size)}, and {UNSETTLED}", "warn"
        if not unproven:
            what = f"{size_text(size)}, without any tensor data, and no checksum to prove the rest by"
            return f"{Verdict.PRESENT}: {what}", "warn"
        return (
            f"{Verdict.PRESENT}: {size_text(size)}, of which {size_text(unproven)} have no checksum to prove them by",
            "warn",
        )
    if facts["verdict"] == "stale":
        (stale,) = (finding["message"] for finding in facts["findings"] if finding["kind"] == Kind.STALE.value)
        return f"stale: {stale}; {_next(facts)}", "warn"
    if facts["format"] == "unknown":
        return f"damaged: it is not as it was sealed; {_next(facts)}", "bad"
    damaged = facts["damaged_tensors"]
    if not any(finding["loss"] for finding in facts["findings"]):
        return (
            f"damaged, but no tensor is lost: {count_text(len(facts['findings']), 'finding')}; {_next(facts)}",
            "warn",
        )
    if not damaged:
        return f"damaged: which tensors are lost is not known; {_next(facts)}", "bad"
    total = f" of {facts['tensors_total']}" if facts["tensors_total"] is not None else ""
    noun = "tensor" if (facts["tensors_total"] or len(damaged)) == 1 else "tensors"
    proven = ""
    if facts["tensor_bytes"] is not None:
        counts = ByteCounts(**facts["tensor_bytes"])
        proven = f", {share_text(counts.proven, counts.total)} proven"
    return f"damaged: {len(damaged)}{total} {noun} ({some(damaged)}){proven}; {_next(facts)}", "bad"


def _what_is_proven(facts: VerifiedFile) -> str:
    own = {"fckpt": "every byte verified", "torch-zip": "every record matches its CRC-32"}.get(facts["format"])
    sealed = "every byte is as it was sealed" if facts["seal"] == "as sealed" else None
    return ", ".join(filter(None, (own, sealed)))


def _next(facts: VerifiedFile) -> str:
    return f"next: {facts['next']}"


def _summary_lines(verified: Sequence[VerifiedFile], count: int, sets: Sequence[SetDocument]) -> Iterable[str | Styled]:
    size = sum(file["size"] for file in verified)
    intact, present = (
        sum(file["verdict"] == verdict for file in verified) for verdict in (Verdict.INTACT, Verdict.PRESENT)
    )
    bad = count - intact - present
    counts = [f"{intact} {Verdict.INTACT}"]
    counts += [f"{present} {Verdict.PRESENT} but unproven"] if present else []
    counts += [f"{bad} not"] if bad else []
    whole = sum(each["verdict"] == Verdict.WHOLE for each in sets)
    of_sets = f"; {whole} of {count_text(len(sets), 'checkpoint')} {Verdict.WHOLE}" if sets else ""
    style = "bad" if bad or whole < len(sets) else "warn" if present else "good"
    yield Styled(f"{count_text(count, 'file')}, {size_text(size)}: {', '.join(counts)}{of_sets}", style)
