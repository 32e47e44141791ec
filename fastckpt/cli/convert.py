"""Turn checkpoints into .fckpt, and back into exactly what they were.

SRC is a .pt, .safetensors or .fckpt file, recognised by its content, or a directory
of steps: nanochat's, files like ckpt_500.pt and epoch=3-step=400.ckpt, directories
like step_500/ and a Trainer's checkpoint-500/; or a model in shards. DST is a file
or directory; without it the result lies beside the source.
What a .fckpt becomes again is what it was made from, byte for byte. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final, TypedDict

from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output, Styled
from fastckpt.conversion.convert import convert
from fastckpt.conversion.result import Conversion
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.nanochat.steps import read_steps
from fastckpt.stored.inspection import storage_bytes
from fastckpt.text import count_text, duration_text, rate_text, size_text
from fastckpt.verdicts import Verdict

EXAMPLES: Final = (
    "fastckpt convert model_000500.pt                    # to model_000500.fckpt",
    "fastckpt convert model_000500.fckpt again.pt        # the same file again, byte for byte",
    "fastckpt convert epoch.ckpt weights.safetensors --keys 'state_dict.*' --strip-prefix state_dict.",
    "fastckpt convert model_000500.pt shards --shard-size 5GB   # .safetensors shards and their index",
    "fastckpt convert epoch.ckpt set --shard-size 5GB --to fckpt   # .fckpt shards and their set.fckpt",
    "fastckpt convert base_checkpoints/d4 --step 20      # one step of nanochat, its optimizer too",
    "fastckpt convert trainer kept --codec planes        # checkpoint-500/ and all other steps, smaller, to kept/",
)


@dataclass(frozen=True, slots=True)
class ConvertedFile(Conversion):
    """A conversion, and whether its source is gone."""

    source_removed: bool = False


class ConvertDocument(TypedDict):
    files: list[ConvertedFile]
    nbytes: int
    seconds: float
    bytes_per_second: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt convert``."""
    parser.add_argument("source", metavar="SRC", help="the file or directory to convert")
    parser.add_argument("destination", nargs="?", metavar="DST", help="the file or directory to write")
    parser.add_argument("--to", choices=("fckpt", "pt", "safetensors"), help="the format to write")
    parser.add_argument("--step", type=int, metavar="N", help="only this step of a directory")
    parser.add_argument(
        "--codec", default="none", metavar="C", help="none (default; can be mapped), planes, zstd or zstd:1-22"
    )
    parser.add_argument("--no-exact", action="store_true", help="keep the state without its container")
    parser.add_argument("--strip-prefix", metavar="P", help="take this off the names, such as _orig_mod.")
    parser.add_argument("--keys", metavar="GLOB", help="to .safetensors: only the tensors with such names")
    parser.add_argument("--copy-shared", action="store_true", help="to .safetensors: tied tensors under each name")
    parser.add_argument("--shard-size", metavar="SIZE", help="to a directory: shards of at most 5GB, say")
    parser.add_argument("--strict", action="store_true", help="exit 1 if something is left out")
    parser.add_argument("--no-durable", action="store_true", help="do not wait until it would survive a power cut")
    parser.add_argument("--replace", action="store_true", help="delete the source once the result was read back")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Convert, then show what was written."""
    start = time.perf_counter()
    label = f"converting {os.path.basename(os.path.abspath(args.source))}"
    with progress_bar(label, lambda: _size(args.source)) as progress:
        converted = convert(
            args.source,
            args.destination,
            to=args.to,
            step=args.step,
            codec=args.codec,
            exact=not args.no_exact,
            durable=not args.no_durable,
            replace=args.replace,
            strip_prefix=args.strip_prefix,
            keys=args.keys,
            copy_shared=args.copy_shared,
            shard_size=args.shard_size,
            threads=args.threads,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    files = [_facts(conversion, removed=args.replace) for conversion in converted]
    nbytes = sum(file.nbytes for file in files)
    facts: ConvertDocument = {
        "files": files,
        "nbytes": nbytes,
        "seconds": seconds,
        "bytes_per_second": nbytes / max(seconds, 1e-9),
    }
    out.show(facts, _lines)
    out.document(facts)
    return 1 if args.strict and any(file.left_out for file in files) else 0


def _size(source: str) -> int:
    """Bytes there are to convert, about: what the progress bar is out of."""
    if not is_directory_of_checkpoints(source):
        return storage_bytes(source)
    paths = [by_suffix.values() for step in read_steps(source).values() for by_suffix in step.states.values()]
    return sum(max(map(os.path.getsize, each)) for each in paths) or bytes_at(source)


def _facts(conversion: Conversion, *, removed: bool) -> ConvertedFile:
    gone = removed and not os.path.exists(conversion.source)
    return ConvertedFile(**asdict(conversion), source_removed=gone)


def _lines(facts: ConvertDocument) -> Iterator[str | Styled]:
    files = facts["files"]
    for file in files:
        time_text = f"  {duration_text(facts['seconds'])}" if len(files) == 1 else ""
        names = f"{os.path.basename(file.source)} -> {_shown(file)}"
        if file.format == "meta":
            yield f"{names}  {size_text(file.nbytes)}  {'copied' if file.exact else 'written'}"
        else:
            size = f"{size_text(file.nbytes)}  {count_text(file.tensors, 'tensor')}"
            yield f"{names}  {size}  {', '.join(_claims(file))}{time_text}"
        for note in file.notes:
            yield Styled(f"  note: {note}", "warn")
    if not files:
        yield "nothing to convert: everything is there already"
    elif len(files) > 1:
        nbytes, seconds = facts["nbytes"], facts["seconds"]
        speed = f" ({rate_text(nbytes, seconds)})" if nbytes else ""
        yield Styled(
            f"{count_text(len(files), 'file')}, {size_text(nbytes)} in {duration_text(seconds)}{speed}", "bold"
        )


def _shown(file: ConvertedFile) -> str:
    """The destination: just its name if it lies beside the source."""
    source, destination = file.source, file.destination
    beside = os.path.dirname(os.path.abspath(source)) == os.path.dirname(os.path.abspath(destination))
    return os.path.basename(destination) if beside else destination


def _claims(file: ConvertedFile) -> Iterator[str]:
    """What is proven about one conversion."""
    if not file.nbytes:
        yield "no tensor data to verify"
    elif file.source_verified:
        yield str(Verdict.SOURCE_VERIFIED)
    else:
        yield "source unverified (it has no checksums)" if file.format == "fckpt" else "source unverified"
    if file.format == "fckpt":
        yield str(Verdict.WAY_BACK) if file.exact else "no exact way back"
    else:
        anew = "tensors in a new container" if file.format == "safetensors" else "same state in a new container"
        yield str(Verdict.BYTE_FOR_BYTE) if file.exact else anew
    if file.source_removed:
        yield "source removed"
