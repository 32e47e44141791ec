"""Show what a checkpoint holds, without loading it.

PATH is a .fckpt, .pt or .safetensors file, or a directory with checkpoints.
Only the structure is read, and nothing in a file is executed. Lists and
tuples of plain values are shown as one value.
"""

from __future__ import annotations

import argparse
import os

from fastckpt.cli.directory_facts import directory_facts, directory_lines
from fastckpt.cli.engine_facts import engine_facts, engine_lines
from fastckpt.cli.file_facts import file_facts
from fastckpt.cli.inspect_text import file_lines
from fastckpt.cli.render import Output
from fastckpt.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt inspect``."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="a checkpoint file, or a directory with some in it")
    parser.add_argument("--tree", action="store_true", help="show all values as a tree, not only tensors")
    parser.add_argument("--keys", metavar="GLOB", help="list only the tensors whose name matches, one by one")
    parser.add_argument("--engine", action="store_true", help="show what fastckpt runs on here (PATH: also its disk)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Show the facts about one file, one directory or the engine."""
    if args.engine:
        facts = engine_facts(args.path)
        out.show(facts, engine_lines)
    elif args.path is None:
        raise UsageError("inspect needs a path", next_step="fastckpt inspect --help")
    elif os.path.isdir(args.path):
        facts = directory_facts(args.path)
        out.show(facts, directory_lines)
    else:
        facts = file_facts(args.path, keys=args.keys)
        out.show(facts, lambda facts: file_lines(facts, tree=args.tree, each=args.keys is not None))
    out.document(facts)
    return 0
