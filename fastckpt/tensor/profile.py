"""What numbers a tensor holds: counts, sums, and a histogram of magnitudes, piece by piece in float64.

The bins are octaves, the same for every tensor: one pass is enough, profiles
add up, and a histogram shows at once what would underflow in a smaller dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch

from fastckpt.tensor.difference import Elements, values_of

FIRST_OCTAVE: Final = -40
"""The lowest bin holds all magnitudes below 2**-39, zeros left out."""
LAST_OCTAVE: Final = 24
"""The highest bin holds all finite magnitudes from 2**24 on."""
BINS: Final = LAST_OCTAVE - FIRST_OCTAVE + 1
_ROWS: Final = 1 << 17
"""Elements that are worked on at a time, for the sake of the cache."""


@dataclass(slots=True)
class Profile:
    """What was found over some numbers; profiles add up. Complex elements are two numbers.

    Attributes:
        numbers: How many.
        nan, inf, zeros: How many of these.
        squares, total: Sums over the finite ones.
        max_abs: The largest finite magnitude.
        octaves: How many magnitudes lie in ``[2**k, 2**(k+1))``, for k from FIRST_OCTAVE to LAST_OCTAVE.
    """

    numbers: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    squares: float = 0.0
    total: float = 0.0
    max_abs: float = 0.0
    octaves: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, other: Profile, times: int = 1) -> None:
        """Take in what was found over other numbers, which stand there ``times`` times."""
        self.numbers += other.numbers * times
        self.nan += other.nan * times
        self.inf += other.inf * times
        self.zeros += other.zeros * times
        self.squares += other.squares * times
        self.total += other.total * times
        self.max_abs = max(self.max_abs, other.max_abs)
        self.octaves = [a + b * times for a, b in zip(self.octaves, other.octaves, strict=True)]

    @property
    def norm(self) -> float:
        """The L2 norm of the finite numbers."""
        return math.sqrt(self.squares)

    @property
    def rms(self) -> float | None:
        """Root mean square of the finite numbers; None if there is none."""
        finite = self.numbers - self.nan - self.inf
        return math.sqrt(self.squares / finite) if finite else None


def profile(elements: Elements) -> Profile:
    """The profile of some elements.

    Raises:
        UnsupportedStateError: The installed torch lacks the dtype.
    """
    result = Profile()
    for part in torch.split(values_of(elements).reshape(-1), _ROWS):
        result.add(_profile(part))
    return result


def _profile(values: torch.Tensor) -> Profile:
    finite = values[values.isfinite()]
    size = finite.abs()
    # frexp gives a mantissa in [0.5, 1), so the octave is one less.
    octave = torch.frexp(size[size > 0]).exponent - 1
    bins = torch.bincount((octave - FIRST_OCTAVE).clamp(0, BINS - 1), minlength=BINS)
    nan = int(values.isnan().sum())
    return Profile(
        numbers=len(values),
        nan=nan,
        inf=len(values) - len(finite) - nan,
        zeros=len(size) - len(octave),
        squares=float(torch.dot(finite, finite)),
        total=float(finite.sum()),
        max_abs=float(size.max()) if len(size) else 0.0,
        octaves=bins.tolist(),
    )
