"""A checkpoint of several files that fills tensors that exist: each part goes from its file to its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from fastckpt.errors import errors_about
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.prefixes import Named, with_names
from fastckpt.loading.filling import FileFiller, Filler
from fastckpt.loading.opening import Wanted
from fastckpt.remote.path import Place
from fastckpt.sets.contents import Contents, Part, contents_of
from fastckpt.sets.model import Member
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.staging.stage import Staging
from fastckpt.tensor.dtypes import require_dtypes


def set_filler(
    directory: Place, keys: str | Iterable[str] | None, *, prefix: str | None, renamed: bool, values: bool
) -> Filler:
    """The checkpoint in a directory.

    Args:
        directory: Where it is.
        keys: What is wanted of it, without the prefix; None is all.
        prefix: What stands, with a dot, before the names that are wanted.
        renamed: Whether ``keys`` are other names than those in the checkpoint.
        values: Whether more than tensors is wanted.

    Raises: What `fastckpt.load` of a directory raises.
    """
    one = one_checkpoint(directory)
    return _SetFiller(contents_of(one, None if renamed else keys, prefix=prefix, values=values))


class _SetFiller(Filler):
    """See `Filler`. Each tensor of the whole is a storage of its own."""

    def __init__(self, contents: Contents) -> None:
        self.path = contents.checkpoint.path
        self._contents = contents
        self._members = contents.checkpoint.members
        entries = [
            Entry(tensor.name, tensor.dtype, tensor.shape, contiguous_stride(tensor.shape), number, 0)
            for number, tensor in enumerate(contents.tensors)
        ]
        self.named = Named(with_names(entries, contents.tree), lambda: contents.tree)
        self.storage_sizes = [entry.nbytes for entry in entries]
        require_dtypes(entries, self.path)

    def require(self, entries: Sequence[Entry]) -> None:
        """See `Filler`: every file is there, and has the parts in their types and shapes."""
        wanted = {entry.storage for entry in entries}
        for member in self._members:
            parts = self._wanted_of(member, wanted)
            if parts:
                with self._contents.open(member) as file, errors_about(file.path):
                    self._contents.found(file, parts)

    def fill(
        self, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], stagings: Mapping[torch.device, Staging]
    ) -> None:
        """See `Filler`."""
        wholes = {entry.storage: tensors[entry.name] for entry in entries}
        done = dict.fromkeys(stagings, 0)
        for member in self._members:
            parts = self._wanted_of(member, wholes)
            if not parts:
                continue
            with self._contents.open(member) as file, errors_about(file.path):
                found = self._contents.found(file, parts)
                places = {
                    entry.name: _place(wholes[part.number], part) for part, entry in zip(parts, found, strict=True)
                }
                how = {
                    device: replace(each, progress=_after(done[device], each.progress))
                    for device, each in stagings.items()
                }
                FileFiller(Wanted(file, found, whole=False)).fill(found, places, how)
            for entry in found:
                done[places[entry.name].device] += entry.nbytes

    def _wanted_of(self, member: Member, numbers: Iterable[int]) -> list[Part]:
        return [part for part in self._contents.parts.get(member.path, ()) if part.number in numbers]


def _place(whole: torch.Tensor, part: Part) -> torch.Tensor:
    if tuple(whole.shape) == part.sizes:
        return whole
    return whole[tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes, strict=True))]


def _after(done: int, progress: Progress | None) -> Progress | None:
    """What reports what is done of a file as a part of all."""
    return None if progress is None else lambda count: progress(done + count)
