"""Entry point: finds the command, runs it, and turns every way it can end into an exit code.

Nothing heavy is imported here: ``fastckpt --help`` needs neither torch nor the
native core.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final, NoReturn

from fastckpt.cli.parsers import COMMANDS, frame_parser, module_of, parser_of
from fastckpt.cli.render import Output
from fastckpt.cli.termination import TerminatedError, termination_as_interrupt
from fastckpt.errors import FastckptError, UsageError
from fastckpt.needs import needs_torch

INTERRUPTED: Final = 130
TERMINATED: Final = 143
BROKEN_PIPE: Final = 141
"""What a shell reports for a program that SIGPIPE ended; no code of ours."""


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
        if name != "run":  # There the program decides what is shown.
            # torch works without NumPy, and says on import that it does.
            warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        if any("\0" in argument for argument in arguments):
            raise UsageError("an argument cannot have a NUL character in it")
        module = module_of(name)
        own, passed = arguments[1:], []
        if hasattr(module, "split_arguments"):
            own, passed = module.split_arguments(own)
        args = parser_of(name).parse_everything(own, argparse.Namespace(passed=passed))
        # A program that is run has its own way to end.
        with needs_torch(f"fastckpt {name}"), nullcontext() if name == "run" else termination_as_interrupt():
            code: int = module.run(args, out)
        return code
    except SystemExit as end:
        # argparse ends --help and --version this way.
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except TerminatedError:
        out.error(FastckptError("terminated"), kind="Terminated")
        return TERMINATED
    except KeyboardInterrupt:
        out.error(FastckptError("interrupted"), kind="KeyboardInterrupt")
        return INTERRUPTED
    except FastckptError as error:
        _show_traceback()
        from fastckpt.cli.near import with_near_names

        out.error(with_near_names(error))
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
    parser = frame_parser()
    if arguments and not arguments[0].startswith("-"):
        parser.unknown("command", arguments[0], COMMANDS)
    parser.parse_args(arguments)
    parser.error("the command must come first")


def _show_traceback() -> None:
    if os.environ.get("FASTCKPT_DEBUG"):
        import traceback

        traceback.print_exc()
