"""The steps of a run in an object store: objects, or sets of them, each of which appears, and goes, in one step."""

from __future__ import annotations

import os
import re

from fastckpt.constants import SET_NAME
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.io.there import size_there, written_there
from fastckpt.keeping.series import Look, Series
from fastckpt.remote.path import RemotePath
from fastckpt.sets.judge import judge
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.sets.require_sound import require_manifest, require_there
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
        self._found: dict[int, RemotePath] = {}
        folders, objects = place.store.list_here(place.joined("").key)
        places = [place.at(folder.rstrip("/") + "/") for folder in folders]
        places += [place.at(each.key, each.version) for each in objects]
        for each in places:
            if name := named.fullmatch(os.path.basename(each.key.rstrip("/"))):
                self._found[int(name[1])] = each
        self._found = dict(sorted(self._found.items()))
        self.numbers = list(self._found)

    def place(self, number: int) -> RemotePath:
        """Where a step is."""
        return self._found[number]

    def newest_whole(self, *, before: int | None = None) -> RemotePath | None:
        """The newest step of which every byte is as it was written; all of it is fetched.

        Args:
            before: Of those before this one; None are all.

        Raises:
            CheckpointIOError: One that may be the newest cannot be read.
        """
        for number in (each for each in reversed(self.numbers) if before is None or each < before):
            look = self.look(number, verify=True)
            if look.unread:
                raise CheckpointIOError(f"cannot tell whether it is whole: {look.reasons[0]}", path=self.place(number))
            if look.whole:
                return self.place(number)
        return None

    def look(self, number: int, *, verify: bool) -> Look:
        """Without ``verify`` its structure alone is fetched."""
        place = self.place(number)
        try:
            if place.is_directory:
                return self._look_at_set(place, verify=verify)
            if not verify:
                with open_file(place):
                    return Look(whole=True)
            report = verify_file(place, threads=self._threads)
        except CheckpointIOError as error:
            return Look(False, (str(error),), unread=True)
        except FastckptError as error:
            return Look(False, (str(error),))
        return Look(report.ok, tuple(finding.message for finding in report.findings))

    def _look_at_set(self, place: RemotePath, *, verify: bool) -> Look:
        step = one_checkpoint(place)
        if verify:
            report = judge(step, threads=self._threads)
            return Look(report.is_whole, tuple(report.reasons), unread=bool(report.unread))
        require_manifest(step)
        require_there(step, step.members)
        return Look(whole=True)

    def lacks_optimizer(self, number: int) -> bool:
        """Never: a step holds all that was saved."""
        return False

    def files(self, number: int) -> list[str]:
        """The URLs of its objects; first of a set what makes it one."""
        return [os.fspath(each) for each in self._objects(number)]

    def facts(self, number: int) -> dict[str, object]:
        """Its metadata; nothing where that is damaged, and of a set."""
        if self.place(number).is_directory:
            return {}
        try:
            with open_file(self.place(number)) as file:
                return dict(file.metadata)
        except CheckpointIOError:
            raise
        except FastckptError:
            return {}

    def delete(self, number: int) -> None:
        """A request for each of its objects."""
        self._place.store.delete([each.key for each in self._objects(number)])

    def changed(self, number: int) -> list[int]:
        """As the store tells it."""
        return [written_there(each) for each in self._objects(number)]

    def frees(self, number: int) -> int:
        """The sizes of its objects."""
        return sum(size_there(each) or 0 for each in self._objects(number))

    def _objects(self, number: int) -> list[RemotePath]:
        place = self.place(number)
        if not place.is_directory:
            return [place]
        objects = [place.at(each.key, each.version) for each in place.store.list_here(place.key)[1]]
        return sorted(objects, key=lambda each: (os.path.basename(each.key) != SET_NAME, each.key))
