"""The commands and what each takes: help, shell completion, the manual page and docs/cli.md are made from it."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Final, NamedTuple, NoReturn

import fastckpt
from fastckpt.cli.help_text import HelpText
from fastckpt.errors import UsageError
from fastckpt.text import did_you_mean, plain_path

COMMANDS: Final = {
    "convert": ".pt and .safetensors files, or directories of them, to .fckpt and back",
    "inspect": "what a checkpoint holds, without loading it (also .pt and .safetensors)",
    "verify": "check every byte; findings name tensor, record, chunk and byte range",
    "seal": "checksums beside any file that is to stay as it is",
    "repair": "heal a damaged file by its parity",
    "diff": "what differs between two checkpoints of any format or sharding, and by how much",
    "salvage": "every intact tensor out of a damaged file, and one that training resumes from",
    "doctor": "what is wrong with a directory of checkpoints, and what to type next",
    "run": "an unchanged nanochat script, with saves that cannot be torn",
    "reshard": "an optimizer saved on N GPUs, for M GPUs",
    "prune": "delete the steps that are no longer needed",
    "backup": "copy whole steps, verified; resumable",
    "sync": "send whole steps to a store while a run saves",
    "plot": "one HTML page: bytes by module, norms, histograms, a map of the damage",
    "demo": "convert, damage and restore a checkpoint, and show that every bit comes back",
    "completion": "what makes bash, zsh or fish complete commands and options",
    "man": "the manual page",
}

EXIT_CODES: Final = (
    (0, "intact, or done"),
    (1, "a finding that can be got around: no tensor is lost"),
    (2, "damage with loss, or failure"),
    (3, "a part was saved, a part was lost"),
    (4, "not a checkpoint, or one that needs a newer fastckpt"),
    (5, "no space or an I/O error; the destination is untouched"),
    (64, "wrong usage"),
    (130, "interrupted"),
    (143, "terminated: SIGTERM ends a command as Ctrl-C does"),
)


_PATHS: Final = ("DST", "FILE", "OTHER", "HTML")
"""What options take that is a path."""


def _as_path(word: str) -> str:
    """A path as it can stand in every command that is printed: it is taken for no option."""
    return plain_path(word)


class Parser(argparse.ArgumentParser):
    """Raises UsageError, whose exit code is 64, where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next_step=f"{self.prog} --help")

    def unknown(self, what: str, word: str, known: Iterable[str]) -> NoReturn:
        """Refuse a word that is none of those known."""
        close = did_you_mean(word, known)
        shown = f"{self.prog} --help"
        raise UsageError(f"there is no {what} {word}", next_step=f"{close} ({shown} has all)" if close else shown)

    def parse_everything(self, arguments: list[str], namespace: argparse.Namespace) -> argparse.Namespace:
        """Parse paths before, between and after the options. Raises UsageError for what is neither."""
        # argparse itself forgets in its second pass what stands behind `--`.
        at = arguments.index("--") if "--" in arguments else len(arguments)
        arguments = [*arguments[:at], *map(_as_path, arguments[at + 1 :])]
        parsed, others = self.parse_known_intermixed_args(arguments, namespace)
        option = next((word for word in others if word.startswith("-")), None)
        if option is not None:
            self.unknown("option", option.partition("=")[0], self._option_string_actions)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        for action in self._actions:
            if action.metavar in _PATHS and isinstance(getattr(parsed, action.dest, None), str):
                setattr(parsed, action.dest, _as_path(getattr(parsed, action.dest)))
        return parsed


class Argument(NamedTuple):
    """What a command takes.

    Attributes:
        names: Of an option, ``-o`` and ``--output``; of a place for words none.
        choices: The values that there are, where these are few.
        takes: What follows an option; "" if nothing does.
        about: What it is for, in one line.
    """

    names: tuple[str, ...]
    choices: tuple[str, ...]
    takes: str
    about: str

    @property
    def is_path(self) -> bool:
        """Whether a file or directory may follow."""
        return not self.names or self.takes in ("FILE", "DIR", "DST", "OTHER", "PATH", "HTML")


def module_of(command: str) -> ModuleType:
    """The module of a command: it has ``add_arguments``, ``run`` and ``EXAMPLES``."""
    return importlib.import_module(f"fastckpt.cli.{command}")


def parser_of(command: str) -> Parser:
    """What a command takes."""
    module = module_of(command)
    parser = Parser(
        prog=f"fastckpt {command}",
        description=module.__doc__,
        epilog="\n".join(("examples:", *(f"  {line}" for line in module.EXAMPLES))),
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


@functools.cache
def arguments_of(command: str) -> list[Argument]:
    """What a command takes, options first."""
    found = []
    for action in parser_of(command)._actions:
        if action.help is argparse.SUPPRESS:
            continue
        choices = tuple(map(str, action.choices)) if action.choices is not None else ()
        word = str(action.metavar or action.dest.upper())
        takes = " ".join([word] * action.nargs) if isinstance(action.nargs, int) else word
        found.append(Argument(tuple(action.option_strings), choices, takes, str(action.help).replace("%%", "%")))
    return sorted(found, key=lambda argument: not argument.names)


def frame_parser() -> Parser:
    """What stands before a command."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES)
    parser = Parser(
        prog="fastckpt",
        description="Checkpoints that load fast and prove every byte.",
        epilog=f"examples:\n  fastckpt verify model.pt\n  fastckpt salvage --help\n\nexit codes:\n{codes}",
        formatter_class=HelpText,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastckpt {fastckpt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser
