"""The definition of leaf digests, by the xxhash package (SPEC.md, section 10.3)."""

from __future__ import annotations

import xxhash

from fastckpt.constants import LEAF_SIZE


def oracle(data: bytes) -> list[int]:
    """The digest of every 16 KiB, the last one zero-padded."""
    leaves = (data[at : at + LEAF_SIZE].ljust(LEAF_SIZE, b"\0") for at in range(0, len(data), LEAF_SIZE))
    return [xxhash.xxh3_64_intdigest(leaf) for leaf in leaves]
