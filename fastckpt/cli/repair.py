"""Heal a damaged file by its parity.

The file was sealed with fastckpt seal --parity, or saved with parity=; a .fckpt can have its parity inside, which is
used where no seal beside it heals all. Every byte is compared with the digests that stand with the parity. What differs
is computed from the rest of the file and the parity, and used only if it has the digest that was sealed. Of the
new file every leaf is compared again before it takes the place of the damaged one, which is kept as NAME.damaged. With
--in-place nothing is copied: only the leaves that differ are written, each once it is proven.

A file that cannot be healed as a whole stays as it is. With -o a new file is written, healed as far as can be.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Final

from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output, Styled, range_lines
from fastckpt.sealing.repair import repair
from fastckpt.sealing.repaired import RepairFacts, RepairReport
from fastckpt.text import count_text, size_text
from fastckpt.verdicts import Verdict

_PASSES: Final = 3
"""Times that the bytes of a file are gone over: compared, copied, and compared again."""

EXAMPLES: Final = (
    "fastckpt repair --dry-run weights.safetensors      # what would heal; writes nothing",
    "fastckpt repair weights.safetensors                # keeps the damaged file as weights.safetensors.damaged",
    "fastckpt repair weights.safetensors -o healed.safetensors",
)


class RepairDocument(RepairFacts):
    verdict: str | None
    exit_code: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt repair``."""
    parser.add_argument("path", metavar="PATH", help="the damaged file, beside its sums file or with parity inside")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="OUT", help="write the healed file there; PATH stays as it is")
    where.add_argument("--in-place", action="store_true", help="heal the file itself, and keep no damaged one")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, say what would heal")
    parser.add_argument("--no-durable", action="store_true", help="do not wait until it would survive a power cut")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Repair, then say what came back."""
    label = f"repairing {os.path.basename(args.path)}"
    with progress_bar(label, lambda: _PASSES * bytes_at(args.path)) as progress:
        report = repair(
            args.path,
            args.output,
            keep=not args.in_place,
            dry_run=args.dry_run,
            durable=not args.no_durable,
            threads=args.threads,
            progress=progress,
        )
    out.show(report, _lines)
    document: RepairDocument = {
        **report.as_dict(),
        "verdict": report.verdict.value if report.verdict is not None else None,
        "exit_code": report.exit_code,
    }
    out.document(document)
    return report.exit_code


def _lines(report: RepairReport) -> Iterator[str | Styled]:
    if report.verdict in (Verdict.AS_SEALED, Verdict.INTACT):
        yield Styled(f"{report.path}: {report.verdict}, nothing to repair", "good")
        return
    yield Styled(f"{report.path}: {_what_is_wrong(report)}", "warn")
    yield from range_lines([finding.as_dict() for finding in report.findings])
    if report.left and report.healed:
        yield Styled(f"  not healed: {count_text(len(report.left), 'range')} with more damage than parity", "bad")
        yield from range_lines([finding.as_dict() for finding in report.left])
    elif report.left:
        yield Styled(f"  not healed: {report.message or 'there is more damage than parity'}", "bad")
    if report.kept is not None:
        yield f"  the damaged file is kept: {report.kept}"
    if report.sums_renewed:
        yield "  its seal was damaged, and is written anew"
    yield from _outcome(report)
    if report.next_step is not None:
        yield f"  next: {report.next_step}"


def _what_is_wrong(report: RepairReport) -> str:
    said = []
    if report.lost:
        made = "sealed" if report.parity_at == "beside" else "saved"
        said.append(f"{report.lost} of {report.leaves} leaves are not what was {made}")
    if report.parity_at == "inside" and report.findings and not report.lost:
        said.append("what stands behind its tensors is damaged")
    elif report.findings and not report.lost:
        said.append("there are bytes behind all that was sealed")
    if report.sums_damaged:
        said.append("its seal is damaged")
    return ", and ".join(said)


def _outcome(report: RepairReport) -> Iterator[str | Styled]:
    share = f"{report.healed} of {report.lost} lost leaves"
    if report.verdict in (Verdict.HEALED, Verdict.HEALED_INSIDE):
        where = f"{report.output} ({size_text(report.size)})" if report.output is not None else report.path
        yield Styled(f"{where}: {report.verdict}", "good")
    elif report.state == "would heal":
        yield Styled(f"{report.path}: would heal as a whole; nothing was written", "warn")
    elif report.output is not None:
        others = "the others have the bytes of the damaged file, or zeros where it has none"
        yield Styled(f"{report.output}: partly healed, {share}; {others}", "bad")
    else:
        would = f", though {share} would" if report.healed else ""
        yield Styled(f"{report.path}: does not heal{would}; it stays as it is", "bad")
