"""Entry point: finds the command, runs it, and turns every way it can end into an exit code.

Nothing heavy is imported here: ``fastckpt --help`` needs neither torch nor the
native core.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import fastckpt
from fastckpt.cli.render import Output
from fastckpt.errors import FastckptError, UsageError

COMMANDS: Final = {
    "convert": "turn .pt and .safetensors files, or a nanochat directory, into .fckpt and back",
    "inspect": "show what a checkpoint holds, without loading it",
    "diff": "say what is different between two checkpoints, and by how much",
    "verify": "check every byte of checkpoint files",
    "doctor": "say what is wrong with nanochat checkpoints, and what to type next",
    "salvage": "get what is still proven out of a damaged checkpoint",
    "reshard": "deal the optimizer of a nanochat step to another number of ranks",
    "backup": "put a verified copy of a nanochat directory elsewhere",
    "prune": "delete the steps of a nanochat directory that are no longer needed",
    "plot": "draw a checkpoint, or the steps of a directory, as one HTML file",
    "run": "run an unchanged nanochat script with fastckpt's saves and loads",
    "demo": "convert, damage and restore a checkpoint, and show that every bit comes back",
}

EXIT_CODES: Final = """\
exit codes:
  0    intact, or done
  1    a finding that can be got around: no tensor is lost
  2    damage with loss, or failure
  3    a part was saved, a part was lost
  4    not a checkpoint, or one that needs a newer fastckpt
  5    no space or an I/O error; the destination is untouched
  64   wrong usage
  130  interrupted
"""

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell reports for a program that SIGPIPE ended; no code of ours."""


class _Parser(argparse.ArgumentParser):
    """Raises UsageError, whose exit code is 64, where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next_step=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and never raises.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    out = Output(as_json="--json" in arguments)
    try:
        code = _run(arguments, out)
        out.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        out.abandon()
        return BROKEN_PIPE
    except OSError as error:
        out.abandon()
        out.note(f"error: {error}" if isinstance(error, FastckptError) else f"error: cannot write the output: {error}")
        return 5
    return code


def _run(arguments: list[str], out: Output) -> int:
    try:
        name = arguments[0] if arguments else ""
        if name not in COMMANDS:
            _explain(arguments)
        module = importlib.import_module(f"fastckpt.cli.{name}")
        parser = _Parser(
            prog=f"fastckpt {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        own, passed = arguments[1:], []
        if hasattr(module, "split_arguments"):
            own, passed = module.split_arguments(own)
        # Paths may stand before, between and after the options.
        args = parser.parse_intermixed_args(own, argparse.Namespace(passed=passed))
        code: int = module.run(args, out)
        return code
    except SystemExit as end:
        # argparse ends --help and --version this way.
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        out.error(FastckptError("interrupted"), kind="KeyboardInterrupt")
        return INTERRUPTED
    except FastckptError as error:
        _show_traceback()
        out.error(error)
        return error.exit_code
    except OSError as error:
        _show_traceback()
        out.error(FastckptError(error.strerror or str(error), path=error.filename), kind=type(error).__name__)
        return 5
    except Exception as error:
        _show_traceback()
        unexpected = FastckptError(
            f"unexpected {type(error).__name__}: {error}", next_step="set FASTCKPT_DEBUG=1 to see where it happened"
        )
        out.error(unexpected, kind=type(error).__name__)
        return FastckptError.exit_code


def _explain(arguments: list[str]) -> NoReturn:
    """Handle ``--help`` and ``--version``, and refuse everything else: it does not begin with a command."""
    parser = _Parser(
        prog="fastckpt",
        description="Checkpoints that load fast and prove every byte.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastckpt {fastckpt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    parser.parse_args(arguments)
    parser.error("the command must come first")


def _show_traceback() -> None:
    if os.environ.get("FASTCKPT_DEBUG"):
        import traceback

        traceback.print_exc()
