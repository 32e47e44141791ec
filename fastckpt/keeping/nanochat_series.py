"""The steps of a nanochat directory: files with the number of the step in their names.

The model goes first, in every format, and is gone from the disk before the
rest follows: a crash in between never leaves a model without its optimizer,
which nanochat would load. What it leaves is no whole step, and goes next time.
Only files that nanochat names as parts of a step are deleted, and of symbolic
links the link.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import DamagedError
from fastckpt.io.commit import fsync_directory
from fastckpt.io.os_errors import translate_os_error
from fastckpt.keeping.series import FileSeries, Look, files_by_name
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.meta import read_meta
from fastckpt.nanochat.names import META, MODEL, parse_name
from fastckpt.nanochat.steps import Step, read_steps
from fastckpt.nanochat.wholeness import lacks_optimizer
from fastckpt.seals.names import with_sums
from fastckpt.sets.listing import Listing


class NanochatSeries(FileSeries):
    """See the module. Raises CheckpointIOError."""

    facts_in = "meta file of a whole step"

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._steps = read_steps(directory)
        self.numbers = list(self._steps)
        self.left_out = []
        if self.numbers:
            files = files_by_name(Listing(directory))
            self.left_out = [path for path in files if parse_name(os.path.basename(path)) is None]

    def look(self, number: int, *, verify: bool) -> Look:
        """By `step_state`."""
        state = step_state(self._steps[number], verify=verify)
        if state.complete and not state.flaws:
            return Look(whole=True)
        return Look(False, state.flaws if state.complete else state.reasons, state.unread)

    def lacks_optimizer(self, number: int) -> bool:
        """Whether other steps have optimizer files, and this one has none."""
        return lacks_optimizer(self._steps[number], self._steps.values())

    def files(self, number: int) -> list[str]:
        """Models, meta files, optimizers, and their sums; also those of what the step was before."""
        return _in_order(self._steps[number])

    def to_copy(self, number: int) -> dict[str, str]:
        """Those that a load takes, and their sums: the meta file first, the model last."""
        sealed = step_state(self._steps[number], verify=False).files
        files = sorted(with_sums(sealed), key=lambda path: sealed.index(path) if path in sealed else -1)
        return {os.path.basename(path): path for path in files}

    def facts(self, number: int) -> dict[str, object]:
        """What the meta file holds; nothing if it is not whole."""
        meta = self._steps[number].meta
        try:
            return read_meta(meta) if meta is not None else {}
        except DamagedError:
            return {}

    def delete(self, number: int) -> None:
        """The models, then, when these are surely gone, the rest."""
        _delete(self.directory, self.files(number))


def _in_order(step: Step) -> list[str]:
    return sorted(with_sums(step.paths), key=_deletion_order)


def _deletion_order(path: str) -> tuple[int, str, bool]:
    """The sums of a file in front of it: without them it is whole, and they are nothing without it."""
    sealed = path.removesuffix(SUMS_SUFFIX)
    parsed = parse_name(os.path.basename(sealed))
    role = parsed[0].role if parsed is not None else ""
    return {MODEL: 0, META: 1}.get(role, 2), sealed, sealed == path


def _delete(directory: str, files: Sequence[str]) -> None:
    models = [path for path in files if _deletion_order(path)[0] == 0]
    for group in (models, files[len(models) :]):
        for path in group:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue  # Someone else deletes here too.
            except OSError as error:
                raise translate_os_error(error, path, doing="delete the file") from error
        for place in {directory, *map(os.path.dirname, group)}:
            with contextlib.suppress(FileNotFoundError):
                fsync_directory(place)
    for place in set(map(os.path.dirname, files)) - {directory}:
        with contextlib.suppress(OSError):
            os.rmdir(place)  # Where something was kept while the step was saved again.
