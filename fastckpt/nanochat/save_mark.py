"""The save mark: what each file of a nanochat step says about the save it belongs to.

Nothing in nanochat tells the ranks that a save is complete, and a barrier would
only make all of them wait for the slowest disk. So every file carries a mark in
its metadata, and a reader sees from the marks alone whether the files of a step
were written by one and the same save. The rule is in docs/nanochat.md.

The mark names the save by a digest of the weights. Every rank holds all of
them, and each optimizer step changes them: the files of one save agree without
a word between the ranks, and those of another save differ. A clock or a random
number would have to be sent to the other ranks first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import xxhash

from fastckpt.constants import SALVAGE_KEY, SAVE_HEAD_SIZE, SAVE_MARK_KEY, SAVED_AS_KEY
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.nanochat.names import MODEL, OPTIM, Stem, parse_name
from fastckpt.text import some

if TYPE_CHECKING:
    import torch

_RANK_VARIABLE: Final = "RANK"
_WORLD_SIZE_VARIABLE: Final = "WORLD_SIZE"
"""Where torchrun says which process of how many this is."""


@dataclass(frozen=True, slots=True)
class SaveMark:
    """The mark of one model or optimizer file.

    Attributes:
        role: ``model`` or ``optim``.
        step: The step it was saved at.
        rank: The rank that saved it; None for the one optimizer file of a nanochat of before November 2025.
        world_size: How many ranks save an optimizer file.
        save: Digest of the weights in hex; None if the rank was given no weights. None agrees with any other.
        optimizer: Of a model: whether optimizer files belong to it.
        meta: Of a model: digest of the bytes of its meta file, in hex.
    """

    role: str
    step: int
    rank: int | None
    world_size: int
    save: str | None
    optimizer: bool = True
    meta: str | None = None

    @property
    def stem(self) -> Stem:
        """The name, without suffix, of the file that has this mark."""
        return Stem(self.role, self.step, None if self.role == MODEL else self.rank)

    def as_metadata(self) -> dict[str, Any]:
        """The metadata to save the file with."""
        mark: dict[str, Any] = {"role": self.role, "step": self.step, "rank": self.rank}
        mark |= {"world_size": self.world_size, "save": self.save}
        if self.role == MODEL:
            mark |= {"optimizer": self.optimizer, "meta": self.meta}
        return {SAVE_MARK_KEY: mark}

    def agrees_with(self, other: SaveMark) -> bool:
        """Whether two files can be of the same save."""
        same = self.step == other.step and self.world_size == other.world_size
        return same and (None in (self.save, other.save) or self.save == other.save)


def parse_mark(metadata: Mapping[str, Any]) -> SaveMark | None:
    """The mark in a file's metadata; None if there is none, or something else under its name."""
    raw = metadata.get(SAVE_MARK_KEY)
    if not isinstance(raw, dict):
        return None
    role, step, rank, world_size = (raw.get(key) for key in ("role", "step", "rank", "world_size"))
    save, optimizer, meta = raw.get("save"), raw.get("optimizer", True), raw.get("meta")
    if role not in (MODEL, OPTIM) or type(step) is not int or type(world_size) is not int or world_size < 1:
        return None
    if not (rank is None or type(rank) is int) or type(optimizer) is not bool:
        return None
    if not all(digest is None or type(digest) is str for digest in (save, meta)):
        return None
    return SaveMark(role, step, rank, world_size, save, optimizer, meta)


def no_place_in_torch(metadata: Mapping[str, Any], path: str) -> list[str]:
    """The keys of the metadata of the file ``path`` that neither a ``.pt`` made of it nor its name would tell."""
    named, mark = parse_name(os.path.basename(path)), parse_mark(metadata)
    # The format is what readers of a .safetensors look for, and says nothing of the state.
    told = {SALVAGE_KEY} | ({"format"} if metadata.get("format") == "pt" else set())
    told |= {SAVE_MARK_KEY} if named is not None and mark is not None and mark.stem == named[0] else set()
    told |= {SAVED_AS_KEY} if named is not None and metadata.get(SAVED_AS_KEY) == str(named[0]) else set()
    return [key for key in metadata if key not in told]


def note_of_metadata(lost: Sequence[str]) -> list[str]:
    """What is said of the keys that `no_place_in_torch` found; nothing if there are none."""
    return [f"its metadata ({some(lost)}) is not in the .pt, which has no place for it"] if lost else []


def read_mark(path: str | os.PathLike[str]) -> SaveMark | None:
    """The mark of a ``.fckpt`` file; None if it has none, as after a conversion from ``.pt``.

    Raises:
        DamagedError, NotACheckpointError, UnsupportedVersionError, CheckpointIOError
    """
    with CheckpointFile(path) as file:
        return parse_mark(file.manifest.metadata)


def meta_digest(data: bytes) -> str:
    """What a model's mark has for a meta file of these bytes: XXH3-128 in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def save_digest(model_data: object) -> str:
    """What the marks of a save have for these weights: XXH3-128 in hex.

    It covers, for each tensor in tree order, its flat name, dtype, shape and
    the first 4 KiB of its elements (in row-major order, little-endian). From a
    GPU these come over in one copy.

    Raises:
        UnsupportedStateError: A tensor, or something beside the tensors, cannot be stored.
    """
    from fastckpt.tensor.flatten import flatten

    flat = flatten(model_data)
    heads = _heads(flat.tensors)
    digest = xxhash.xxh3_128()
    for entry, head in zip(flat.entries, heads, strict=True):
        shape = ",".join(map(str, entry.shape))
        digest.update(f"{entry.name}\0{entry.dtype}\0{shape}\0".encode("utf-8", "surrogatepass"))
        digest.update(head)
    return digest.hexdigest()


def _heads(tensors: list[torch.Tensor]) -> list[bytes]:
    """The first elements of every tensor, brought together on each device before they are copied to the host."""
    import ctypes  # Here, not above: it would slow the start of every command.

    import torch

    by_device: dict[torch.device, list[int]] = {}
    for number, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(number)
    heads = [b""] * len(tensors)
    for numbers in by_device.values():
        parts = [_first_bytes(tensors[number]) for number in numbers]
        gathered = torch.cat(parts).cpu()
        raw = ctypes.string_at(gathered.data_ptr(), gathered.numel())
        at = 0
        for number, part in zip(numbers, parts, strict=True):
            heads[number] = raw[at : at + part.numel()]
            at += part.numel()
    return heads


def _first_bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    elements = tensor.detach().reshape(-1)[: SAVE_HEAD_SIZE // tensor.element_size()]
    return elements.resolve_conj().resolve_neg().contiguous().view(torch.uint8)


def world_size() -> int:
    """How many ranks train together: torch.distributed knows, else torchrun's variable, else it is 1."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return max(_variable(_WORLD_SIZE_VARIABLE, 1), 1)


def is_first_rank() -> bool:
    """Whether this process is rank 0, which speaks for all in the log."""
    return _variable(_RANK_VARIABLE, 0) == 0


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
