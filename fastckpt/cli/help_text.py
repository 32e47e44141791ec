"""How ``--help`` is laid out: sentences as wide as the terminal, to a limit; commands are never broken."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Final

_WIDEST: Final = 100
_MARGIN: Final = 2


class HelpText(argparse.HelpFormatter):
    """See the module. A paragraph with a line that is set in, as commands are, stays as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, _WIDEST) - _MARGIN)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_filled(paragraph, width, indent) for paragraph in text.strip().split("\n\n"))


def _filled(paragraph: str, width: int, indent: str) -> str:
    lines = paragraph.splitlines()
    if any(line.startswith(" ") for line in lines):
        return "\n".join(f"{indent}{line}" for line in lines)
    return textwrap.fill(
        " ".join(lines),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
