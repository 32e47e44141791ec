"""Run an unchanged nanochat script with fastckpt's saves and loads.

  fastckpt run -m scripts.base_train -- --depth=20 --save-every=500
  fastckpt run my_script.py -- ARGUMENTS
  torchrun --standalone --nproc_per_node=8 -m fastckpt run -m scripts.base_train -- --depth=20

It is run as python would run it, from the current directory; what stands
behind its name, and behind a first --, are its arguments. When it imports
nanochat.checkpoint_manager, save_checkpoint, load_checkpoint, find_last_step,
find_largest_model and load_optimizer_state are replaced by those of
fastckpt.nanochat: steps are saved as .fckpt, and loaded from .fckpt or .pt. The
exit code is that of the script.

With one of --keep-last, --keep-every, --keep-best and --min-free the steps that
no rule keeps are deleted after each save, as fastckpt prune does it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from importlib.machinery import PathFinder
from typing import Final

from fastckpt.cli.prune import RULES, add_rules
from fastckpt.cli.render import Output
from fastckpt.errors import UsageError
from fastckpt.io.os_errors import refuse_missing
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat.installing import MANAGER, InstallOnImport, not_importable
from fastckpt.nanochat.script_save import ScriptSave

FAILED = 1
"""What python ends with after an exception that nobody caught."""

EXAMPLES: Final = (
    "fastckpt run -m scripts.base_train -- --num-iterations=20 --save-every=10",
    "fastckpt run --emergency-save --keep-last 3 -m scripts.base_train -- --num-iterations=20 --save-every=10",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt run``."""
    parser.add_argument("-m", dest="module", metavar="MODULE", help="a module to run, as with python -m")
    parser.add_argument(
        "--emergency-save",
        action="store_true",
        help="save the step on SIGTERM and Ctrl-C; SIGUSR1 saves and goes on",
    )
    add_rules(parser, keep_last=None)
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="or a file to run")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, up to the name of the program, and those of the program."""
    end = len(arguments)
    value = False
    for position, argument in enumerate(arguments):
        if value:
            value = False
        elif argument in RULES:
            value = True
        elif argument == "-m":
            end = position + 2
            break
        elif argument.startswith("-m") or not argument.startswith("-"):
            end = position + 1
            break
    passed = arguments[end:]
    return arguments[:end], passed[1:] if passed[:1] == ["--"] else passed


def run(args: argparse.Namespace, out: Output) -> int:
    """Run the program; returns its exit code."""
    if (args.module is None) == (args.script is None):
        raise UsageError("name a module with -m, or a script", next_step="fastckpt run --help")
    if args.script is not None and not os.path.isfile(args.script):
        refuse_missing(args.script)
        raise UsageError("this is no script", path=args.script, next_step="fastckpt run --help")
    # As python does: the current directory for a module, that of the script for a script.
    here = os.getcwd() if args.module is not None else os.path.dirname(os.path.abspath(args.script))
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    if args.module is not None:
        _require(args.module)
    sys.argv = [args.script or args.module, *args.passed]
    retention = _retention(args)
    saving = ScriptSave()
    installing = (
        InstallOnImport(saving.attach, retention=retention)
        if args.emergency_save
        else InstallOnImport(retention=retention)
    )
    with saving, installing:
        code = _execute(args)
    if code == 0 and MANAGER not in sys.modules:
        out.note(f"nothing was replaced: the program did not import {MANAGER}")
    return code


def _retention(args: argparse.Namespace) -> Retention | None:
    """The rules that were given; None if none was."""
    names = [rule.removeprefix("--").replace("-", "_") for rule in RULES]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return Retention(**given) if given else None


def _require(module: str) -> None:
    """Raise UsageError if there is no such module, or no nanochat, to import. Neither is executed."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UsageError(
            f"there is no module {module}", path=os.getcwd(), next_step="run this in the directory of your checkout"
        )
    package = importlib.util.find_spec(MANAGER.partition(".")[0])
    # The directory that a checkout is in is found as a package, too, but without the module.
    if package is None or PathFinder.find_spec(MANAGER, package.submodule_search_locations) is None:
        raise not_importable()


def _execute(args: argparse.Namespace) -> int:
    """Run the program as ``__main__``; how it ends becomes an exit code, as python does it."""
    try:
        if args.module is not None:
            runpy.run_module(args.module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(args.script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return FAILED
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return FAILED
    return 0
