"""Print what makes a shell complete the commands of fastckpt, their options and the values of these.

It is made from what the commands take. Where it belongs, each shell says in its
own way; for this session only: eval "$(fastckpt completion bash)", the same
with zsh, and fastckpt completion fish | source.
"""

from __future__ import annotations

import argparse
from typing import Final, TypedDict

from fastckpt.cli.render import Output
from fastckpt.cli.shells import SHELLS

EXAMPLES: Final = (
    "fastckpt completion bash >~/.local/share/bash-completion/completions/fastckpt",
    "fastckpt completion zsh >~/.zfunc/_fastckpt    # with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "fastckpt completion fish >~/.config/fish/completions/fastckpt.fish",
)


class CompletionDocument(TypedDict):
    shell: str
    script: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt completion``."""
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SHELLS), help="bash, zsh or fish")


def run(args: argparse.Namespace, out: Output) -> int:
    """Print the script."""
    facts: CompletionDocument = {"shell": args.shell, "script": SHELLS[args.shell]()}
    out.show(facts, lambda facts: facts["script"].splitlines())
    out.document(facts)
    return 0
