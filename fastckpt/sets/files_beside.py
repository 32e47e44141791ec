"""Checkpoint files in the directory of a step that nothing names: Megatron's ``common.pt``, layers of a pipeline.

They may be needed to go on: a step is not whole while one of them is damaged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from fastckpt.constants import SET_NAME
from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import Member
from fastckpt.sets.set_manifest import SHARD

_NUMBERED_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
"""Of a model: its index says whether it counts."""


def files_beside(listing: Listing, members: Iterable[Member]) -> list[Member]:
    """The checkpoint files in a directory, by their suffixes, that are not among ``members``."""
    known = {member.name for member in members}
    return [
        Member(listing.place(name), "named by nothing", is_beside=True)
        for name in listing.names
        if os.path.splitext(name)[1].lower() in FORMAT_OF
        and not (name.startswith(".") or name in known or name == SET_NAME)
        and not (SHARD.fullmatch(name) or _NUMBERED_SHARD.fullmatch(name))
        and listing.is_file(name)
    ]
