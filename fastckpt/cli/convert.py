"""Turn checkpoints into .fckpt, and back into exactly what they were.

SRC is a .pt, .safetensors or .fckpt file, told by its content, or a nanochat
checkpoint directory. DST is a file or directory; without it the result lies
beside the source. What a .fckpt becomes again is what it was made from, byte
for byte. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Facts, Output, Styled
from fastckpt.conversion.convert import convert
from fastckpt.conversion.result import Conversion
from fastckpt.nanochat.steps import read_steps
from fastckpt.stored.inspection import outline
from fastckpt.text import count_text, duration_text, rate_text, size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt convert``."""
    parser.add_argument("source", metavar="SRC", help="the file or directory to convert")
    parser.add_argument("destination", nargs="?", metavar="DST", help="the file or directory to write")
    parser.add_argument("--to", choices=("fckpt", "pt", "safetensors"), help="the format to write")
    parser.add_argument("--step", type=int, metavar="N", help="only this step of a directory")
    parser.add_argument("--codec", default="none", metavar="C", help="none (default; can be mapped), zstd or zstd:1-22")
    parser.add_argument("--no-exact", action="store_true", help="keep the state without its container")
    parser.add_argument("--no-durable", action="store_true", help="do not wait until it would survive a power cut")
    parser.add_argument("--replace", action="store_true", help="delete the source once the result was read back")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Convert, then show what was written."""
    start = time.perf_counter()
    with progress_bar(f"converting {os.path.basename(os.path.abspath(args.source))}", _size(args.source)) as progress:
        converted = convert(
            args.source,
            args.destination,
            to=args.to,
            step=args.step,
            codec=args.codec,
            exact=not args.no_exact,
            durable=not args.no_durable,
            replace=args.replace,
            threads=args.threads,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    files = [_facts(conversion, removed=args.replace) for conversion in converted]
    nbytes = sum(file["nbytes"] for file in files)
    facts = {"files": files, "nbytes": nbytes, "seconds": seconds, "bytes_per_second": nbytes / max(seconds, 1e-9)}
    out.show(facts, _lines)
    out.document(facts)
    return 0


def _size(source: str) -> int:
    """Bytes there are to convert, about: what the progress bar is out of."""
    if not os.path.isdir(source):
        about = outline(source)
        return about.nbytes if about is not None else 0
    paths = [by_suffix.values() for step in read_steps(source).values() for by_suffix in step.states.values()]
    return sum(max(map(os.path.getsize, each)) for each in paths)


def _facts(conversion: Conversion, *, removed: bool) -> Facts:
    return {
        "source": conversion.source,
        "destination": conversion.destination,
        "format": conversion.format,
        "nbytes": conversion.nbytes,
        "tensors": conversion.tensors,
        "source_verified": conversion.source_verified,
        "exact": conversion.exact,
        "source_removed": removed and not os.path.exists(conversion.source),
        "notes": list(conversion.notes),
    }


def _lines(facts: Facts) -> Iterator[str | Styled]:
    files = facts["files"]
    for file in files:
        time_text = f"  {duration_text(facts['seconds'])}" if len(files) == 1 else ""
        names = f"{os.path.basename(file['source'])} -> {_shown(file)}"
        if file["format"] == "meta":
            yield f"{names}  {size_text(file['nbytes'])}  copied"
        else:
            size = f"{size_text(file['nbytes'])}  {count_text(file['tensors'], 'tensor')}"
            yield f"{names}  {size}  {', '.join(_claims(file))}{time_text}"
        for note in file["notes"]:
            yield Styled(f"  note: {note}", "warn")
    if not files:
        yield "nothing to convert: everything is there already"
    elif len(files) > 1:
        speed = f"{duration_text(facts['seconds'])} ({rate_text(facts['nbytes'], facts['seconds'])})"
        yield Styled(f"{count_text(len(files), 'file')}, {size_text(facts['nbytes'])} in {speed}", "good")


def _shown(file: dict[str, Any]) -> str:
    """The destination: just its name if it lies beside the source."""
    source: str = file["source"]
    destination: str = file["destination"]
    beside = os.path.dirname(os.path.abspath(source)) == os.path.dirname(os.path.abspath(destination))
    return os.path.basename(destination) if beside else destination


def _claims(file: dict[str, Any]) -> Iterator[str]:
    """What is proven about one conversion."""
    if file["format"] == "fckpt":
        yield "source verified by CRC" if file["source_verified"] else "source unverified (it has no checksums)"
        yield "exact way back kept" if file["exact"] else "no exact way back"
    else:
        yield "source verified" if file["source_verified"] else "source unverified"
        yield "the original file, byte for byte" if file["exact"] else "same state in a new container"
    if file["source_removed"]:
        yield "source removed"
