"""All checkpoints of a directory at once: which are whole, and which of these is the newest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from fastckpt.io.transfer import Progress
from fastckpt.sets.judge import SetDocument, SetReport, judge
from fastckpt.sets.model import CheckpointSet
from fastckpt.text import quoted


class SetsDocument(TypedDict):
    path: str
    sets: list[SetDocument]
    newest_whole: str | None
    exit_code: int
    next: str


@dataclass(slots=True)
class Overview:
    """What was found in a directory.

    Attributes:
        path: The directory.
        reports: One for each checkpoint, the oldest first.
    """

    path: str
    reports: list[SetReport]

    @property
    def newest_whole(self) -> SetReport | None:
        """The newest checkpoint that is whole."""
        return next((report for report in reversed(self.reports) if report.is_whole), None)

    @property
    def exit_code(self) -> int:
        """0 all are whole, 1 some are not but the newest is, 3 only an older one is; else that of the newest."""
        if all(report.is_whole for report in self.reports):
            return 0
        if self.reports[-1].is_whole:
            return 1
        return self.reports[-1].exit_code if self.newest_whole is None else 3

    @property
    def next_step(self) -> str:
        """What to do."""
        newest = self.newest_whole
        if newest is self.reports[-1]:
            return f"go on from {quoted(newest.checkpoint.path)}"
        unread = [problem for report in self.reports[-1:] for problem in report.unread]
        if unread:
            return f"look at the disk ({unread[0].path}: {unread[0].message}), then ask again: it may be whole"
        own = self.reports[-1].next_step
        if newest is None:
            return own or f"no checkpoint in {quoted(self.path)} is whole; take another copy"
        older = f"go on from {quoted(newest.checkpoint.path)}, which is whole"
        return f"{older}; or, for the newer one, {own}" if own is not None else older

    def as_dict(self) -> SetsDocument:
        """Plain values, for JSON."""
        newest = self.newest_whole
        return {
            "path": self.path,
            "sets": [report.as_dict() for report in self.reports],
            "newest_whole": newest.checkpoint.path if newest is not None else None,
            "exit_code": self.exit_code,
            "next": self.next_step,
        }


def survey_sets(
    directory: str | os.PathLike[str],
    sets: Sequence[CheckpointSet],
    *,
    threads: int,
    progress: Progress | None = None,
) -> Overview:
    """Judge all ``sets`` of a directory; every byte is read."""
    return Overview(os.fspath(directory), [judge(each, threads=threads, progress=progress) for each in sets])
