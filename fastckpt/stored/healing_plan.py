"""What parity brings back of a damaged file, before anything is written: that in its seal first, else that inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fastckpt.errors import FastckptError
from fastckpt.findings import Finding
from fastckpt.io.os_errors import exists
from fastckpt.io.source import Source
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.names import sums_path
from fastckpt.seals.parity_source import ParitySource
from fastckpt.seals.remains import open_remains
from fastckpt.seals.standing import Standing
from fastckpt.stored.inside_or_whole import inside_or_whole
from fastckpt.stored.why_another import why_another


class HealingPlan(NamedTuple):
    """What comes back.

    Attributes:
        remains: Where the parity is.
        standing: How the damaged file stands to it.
        behind: What is wrong with the bytes behind those that the parity covers. They are made again.
        hopeless: The numbers of the lost leaves that do not come back.
    """

    remains: ParitySource
    standing: Standing
    behind: list[Finding]
    hopeless: list[int]

    @property
    def is_needed(self) -> bool:
        """Whether anything is not as it was."""
        return not self.standing.is_as_sealed or bool(self.behind)

    @property
    def heals_all(self) -> bool:
        """Whether something is wrong with the file, and all of that comes back."""
        return self.is_needed and not self.hopeless

    @property
    def heals_nothing(self) -> bool:
        """Whether more is lost of each group than comes back."""
        return bool(self.hopeless) and self.hopeless == self.standing.bad_numbers and not self.standing.behind


@contextmanager
def healing_plan(source: Source, *, threads: int) -> Iterator[HealingPlan | None]:
    """The plan for an open file, all of which is read; None if there is no parity, or it is of another file.

    So it is where a file is whole by its own checksums, and was only written anew.

    Raises:
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    with ExitStack() as stack:
        best: HealingPlan | None = None
        for remains in _parity_of(source, stack, threads):
            try:
                plan = _plan(source, remains, threads)
            except FastckptError:
                continue
            if plan is not None and (best is None or best.heals_nothing or not plan.hopeless):
                best = plan
            if best is not None and not best.hopeless:
                break
        yield best


def _parity_of(source: Source, stack: ExitStack, threads: int) -> Iterator[ParitySource]:
    """Where there is parity of a file, as far as it can be used. What is wrong with it, others say."""
    try:
        if source.unpacked is None and exists(sums_path(source.path)):
            yield stack.enter_context(open_remains(sums_path(source.path), threads=threads))
    except FastckptError:
        pass
    try:
        inside = inside_or_whole(source, threads=threads)
    except FastckptError:
        return
    if inside is not None:
        yield inside


def _plan(source: Source, remains: ParitySource, threads: int) -> HealingPlan | None:
    if remains.sums.parity is None:
        return None
    standing = remains.standing(source, threads=threads)
    if why_another(source, standing, threads=threads):
        return None
    behind = remains.damage_behind(source)
    return HealingPlan(remains, standing, behind, hopeless_leaves(remains, standing.bad_numbers))
