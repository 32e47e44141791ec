"""Draw a checkpoint, or the steps of a directory, as one HTML file.

It shows bytes by module, norms by layer and over the steps, magnitudes, NaN
and infinities, and, of a damaged file, which chunks are intact, damaged or
lost. The file needs neither a network nor scripts. With --text the same is
summed up on the terminal, and with --json told in numbers; then a file is
written only if -o says where. The exit code is 0 even if a file is damaged:
fastckpt verify tells.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Final

from fastckpt.cli.pages import refuse_page
from fastckpt.cli.plot_text import directory_lines, file_lines
from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output
from fastckpt.io.commit import publish_bytes
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.plotting.numbers import PlotDirectoryDocument, PlotDocument
from fastckpt.sets.parts_of import StatePart
from fastckpt.text import size_text

EXAMPLES: Final = (
    "fastckpt plot state.fckpt -o state.html",
    "fastckpt plot base_checkpoints/d4                  # what training did, step by step",
    "fastckpt plot trainer --text                        # the same of any other run, on the terminal",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt plot``."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint, or a directory of steps of any kind")
    parser.add_argument("-o", "--output", metavar="HTML", help="the file to write (default: NAME.html, here)")
    parser.add_argument("--text", action="store_true", help="sum it up on the terminal")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, then draw or tell."""
    output = args.output or (None if args.text or out.as_json else f"{_name(args.path)}.html")
    if output is not None:
        refuse_page(output, [args.path])
    # Here, not above: they are needed only now, and measuring needs torch.
    from fastckpt.plotting.drawn_steps import one_state
    from fastckpt.plotting.page import directory_page, file_page
    from fastckpt.plotting.survey import measure_directory, measure_part

    with progress_bar(f"measuring {_name(args.path)}", lambda: bytes_at(args.path)) as progress:
        is_directory = is_directory_of_checkpoints(args.path)
        alone = one_state(args.path) if is_directory else StatePart.of_file(args.path)
        if alone is None:
            steps = measure_directory(args.path, threads=args.threads, progress=progress)
            page, lines = partial(directory_page, steps), directory_lines(steps)
            document: PlotDirectoryDocument | PlotDocument = {**steps, "output": output}
        else:
            file = measure_part(alone, threads=args.threads, progress=progress)
            page, lines = partial(file_page, file), file_lines(file)
            document = {**file, "output": output}
    if output is not None:
        drawn = page().encode()
        publish_bytes(output, drawn, durable=False)
        if not args.text:
            out.show([f"{output}: {size_text(len(drawn))}, to be opened in any browser"], list)
    if args.text:
        out.show(lines, list)
    out.document(document)
    return 0


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))
