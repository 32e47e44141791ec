"""What page and terminal both say about a file: its verdict, and its kinds of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastckpt.findings import UNSETTLED, ByteCounts
from fastckpt.plotting.markup import quantity
from fastckpt.plotting.naming import counts_layers, parse, short_labels
from fastckpt.plotting.numbers import ChunkMap, Healing, PlottedFile, PlottedTensor
from fastckpt.text import count_text, share_text, size_text
from fastckpt.verdicts import Verdict


def verdict(file: PlottedFile) -> tuple[str, str]:
    """Whether a file is intact, in words, and ``good``, ``warning`` or ``bad``."""
    if file["verdict"] == Verdict.INTACT:
        what = "every byte verified" if file["format"] in ("fckpt", "set") else "every record matches its CRC-32"
        return f"{Verdict.INTACT}: {what}", "good"
    if file["verdict"] == Verdict.PRESENT:
        unproven = any(finding["size"] for finding in file["findings"]) or not file["findings"]
        return f"{Verdict.PRESENT}: {'it has no checksum for all of it' if unproven else UNSETTLED}", "warning"
    if not any(finding["loss"] for finding in file["findings"]):
        return "damaged; no tensor is lost", "warning"
    count = len(file["not_whole"])
    return "damaged" + (f": {count_text(count, 'tensor')} not whole" if count else ""), "bad"


def proven_words(chunks: ChunkMap) -> str:
    """How much of a damaged file is proven: ``8.86 of 15.7 MB proven, 6.84 MB damaged or missing``."""
    counts = ByteCounts(**chunks["tensor_bytes"])
    parts = [f"{share_text(counts.proven, counts.total)} proven"]
    parts += [f"{size_text(counts.unproven)} without a proof"] if counts.unproven else []
    parts += [f"{size_text(counts.gone)} damaged or missing"] if counts.gone else []
    return ", ".join(parts)


def healing_words(healing: Healing) -> str:
    """How much parity heals: ``its parity heals 3 of 4 lost leaves``."""
    leaves = "1 lost leaf" if healing["lost"] == 1 else f"{healing['lost']:,} lost leaves"
    return f"its parity heals {healing['heal']:,} of {leaves}"


def bad_numbers(tensor: PlottedTensor) -> int:
    """How many of a tensor's numbers are NaN or infinite."""
    numbers = tensor["numbers"]
    return numbers["nan"] + numbers["inf"] if numbers is not None else 0


@dataclass(slots=True)
class KindOfTensor:
    """All tensors that have the same name but for the layer.

    Attributes:
        kind: The name with ``*`` for the layer.
        label: The same, shorter.
        nbytes: Of all of them.
        tensors: How many they are.
        squares, nan, inf, zeros, count: Sums over those that were measured.
        octaves: Their magnitudes.
        norms: The norm by layer.
        unmeasured: How many of them could not be read.
    """

    kind: str
    label: str
    nbytes: int = 0
    tensors: int = 0
    squares: float = 0.0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    count: int = 0
    octaves: list[int] = field(default_factory=list)
    norms: dict[int, float] = field(default_factory=dict)
    unmeasured: int = 0

    @property
    def norm(self) -> float:
        """The L2 norm of all of them."""
        return math.sqrt(self.squares)


def weights_of(file: PlottedFile) -> list[PlottedTensor]:
    """Those not of an optimizer, whose counters would be most of a norm; all if there are no others."""
    return [tensor for tensor in file["tensors"] if counts_layers(parse(tensor["name"]).kind)] or file["tensors"]


def kinds_of(tensors: Sequence[PlottedTensor]) -> list[KindOfTensor]:
    """The kinds of tensors, the one with the most bytes first; tied weights count once."""
    labels = short_labels(parse(tensor["name"]).kind for tensor in tensors)
    kinds: dict[str, KindOfTensor] = {}
    for tensor in tensors:
        name, numbers = parse(tensor["name"]), tensor["numbers"]
        if tensor["tied_to"] is not None:
            continue
        found = kinds.setdefault(name.kind, KindOfTensor(name.kind, labels[name.kind]))
        found.nbytes += tensor["nbytes"]
        found.tensors += 1
        if numbers is None:
            found.unmeasured += 1
            continue
        found.squares += numbers["norm"] ** 2
        found.nan += numbers["nan"]
        found.inf += numbers["inf"]
        found.zeros += numbers["zeros"]
        found.count += numbers["count"]
        before = found.octaves or [0] * len(numbers["octaves"])
        found.octaves = [a + b for a, b in zip(before, numbers["octaves"], strict=True)]
        if name.layer is not None:
            found.norms[name.layer] = math.hypot(found.norms.get(name.layer, 0.0), numbers["norm"])
    return sorted(kinds.values(), key=lambda kind: (-kind.nbytes, kind.kind))


def total_norm(file: PlottedFile) -> str:
    """The L2 norm of all weights; a dash if one of them could not be read."""
    kinds = kinds_of(weights_of(file))
    return "-" if any(kind.unmeasured for kind in kinds) else quantity(math.sqrt(sum(kind.squares for kind in kinds)))


def val_bpb_words(value: float | None) -> str:
    """A loss with as many digits as tell neighbouring steps apart."""
    return "-" if value is None else f"{value:.4f}"


def rate_words(rates: Sequence[float]) -> str:
    """Learning rates: the one, or the least and the largest."""
    return " to ".join(f"{rate:.4g}" for rate in sorted({min(rates), max(rates)})) if rates else "-"


def size_words(file: PlottedFile) -> str:
    """Format, size and tensors of a file."""
    return f"{file['format']}, {size_text(file['size'])}, {count_text(len(file['tensors']), 'tensor')}"
