"""A progress bar on stderr, when there is someone to see it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_WORTH_A_BAR: Final = 64_000_000
"""Fewer bytes are done before a bar could be read."""


def bytes_at(path: str) -> int:
    """Bytes of a file, or of the files in a directory; 0 where the work itself will say what is wrong."""
    try:
        if not os.path.isdir(path):
            return os.path.getsize(path)
        with os.scandir(path) as listing:
            return sum(item.stat().st_size for item in listing if item.is_file())
    except OSError:
        return 0


@contextmanager
def progress_bar(label: str, count: Callable[[], int]) -> Iterator[Callable[[int], None] | None]:
    """A callback for the library's ``progress``; None unless stderr is a terminal and the work is long.

    Args:
        label: What is being done.
        count: Gives the bytes of all of it; asked only where someone can see the bar, since that may read every file.
            Work on several files may count from 0 for each.
    """
    total = count() if sys.stderr.isatty() else 0
    if total < _WORTH_A_BAR:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    shown = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        before = last = 0

        def update(done: int) -> None:
            nonlocal before, last
            if done < last:
                before += last
            last = done
            bar.update(task, completed=min(before + done, total))

        yield update
