"""The steps of a run in an object store: objects named after steps, each of which appears, and goes, in one step."""

from __future__ import annotations

import os
import re

from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.keeping.series import Look, Series
from fastckpt.remote.path import RemotePath
from fastckpt.remote.store import Listed
from fastckpt.stored.open_file import open_file
from fastckpt.stored.verify import verify as verify_file


class ObjectSeries(Series):
    """See the module.

    Args:
        place: The prefix that they have in common.
        named: Whole names below it; the first group is the number of the step.
        threads: Worker threads.

    Raises:
        CheckpointIOError: It cannot be listed.
    """

    facts_in = "whole step"

    def __init__(self, place: RemotePath, *, named: re.Pattern[str], threads: int) -> None:
        self.directory = os.fspath(place)
        self.left_out: list[str] = []
        self._place = place
        self._threads = threads
        self._found: dict[int, Listed] = {}
        for each in place.store.list_here(place.joined("").key)[1]:
            if name := named.fullmatch(each.key.rpartition("/")[2]):
                self._found[int(name[1])] = each
        self._found = dict(sorted(self._found.items()))
        self.numbers = list(self._found)

    def place(self, number: int) -> RemotePath:
        """Where a step is."""
        return self._place.at(self._found[number].key)

    def newest_whole(self) -> RemotePath | None:
        """The newest step of which every byte is as it was written; all of it is fetched.

        Raises:
            CheckpointIOError: One that may be the newest cannot be read.
        """
        for number in reversed(self.numbers):
            look = self.look(number, verify=True)
            if look.unread:
                raise CheckpointIOError(f"cannot tell whether it is whole: {look.reasons[0]}", path=self.place(number))
            if look.whole:
                return self.place(number)
        return None

    def look(self, number: int, *, verify: bool) -> Look:
        """Without ``verify`` its structure alone is fetched."""
        try:
            if not verify:
                with open_file(self.place(number)):
                    return Look(whole=True)
            report = verify_file(self.place(number), threads=self._threads)
        except CheckpointIOError as error:
            return Look(False, (str(error),), unread=True)
        except FastckptError as error:
            return Look(False, (str(error),))
        return Look(report.ok, tuple(finding.message for finding in report.findings))

    def lacks_optimizer(self, number: int) -> bool:
        """Never: an object holds all that was saved."""
        return False

    def files(self, number: int) -> list[str]:
        """Its URL."""
        return [os.fspath(self.place(number))]

    def facts(self, number: int) -> dict[str, object]:
        """Its metadata; nothing where that is damaged."""
        try:
            with open_file(self.place(number)) as file:
                return dict(file.metadata)
        except CheckpointIOError:
            raise
        except FastckptError:
            return {}

    def delete(self, number: int) -> None:
        """One request."""
        self._place.store.delete([self._found[number].key])

    def changed(self, number: int) -> list[int]:
        """As the store tells it."""
        return [int(self._found[number].version.modified * 1e9)]

    def frees(self, number: int) -> int:
        """Its size."""
        return self._found[number].version.size
