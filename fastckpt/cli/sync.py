"""Send the whole steps of a directory to an object store, and with --watch go on while a run saves.

Each step is verified, then sent; what makes it a step is sent last, so nobody
sees half of one. What is there already is left as it is, so a sync that was cut
short is finished by running it again. Nothing is ever deleted or replaced there.
"already there" means the same size and, of a .fckpt, the same footer, which names
its root digest; of any other file, every byte. fastckpt verify URL reads a .fckpt.
Exit codes are those of fastckpt backup; --watch ends with Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Final

from fastckpt.cli.backup import backed_up, backup_lines
from fastckpt.cli.backup import run as run_backup
from fastckpt.cli.progress import bytes_at, progress_bar
from fastckpt.cli.render import Output
from fastckpt.errors import FastckptError, UsageError
from fastckpt.keeping.watch_steps import watch_steps
from fastckpt.remote.path import RemotePath, located

EXAMPLES: Final = (
    "fastckpt sync run s3://my-bucket/run",
    "fastckpt sync base_checkpoints/d4 gs://my-bucket/d4 --watch 60",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt sync``."""
    parser.add_argument("source", metavar="DIR", help="a directory with steps: model_000500.pt, checkpoint-500/")
    parser.add_argument("destination", metavar="URL", help="where to: s3://BUCKET/PREFIX, gs://, az://")
    parser.add_argument("--step", type=int, metavar="N", help="only this step")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again every so many seconds")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    parser.set_defaults(copy=False)


def run(args: argparse.Namespace, out: Output) -> int:
    """Send once, and show what was sent; or for ever, and show it whenever there was something."""
    where = located(args.destination)
    if not isinstance(where, RemotePath):
        raise UsageError("this is no URL", path=where, next_step="fastckpt backup copies to a directory")
    if args.watch is None:
        return run_backup(args, out)
    if args.watch < 0 or args.step is not None:
        raise UsageError("--watch takes seconds to wait, and looks at all steps", next_step="fastckpt sync --help")
    name = os.path.basename(os.path.abspath(args.source))
    with progress_bar(f"sending {name}", lambda: bytes_at(args.source)) as progress:
        start = time.perf_counter()
        for done in watch_steps(args.source, where, seconds=args.watch, threads=args.threads, progress=progress):
            if isinstance(done, FastckptError):
                out.note(f"{done}; it is tried again", "warn")
            else:
                facts = backed_up(done, args.source, args.destination, start)
                out.show(facts, backup_lines)
                out.document(facts)
                out.flush()
            start = time.perf_counter()
    return 0
