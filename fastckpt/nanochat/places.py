"""Where a converted directory may lie without nanochat taking it for a newer model.

`find_largest_model` looks at every subdirectory of ``base_checkpoints`` (and
the like): the largest number in a name that begins with ``d<number>`` wins,
whatever follows it, equals are told apart by the order of the listing; without
such a name the directory changed last wins. A directory ``d12_fckpt`` made
beside ``d12`` is therefore loaded in its place now and then, and ``d100.fckpt``
always; neither has a ``model_*.pt`` in it.

So a new directory is refused where that could happen: beside the source, or
beside other directories of nanochat itself. Restoring ``.pt`` files from
elsewhere into a tag of nanochat is what a user means it to be, and allowed.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fastckpt.errors import UsageError
from fastckpt.nanochat.names import parse_hidden, parse_name

BASE: Final = "base_checkpoints"
MID: Final = "mid_checkpoints"
OLD_SFT: Final = "sft_checkpoints"
SFT: Final = "chatsft_checkpoints"
RL: Final = "chatrl_checkpoints"
PARENTS: Final = (BASE, MID, OLD_SFT, SFT, RL)
"""Where nanochat saves, below its base directory; ``mid`` until January 2026, ``sft_checkpoints`` for a day then."""
DEPTH: Final = re.compile(r"d(\d+)")
"""With re.match, as nanochat does: what follows the number does not matter."""


def is_nanochat(directory: str) -> bool:
    """Whether a directory is one of nanochat's: a base directory, one below it, or one with files that it names so."""
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    if any(name in PARENTS or parse_name(name) is not None or parse_hidden(name) is not None for name in names):
        return True
    below = [os.path.join(directory, name) for name in names if DEPTH.match(name)]
    return any(is_nanochat(inner) for inner in below if os.path.isdir(inner))


def refuse_taken_for_model(source: str, destination: str, *, to: str, instead: str = "") -> None:
    """Raise UsageError if nanochat would count ``destination`` among its models.

    Args:
        source: The directory that is read.
        destination: The other directory that is written.
        to: The format it will hold.
        instead: What else the user can do.
    """
    target = os.path.realpath(destination)
    parent, name = os.path.split(target)
    beside = parent == os.path.dirname(os.path.realpath(source))
    known = os.path.basename(parent) in PARENTS
    if not beside and (not known or to == "pt" or os.path.isdir(target)):
        return
    siblings = _siblings(parent, name)
    if not siblings:
        return  # There is no other model that it could be taken for.
    ranked = DEPTH.match(name)
    if ranked:
        why = f"nanochat counts every directory whose name begins with {ranked[0]!r} as that model"
    elif known and not any(DEPTH.match(other) for other in siblings):
        why = "without a directory named d<number>, nanochat loads the one that was changed last"
    else:
        return
    raise UsageError(
        f"nanochat could load this directory in place of {os.path.basename(os.path.realpath(source))}: {why}",
        path=destination,
        next_step=f"{instead}choose a name that does not begin with d<number>, such as w2-d12 (then "
        f"--model-tag=w2-d12), or a directory outside {parent}",
    )


def _siblings(parent: str, name: str) -> list[str]:
    if not os.path.isdir(parent):
        return []  # It is made with the directory.
    with os.scandir(parent) as listing:
        return [item.name for item in listing if item.is_dir() and item.name != name]
