"""Draw a checkpoint, or the steps of a nanochat directory, as one HTML file.

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

from fastckpt.cli.plot_text import directory_lines, file_lines
from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Facts, Output, Styled
from fastckpt.errors import UsageError
from fastckpt.io.commit import publish_bytes
from fastckpt.text import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt plot``."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint file, or a nanochat directory")
    parser.add_argument("-o", "--output", metavar="HTML", help="the file to write (default: NAME.html, here)")
    parser.add_argument("--text", action="store_true", help="sum it up on the terminal")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, then draw or tell."""
    output = args.output or (None if args.text or out.as_json else f"{_name(args.path)}.html")
    if output is not None:
        _refuse_overwriting(args.path, output)
    # Here, not above: they are needed only now, and measuring needs torch.
    from fastckpt.plotting.page import directory_page, file_page
    from fastckpt.plotting.survey import measure_directory, measure_file

    is_directory = os.path.isdir(args.path)
    with progress_bar(f"measuring {_name(args.path)}", _size(args.path)) as progress:
        gather = measure_directory if is_directory else measure_file
        facts: Facts = gather(args.path, threads=args.threads, progress=progress)
    if output is not None:
        page = (directory_page if is_directory else file_page)(facts).encode()
        publish_bytes(output, page, durable=False)
        if not args.text:
            out.show({"output": output, "size": len(page)}, _written)
    if args.text:
        out.show(facts, directory_lines if is_directory else file_lines)
    out.document({**facts, "output": output})
    return 0


def _written(facts: Facts) -> list[Styled | str]:
    return [f"{facts['output']}: {size_text(facts['size'])}, to be opened in any browser"]


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _refuse_overwriting(path: str, output: str) -> None:
    """Raise UsageError if the page would replace a checkpoint."""
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(path, output):
        raise UsageError("the page would replace the checkpoint", path=output)
    if not output.endswith((".html", ".htm", ".xhtml")):
        raise UsageError("the name of a page must end with .html", actual=output)


def _size(path: str) -> int:
    try:
        if not os.path.isdir(path):
            return os.path.getsize(path)
        with os.scandir(path) as listing:
            return sum(item.stat().st_size for item in listing if item.is_file())
    except OSError:
        return 0  # Opening it will say what is wrong.
