"""A checkpoint of torch.distributed.checkpoint put together, each piece proven by its CRC-32 before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from fastckpt.errors import DamagedError, UnsupportedStateError
from fastckpt.layout.selection import select_names
from fastckpt.layout.tree import TensorRef
from fastckpt.sets.dcp_metadata import GlobalTensor, Metadata
from fastckpt.sets.items_of import items_of
from fastckpt.sets.model import CheckpointSet, Member, Piece
from fastckpt.sets.nesting import nested
from fastckpt.sets.require_sound import require_manifest, require_there
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.tensor.dtypes import torch_dtype
from fastckpt.tensor.rebuild import build_tensors, resolve_tree
from fastckpt.text import some

_CPU = torch.device("cpu")


class Assembly:
    """Puts the pieces of one checkpoint together."""

    def __init__(
        self, checkpoint: CheckpointSet, device: torch.device, threads: int | None, opaque: Literal["error", "keep"]
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.threads = threads
        self.opaque = opaque

    def load(self, keys: str | Iterable[str] | None) -> Any:
        """The nested state, or a flat dict of the tensors that ``keys`` name."""
        require_manifest(self.checkpoint)
        metadata = self.checkpoint.manifest
        assert isinstance(metadata, Metadata), "it is sound"
        names = (
            list(metadata.tensors) if keys is None else select_names(list(metadata.tensors), keys, self.checkpoint.path)
        )
        wanted = set(names) | (set(metadata.objects) if keys is None else set())
        values: dict[str, Any] = {name: self.empty(metadata.tensors[name]) for name in names}
        for member in self.checkpoint.members:
            pieces = [piece for piece in member.pieces if piece.name in wanted]
            if pieces:
                require_there(self.checkpoint, [member])
                self.take(member, pieces, metadata, values)
        return nested(metadata.paths, values) if keys is None else values

    def empty(self, tensor: GlobalTensor) -> torch.Tensor:
        """Memory for a whole tensor."""
        return torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device=self.device)

    def take(self, member: Member, pieces: Sequence[Piece], metadata: Metadata, values: dict[str, Any]) -> None:
        """Copy the pieces that a file has to their places; objects become values."""
        with open_file(member.place) as file:
            assert isinstance(file, OpenedForeign)
            item_at = items_of(file.foreign)
            refs: list[tuple[Piece, TensorRef]] = []
            for piece in pieces:
                item = item_at(piece)
                if isinstance(item, TensorRef):
                    refs.append((piece, item))
                elif piece.name in metadata.tensors:
                    raise DamagedError(f"{piece.name} is no tensor here", path=file.path, offset=piece.offset)
                else:
                    values[piece.name] = self.plain(file, item)
            entries = [file.entries[ref.entry] for _, ref in refs]
            storages = [entry.storage for entry in entries]
            mapped = not file.source.far  # Of an object it would be a map of a copy.
            bytes_of = file.bring(storages, threads=self.threads, verify=True, progress=None, mapped=mapped)
            for (piece, _), part in zip(refs, build_tensors(entries, bytes_of, _CPU), strict=True):
                if piece.offsets is None:
                    values[piece.name] = part.clone()
                else:
                    _place(values[piece.name], metadata.tensors[piece.name], piece, part, file.path)

    def plain(self, file: OpenedForeign, item: object) -> object:
        """An object of the state. One of an unknown class is refused unless placeholders are wanted."""
        if self.opaque == "error" and file.opaque:
            raise UnsupportedStateError(
                f"the checkpoint holds {some(what for _, what in file.opaque)}, which is never imported",
                path=file.path,
                next_step='load with opaque="keep", or with keys= for the tensors alone',
            )
        entries = file.entries
        storages = [entry.storage for entry in entries]
        bytes_of = file.bring(storages, threads=self.threads, verify=True, progress=None, mapped=False)
        tensors = build_tensors(entries, bytes_of, _CPU)
        return resolve_tree(item, lambda ref: tensors[ref.entry])


def _place(whole: torch.Tensor, described: GlobalTensor, piece: Piece, part: torch.Tensor, path: str) -> None:
    offsets = piece.offsets or ()
    sizes = dict(described.chunks).get(offsets)
    if sizes is None or tuple(part.shape) != sizes or part.dtype != whole.dtype:
        raise DamagedError(
            f"{piece.name}: the piece at {list(offsets)} is not what the manifest says",
            path=path,
            offset=piece.offset,
            expected=f"{described.dtype}{list(sizes or ())}",
            actual=f"{part.dtype}{list(part.shape)}",
        )
    whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))].copy_(part)
