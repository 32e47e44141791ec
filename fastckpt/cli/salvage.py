"""Get every tensor that is still proven out of a damaged checkpoint.

SRC is a .pt, .safetensors or .fckpt file in any state, or a nanochat directory;
it is only ever read. Without -o this is a dry run: it shows what would come
back. With -o, tensors whose checksums match are written to DST, whose suffix
(.fckpt, .pt, .safetensors) tells the format.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from typing import Any

from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Facts, Output, Styled, columns
from fastckpt.errors import UsageError
from fastckpt.text import count_text, size_text

_SHOWN = 40
_STYLES = {"whole": "good", "incomplete": "warn", "mixed": "bad", "damaged": "bad", "unusable": "bad"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt salvage``."""
    parser.add_argument("source", metavar="SRC", help="the damaged file, or a nanochat checkpoint directory")
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
    if os.path.isdir(args.source):
        return _run_directory(args, out)
    from fastckpt.salvaging.salvage import salvage

    include = [name.strip() for name in args.include.split(",") if name.strip()]
    total = os.path.getsize(args.source) if os.path.exists(args.source) else 0
    with progress_bar(f"salvaging {os.path.basename(args.source)}", total) as progress:
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
    facts = {**report.as_dict(), "exit_code": report.exit_code}
    out.show(facts, _lines)
    out.document(facts)
    return report.exit_code


def _run_directory(args: argparse.Namespace, out: Output) -> int:
    from fastckpt.salvaging.directory import salvage_directory

    if args.output or args.like or args.backfill or args.include:
        raise UsageError(
            "a directory is only looked at; its files are salvaged one by one",
            path=args.source,
            next_step="fastckpt salvage FILE -o DST",
        )
    report = salvage_directory(args.source, threads=args.threads)
    facts = report.as_dict()
    out.show(facts, _directory_lines)
    out.document(facts)
    return report.exit_code


# --- a file -------------------------------------------------------------------


def _lines(facts: Facts) -> Iterator[str | Styled]:
    tensors = facts["tensors"]
    what = f"{facts['format']}, " if facts["format"] != "unknown" and tensors else ""
    yield f"{facts['path']}: {what}{size_text(facts['size'])}, {count_text(len(tensors), 'tensor')}"
    if facts["structure"] not in ("whole", "none"):
        yield Styled(f"  names and shapes: {_structure(facts['structure'])}", "warn")
    yield from _count_lines(facts)
    yield from _fate_lines(facts)
    for finding in _other_findings(facts):
        yield f"  note: {finding['message']}"
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "warn")
    yield from _outcome(facts)
    yield f"next: {facts['next']}"


def _structure(structure: str) -> str:
    return {
        "from index/header": "from the record headers, flat",
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


def _count_lines(facts: Facts) -> Iterator[str | Styled]:
    rows = []
    styles = []
    for status, count in facts["counts"].items():
        if count:
            size = sum(t["nbytes"] for t in facts["tensors"].values() if t["status"] == status)
            rows.append([status, f"{count}", size_text(size), _MEANINGS[status]])
            styles.append({"intact": "good", "unverified": "warn"}.get(status, "bad"))
    if rows:
        yield from (Styled(line, style) for line, style in zip(columns(rows, right=(1, 2)), styles, strict=True))


def _fate_lines(facts: Facts) -> Iterable[str]:
    written, backfilled = set(facts["written"]), facts["backfilled"]
    rows: list[list[str]] = []
    for name, fate in facts["tensors"].items():
        if fate["status"] == "intact" and name in written:
            continue
        if fate["status"] == "unverified" and len(rows) >= _SHOWN:
            continue
        shape = "x".join(map(str, fate["shape"])) or "scalar"
        rows.append([name, f"{fate['dtype']} {shape}", fate["status"], _left(fate, backfilled.get(name))])
    if not rows:
        return []
    lines = ["", *columns(rows[:_SHOWN])]
    if len(rows) > _SHOWN:
        lines.append(f"  ... and {len(rows) - _SHOWN} more (--json lists all)")
    return [*lines, ""]


def _left(fate: dict[str, Any], donor: str | None) -> str:
    """What is left of a tensor, in a few words."""
    parts = []
    if fate["status"] == "intact":
        parts.append("left out: see the note")
    if fate["status"] == "partial":
        parts.append(f"{size_text(fate['present'])} of {size_text(fate['nbytes'])}")
    for key, text in (("rows_intact", "proven"), ("rows_present", "there, unproven")):
        if fate.get(key):
            runs = [f"{first}-{end - 1}" for first, end in fate[key][:4]]
            more = f" and {len(fate[key]) - 4} more runs" if len(fate[key]) > 4 else ""
            parts.append(f"rows {', '.join(runs)}{more} of {fate['shape'][0]} {text}")
    if fate.get("bad_leaves"):
        parts.append(f"{count_text(len(fate['bad_leaves']), 'bad leaf').replace('leafs', 'leaves')}")
    if not parts and fate.get("reason"):
        parts.append(fate["reason"])
    if donor is not None:
        parts.append(f"taken from {os.path.basename(donor)}")
    return "; ".join(parts)


def _other_findings(facts: Facts) -> list[dict[str, Any]]:
    """Findings that are about no tensor: headers, directories, copies."""
    return [f for f in facts["findings"] if not f["tensors"] and f["kind"] != "unproven"][:10]


def _outcome(facts: Facts) -> Iterator[str | Styled]:
    count, total = len(facts["written"]), len(facts["tensors"])
    if not total:
        yield Styled("nothing of a checkpoint could be found in this file", "bad")
        return
    own = count - len(facts["backfilled"])
    text = f"{own} of {total} tensors"
    for donor in sorted(set(facts["backfilled"].values())):
        text += f", and {len(facts['backfilled'])} from {os.path.basename(donor)}"
    complete = "complete" if facts["complete"] else "incomplete"
    if facts["destination"] is not None:
        style = "good" if facts["complete"] else "warn"
        yield Styled(f"wrote {facts['destination']}: {text} ({complete})", style)
    elif facts["exit_code"] == 0:
        proven = facts["counts"]["intact"] == total
        yield Styled("nothing is damaged" if proven else "nothing is missing, and nothing can prove it", "good")
    else:
        yield Styled(f"would come back: {text} ({complete})", "good" if facts["complete"] else "warn")


# --- a directory --------------------------------------------------------------


def _directory_lines(facts: Facts) -> Iterator[str | Styled]:
    yield f"{facts['path']}: {count_text(len(facts['steps']), 'step')}"
    for step in facts["steps"]:
        yield Styled(f"  step {step['step']:<8} {step['state']}", _STYLES[step["state"]])
        for file in step["files"]:
            if file["state"] != "whole":
                counts = file.get("counts", {})
                text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
                yield f"    {os.path.basename(file['path'])}: {text or file['message']}"
        for note in step["notes"]:
            yield f"    note: {note}"
    newest = facts["newest_whole"]
    whole = f"step {newest}" if newest is not None else "none"
    yield Styled(f"newest whole step: {whole}", "good" if newest is not None else "bad")
    yield f"next: {facts['next']}"
