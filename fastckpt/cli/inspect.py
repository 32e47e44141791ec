"""Show what a checkpoint holds, without loading it.

PATH is a .fckpt, .pt or .safetensors file, or a directory with checkpoints.
Only the structure is read, and nothing in a file is executed. Lists and
tuples of plain values are shown as one value.
"""

from __future__ import annotations

import argparse
from typing import Final, Literal

from fastckpt.cli.render import Output
from fastckpt.errors import UsageError, require_positive
from fastckpt.foreign.suffixes import is_index
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.remote.path import as_place, located

EXAMPLES: Final = (
    "fastckpt inspect state.fckpt",
    "fastckpt inspect epoch.ckpt --tree",
    "fastckpt inspect state.fckpt --sort size --top 10",
    "fastckpt inspect state.fckpt --values 'model.layer.weight[0:2]'",
    "fastckpt inspect base_checkpoints/d4",
    "fastckpt inspect --engine",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt inspect``."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="a checkpoint file, or a directory with some in it")
    parser.add_argument("--tree", action="store_true", help="show all values as a tree, not only tensors")
    parser.add_argument("--keys", metavar="GLOB", help="list only the tensors whose name matches, one by one")
    parser.add_argument("--sort", choices=("name", "size"), help="list each tensor on a line of its own, in this order")
    parser.add_argument("--top", metavar="N", type=int, help="only the first N of them; the largest without --sort")
    parser.add_argument("--values", metavar="NAME[ROWS]", help="show the numbers of one tensor: NAME, or 'NAME[0:4]'")
    parser.add_argument("--engine", action="store_true", help="show what fastckpt runs on here (PATH: also its disk)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Show the facts about one file, one directory or the engine."""
    if args.engine:  # Each imports what it needs alone, which takes longer than to show a file.
        from fastckpt.cli.engine_facts import engine_facts, engine_lines

        engine = engine_facts(args.path)
        out.show(engine, engine_lines)
        out.document(engine)
        return 0
    if args.path is None:
        raise UsageError("inspect needs a path", next_step="fastckpt inspect --help")
    place = as_place(located(args.path))
    if args.values is not None:
        from fastckpt.cli.inspect_values import values_facts, values_lines

        values, shown = values_facts(args.path, args.values)
        out.show(values, lambda values: values_lines(values, shown))
        out.document(values)
    elif (index := is_index(place)) or is_directory_of_checkpoints(place):
        from fastckpt.cli.directory_facts import directory_facts, directory_lines, indexed_facts

        directory = (indexed_facts if index else directory_facts)(place)
        out.show(directory, directory_lines)
        out.document(directory)
    else:
        from fastckpt.cli.file_facts import file_facts
        from fastckpt.cli.inspect_text import file_lines

        if args.top is not None:
            require_positive("--top", args.top)
        sort: Literal["name", "size"] | None = args.sort or ("size" if args.top is not None else None)
        facts = file_facts(args.path, keys=args.keys, sort=sort, top=args.top)
        each = args.keys is not None or sort is not None
        out.show(facts, lambda facts: file_lines(facts, tree=args.tree, each=each))
        out.document(facts)
    return 0
