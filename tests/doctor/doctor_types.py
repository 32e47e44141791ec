"""What the tests hold in their hands: what doctor said, and how to ask it and to type what it says."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Told:
    """What doctor said."""

    code: int
    facts: Any

    @property
    def kinds(self) -> list[str]:
        """The findings that are more than notes, worst first."""
        return [one["kind"] for one in self.facts["findings"] if one["severity"] != "note"]

    @property
    def notes(self) -> list[str]:
        return [one["kind"] for one in self.facts["findings"] if one["severity"] == "note"]

    def the(self, kind: str) -> Any:
        """The only finding of a kind."""
        (found,) = [one for one in self.facts["findings"] if one["kind"] == kind]
        return found

    @property
    def tag(self) -> Any:
        (tag,) = self.facts["tags"]
        return tag


Doctor = Callable[..., Told]
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory and its bytes."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
