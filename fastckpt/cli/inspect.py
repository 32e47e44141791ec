"""Show what a checkpoint holds, without loading it.

PATH is a .fckpt, .pt or .safetensors file, or a directory with checkpoints.
Only the structure is read, and nothing in a file is executed. Lists and
tuples of plain values are shown as one value.
"""

from __future__ import annotations

import argparse
from typing import Final

from fastckpt.cli.render import Output
from fastckpt.errors import UsageError
from fastckpt.io.unpacked import is_directory_of_checkpoints

EXAMPLES: Final = (
    "fastckpt inspect state.fckpt",
    "fastckpt inspect epoch.ckpt --tree",
    "fastckpt inspect base_checkpoints/d4",
    "fastckpt inspect --engine",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt inspect``."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="a checkpoint file, or a directory with some in it")
    parser.add_argument("--tree", action="store_true", help="show all values as a tree, not only tensors")
    parser.add_argument("--keys", metavar="GLOB", help="list only the tensors whose name matches, one by one")
    parser.add_argument("--engine", action="store_true", help="show what fastckpt runs on here (PATH: also its disk)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Show the facts about one file, one directory or the engine."""
    if args.engine:  # Each imports what it needs alone, which takes longer than to show a file.
        from fastckpt.cli.engine_facts import engine_facts, engine_lines

        engine = engine_facts(args.path)
        out.show(engine, engine_lines)
        out.document(engine)
    elif args.path is None:
        raise UsageError("inspect needs a path", next_step="fastckpt inspect --help")
    elif is_directory_of_checkpoints(args.path):
        from fastckpt.cli.directory_facts import directory_facts, directory_lines

        directory = directory_facts(args.path)
        out.show(directory, directory_lines)
        out.document(directory)
    else:
        from fastckpt.cli.file_facts import file_facts
        from fastckpt.cli.inspect_text import file_lines

        facts = file_facts(args.path, keys=args.keys)
        out.show(facts, lambda facts: file_lines(facts, tree=args.tree, each=args.keys is not None))
        out.document(facts)
    return 0
