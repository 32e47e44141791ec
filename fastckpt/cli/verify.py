"""Check every byte of checkpoint files.

A .fckpt file is checked by its digests, a .pt file by its CRCs; a .safetensors
file has no checksums, so its tensors can be present but never proven. A
directory stands for all checkpoint files in it. The exit code is that of the
worst file.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable

from fastckpt.cli.files import checkpoint_files
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Facts, Output, Styled, error_facts
from fastckpt.errors import FastckptError
from fastckpt.stored.inspection import outline
from fastckpt.stored.verify import verify
from fastckpt.text import count_text, duration_text, rate_text, size_text

_SHOWN_FINDINGS = 50
_WITHOUT_CHECKSUMS = ("safetensors", "torch-legacy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt verify``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a checkpoint file, or a directory with some in it")
    parser.add_argument("-r", "--recursive", action="store_true", help="also the directories inside a directory")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Verify all paths; returns the highest exit code."""
    paths, single = checkpoint_files(args.paths, recursive=args.recursive)
    if single:
        facts, code = _verify(paths[0], args.threads)
        out.show(facts, _lines)
        out.document(facts)
        return code
    files = []
    codes = []
    for path in paths:
        try:
            facts, code = _verify(path, args.threads)
        except FastckptError as error:
            if error.exit_code == 64:
                raise
            facts, code = {"path": path, "ok": False, "error": error_facts(error), "shown": str(error)}, error.exit_code
        out.show(facts, lambda facts: _lines(facts, prefix=f"{facts['path']}: "))
        facts.pop("shown", None)
        files.append(facts)
        codes.append(code)
    summary = {"files": files}
    out.show(summary, _summary_lines)
    out.document(summary)
    return max(codes)


def _verify(path: str, threads: int | None) -> tuple[Facts, int]:
    about = outline(path)
    start = time.perf_counter()
    with progress_bar(f"verifying {os.path.basename(path)}", about.nbytes if about is not None else 0) as progress:
        report = verify(path, threads=threads, progress=progress)
    seconds = time.perf_counter() - start
    return {**report.as_dict(), "seconds": seconds}, report.exit_code


def _lines(facts: Facts, prefix: str = "") -> Iterable[str | Styled]:
    if "error" in facts:
        # The error's own text begins with the path.
        yield Styled(facts["shown"], "bad")
        return
    findings = facts["findings"]
    for finding in findings[:_SHOWN_FINDINGS]:
        first, size = finding["offset"], finding["size"]
        place = f"bytes {first}-{first + size - 1}" if size else f"byte {first}"
        yield f"{prefix}{finding['kind']}  {place}  {finding['message']}"
    if len(findings) > _SHOWN_FINDINGS:
        yield f"{prefix}... and {len(findings) - _SHOWN_FINDINGS} more findings (--json lists all)"
    text, style = _verdict(facts)
    yield Styled(prefix + text, style)


def _verdict(facts: Facts) -> tuple[str, str]:
    size, verified, seconds = facts["size"], facts["verified_bytes"], facts["seconds"]
    if _is_intact(facts):
        what = "every byte verified" if facts["format"] == "fckpt" else "every record matches its CRC-32"
        speed = f" ({rate_text(verified, seconds)})" if verified else ""
        return f"intact: {size_text(size)}, {what} in {duration_text(seconds)}{speed}", "good"
    if facts["ok"]:
        unproven = sum(finding["size"] for finding in facts["findings"])
        if not unproven:
            return f"present: {size_text(size)}, without any tensor data, and no checksum to prove the rest by", "warn"
        return f"present: {size_text(size)}, of which {size_text(unproven)} have no checksum to prove them by", "warn"
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
    names = ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else "")
    return f"damaged: {len(damaged)}{total} {noun} ({names}); {_next(facts)}", "bad"


def _is_intact(facts: Facts) -> bool:
    """Whether a checksum proves the file, rather than that nothing speaks against it."""
    return bool(facts["ok"] and not facts["findings"] and facts["format"] not in _WITHOUT_CHECKSUMS)


def _next(facts: Facts) -> str:
    return f"next: {facts['next']}"


def _summary_lines(facts: Facts) -> Iterable[str | Styled]:
    files = facts["files"]
    size = sum(file.get("size", 0) for file in files)
    intact = sum(_is_intact(file) for file in files)
    present = sum(bool(file["ok"]) for file in files) - intact
    bad = len(files) - intact - present
    counts = [f"{intact} intact"]
    counts += [f"{present} present but unproven"] if present else []
    counts += [f"{bad} not"] if bad else []
    style = "bad" if bad else "warn" if present else "good"
    yield Styled(f"{count_text(len(files), 'file')}, {size_text(size)}: {', '.join(counts)}", style)
