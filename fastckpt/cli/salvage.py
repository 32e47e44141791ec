"""Get every tensor that is still proven out of a damaged checkpoint.

SRC is a .pt, .safetensors or .fckpt file in any state, or a directory with
checkpoints; it is only ever read. What parity heals, in a seal beside it or inside, is
healed first, in a temporary file. Without -o this is a dry run: it shows what
would come back. With -o, tensors whose checksums match are written to DST,
whose suffix (.fckpt, .pt, .safetensors) tells the format.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output, Styled, columns, range_lines
from fastckpt.cli.set_text import other_sets, show_sets
from fastckpt.errors import UsageError
from fastckpt.findings import ByteCounts, FindingFacts
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.salvaging.directory import SalvageDirectoryDocument
from fastckpt.salvaging.report import SalvagedFile
from fastckpt.sets.model import CheckpointSet
from fastckpt.surveying.fates import FateFacts
from fastckpt.text import collapse, count_text, share_text, size_text, some
from fastckpt.verdicts import Verdict

_SHOWN = 40
_STYLES = {Verdict.WHOLE: "good", "incomplete": "warn", "mixed": "bad", "damaged": "bad", "unread": "bad"}

EXAMPLES: Final = (
    "fastckpt salvage broken.pt                         # what would come back; writes nothing",
    "fastckpt salvage broken.pt -o rescued.pt --backfill model_000400.pt",
    "fastckpt salvage base_checkpoints/d4               # what is whole in a directory",
)


class SalvageDocument(SalvagedFile):
    exit_code: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt salvage``."""
    parser.add_argument("source", metavar="SRC", help="the damaged file, or a directory of checkpoints")
    parser.add_argument("-o", "--output", metavar="DST", help="the file to write; without it, a dry run")
    parser.add_argument("--like", metavar="FILE", help="a checkpoint of the same structure, for names that are lost")
    parser.add_argument("--backfill", metavar="OTHER", help="take tensors that did not come back from this checkpoint")
    parser.add_argument(
        "--include",
        default="",
        metavar="WHAT",
        help="what else comes back: unverified, partial, damaged (separated by commas)",
    )
    parser.add_argument(
        "--fill", choices=("nan", "zeros"), default="nan", help="for their missing bytes (default: nan)"
    )
    parser.add_argument("--no-durable", action="store_true", help="do not wait until it would survive a power cut")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Salvage, then show what became of every tensor."""
    from fastckpt.salvaging.salvage import salvage
    from fastckpt.salvaging.survey_set import the_one

    if is_directory_of_checkpoints(args.source):
        sets = other_sets(args.source)
        if the_one(sets, args.source) is None:
            return _run_directory(args, sets, out)
    include = [name.strip() for name in args.include.split(",") if name.strip()]
    with progress_bar(f"salvaging {os.path.basename(args.source)}", lambda: bytes_at(args.source)) as progress:
        report = salvage(
            args.source,
            args.output,
            like=args.like,
            include=include,
            fill=args.fill,
            backfill=args.backfill,
            durable=not args.no_durable,
            threads=args.threads,
            progress=progress,
        )
    facts: SalvageDocument = {**report.as_dict(), "exit_code": report.exit_code}
    out.show(facts, _lines)
    out.document(facts)
    return report.exit_code


def _run_directory(args: argparse.Namespace, sets: Sequence[CheckpointSet], out: Output) -> int:
    from fastckpt.salvaging.directory import salvage_directory

    if args.output or args.like or args.backfill or args.include:
        raise UsageError(
            "of a directory salvage only shows the state; salvage its files one by one",
            path=args.source,
            next_step="fastckpt salvage FILE -o DST",
        )
    if sets:
        return show_sets(args.source, sets, args.threads, out)
    report = salvage_directory(args.source, threads=args.threads)
    facts = report.as_dict()
    out.show(facts, _directory_lines)
    out.document(facts)
    return report.exit_code


# --- a file -------------------------------------------------------------------


def _lines(facts: SalvageDocument) -> Iterator[str | Styled]:
    tensors = facts["tensors"]
    what = f"{facts['format']}, " if facts["format"] != "unknown" and tensors else ""
    counts = ByteCounts(**facts["tensor_bytes"])
    of_what = "tensor data" if _all_are_known(facts) else "the data of known tensors"
    proven = f", {share_text(counts.proven, counts.total)} of {of_what} proven" if counts.total else ""
    yield f"{facts['path']}: {what}{size_text(facts['size'])}, {count_text(len(tensors), 'tensor')}{proven}"
    if facts["structure"] not in ("whole", "none"):
        yield Styled(f"  names and shapes: {_structure(facts['structure'])}", "warn")
    if facts["healed"]:
        yield "  healed first by its parity, every byte proven:"
        yield from range_lines(facts["healed"])
    yield from _count_lines(facts)
    yield from _fate_lines(facts)
    for finding in _other_findings(facts):
        yield f"  note: {finding['message']}"
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "warn")
    yield from _outcome(facts)
    following = facts["next"].split("\n")
    # Lines of Python are for the user's own script.
    yield f"next: {following[0]}" if len(following) == 1 else "next, where the model and the optimizer are made:"
    yield from (f"  {line}" for line in following if len(following) > 1)


def _all_are_known(facts: SalvageDocument) -> bool:
    """Whether what is damaged cannot have named more tensors than are listed."""
    return facts["structure"] not in ("damaged", "from index/header", "from shards")


def _structure(structure: str) -> str:
    return {
        "from index/header": "from the record headers, flat",
        "from shards": "from the shards, which say what their parts are parts of",
        "like": "from the file given with --like",
        "sibling": "from another file in the directory",
        "nanochat order": "from the model config in meta",
        "damaged": "from a damaged header, not certain",
    }.get(structure, structure)


_MEANINGS = {
    "intact": "every byte matches its checksum",
    "unverified": "every byte is there, nothing proves it",
    "damaged": "a checksum does not match",
    "partial": "the beginning is there",
    "lost": "nothing is there",
}


def _count_lines(facts: SalvageDocument) -> Iterator[str | Styled]:
    rows = []
    styles = []
    for status, count in facts["counts"].items():
        if count:
            size = sum(t["nbytes"] for t in facts["tensors"].values() if t["status"] == status)
            rows.append(
                [status, f"{count}", size_text(size), _MEANINGS[status] if size else "there are no bytes in it"]
            )
            styles.append({Verdict.INTACT: "good", "unverified": "warn"}.get(status, "bad"))
    if rows:
        yield from (Styled(line, style) for line, style in zip(columns(rows, right=(1, 2)), styles, strict=True))


def _fate_lines(facts: SalvageDocument) -> Iterable[str]:
    written, backfilled = set(facts["written"]), facts["backfilled"]
    told: list[tuple[str, tuple[str, str, str]]] = []
    for name, fate in facts["tensors"].items():
        if fate["status"] == Verdict.INTACT and name in written:
            continue
        if fate["status"] == "unverified" and len(told) >= _SHOWN:
            continue
        shape = "x".join(map(str, fate["shape"])) or "scalar"
        told.append((name, (f"{fate['dtype']} {shape}", fate["status"], _left(fate, backfilled.get(name)))))
    if not told:
        return []
    alike = collapse(told)
    rows = [[each.name, f"{each.times} x" if each.times > 1 else "", *each.like] for each in alike[:_SHOWN]]
    if not any(row[1] for row in rows):
        rows = [[name, *rest] for name, _, *rest in rows]
    lines = ["", *columns(rows)]
    rest = sum(each.times for each in alike[_SHOWN:])
    if rest:
        lines.append(f"  ... and {rest} more (--json lists all)")
    return [*lines, ""]


def _left(fate: FateFacts, donor: str | None) -> str:
    """What is left of a tensor, in a few words."""
    parts = []
    if fate["status"] == Verdict.INTACT:
        parts.append("left out: see the note")
    if fate["status"] == "partial":
        parts.append(f"{size_text(fate['present'])} of {size_text(fate['nbytes'])}")
    for rows, text in ((fate.get("rows_intact"), "proven"), (fate.get("rows_present"), "there, unproven")):
        if rows:
            runs = some((f"{first}-{end - 1}" for first, end in rows), 4)
            parts.append(f"rows {runs} of {fate['shape'][0]} {text}")
    leaves = fate.get("bad_leaves")
    if leaves:
        parts.append("1 bad leaf" if len(leaves) == 1 else f"{len(leaves):,} bad leaves")
    reason = fate.get("reason")
    if reason and not parts:
        parts.append(reason)
    if donor is not None:
        parts.append(f"taken from {os.path.basename(donor)}")
    return "; ".join(parts)


def _other_findings(facts: SalvageDocument) -> list[FindingFacts]:
    """Findings that are about no tensor, and not healed: headers, directories, copies, the file as a whole."""
    left = (f for f in facts["findings"] if not f["tensors"] and (f["kind"] != "unproven" or not f["size"]))
    return list(islice((f for f in left if f not in facts["healed"]), 10))


def _outcome(facts: SalvageDocument) -> Iterator[str | Styled]:
    count, total = len(facts["written"]), len(facts["tensors"])
    if not total and facts["structure"] == "none" and facts["destination"] is None:
        yield Styled("nothing of a checkpoint could be found in this file", "bad")
        return
    own = count - len(facts["backfilled"])
    text = f"{own} of {total} tensors" if total else "no tensors, and all besides"
    if total and not _all_are_known(facts):
        text += " that are known"
    for donor in sorted(set(facts["backfilled"].values())):
        text += f", and {len(facts['backfilled'])} from {os.path.basename(donor)}"
    complete = Verdict.COMPLETE if facts["complete"] else "incomplete"
    if facts["destination"] is not None:
        style = "good" if facts["complete"] else "warn"
        yield Styled(f"wrote {facts['destination']}: {text} ({complete})", style)
    elif facts["exit_code"] == 0 and not total:
        yield "there are no tensors in it, and no damage was found"
    elif facts["exit_code"] == 0:
        proven = total and facts["counts"][Verdict.INTACT] == total and not facts["findings"]
        yield Styled(str(Verdict.NOTHING_DAMAGED), "good") if proven else Styled(str(Verdict.NOTHING_MISSING), "warn")
    else:
        yield Styled(f"would come back: {text} ({complete})", "good" if facts["complete"] else "warn")


# --- a directory --------------------------------------------------------------


def _directory_lines(facts: SalvageDirectoryDocument) -> Iterator[str | Styled]:
    yield f"{facts['path']}: {count_text(len(facts['steps']), 'step')}"
    for step in facts["steps"]:
        yield Styled(f"  step {step['step']:<8} {step['state']}", _STYLES[step["state"]])
        for file in step["files"]:
            if file["state"] != Verdict.WHOLE:
                counts = file.get("counts", {})
                text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
                yield f"    {os.path.basename(file['path'])}: {text or file['message']}"
        for note in step["notes"]:
            yield f"    note: {note}"
    newest = facts["newest_whole"]
    whole = f"step {newest}" if newest is not None else "none"
    yield Styled(f"newest {Verdict.WHOLE} step: {whole}", "good" if newest is not None else "bad")
    yield f"next: {facts['next']}"
