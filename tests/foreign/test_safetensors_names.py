"""The names of a damaged table are found as a search that tries every quote finds them, in a fraction of its time."""

from __future__ import annotations

import random
import re

from fastckpt.foreign.safetensors_table import _ENTRY, _name_before

EVERY_QUOTE = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\.){1,1000})' + _ENTRY.pattern)
PIECES = (b"a", b"b", b" ", b'"', b'\\"', b"\\\\", b"\\n", b"\\")


def test_as_a_search_that_tries_every_quote() -> None:
    chance = random.Random(0)
    for _ in range(5000):
        parts = []
        for _ in range(chance.randrange(1, 4)):
            name = b"".join(chance.choices(PIECES, k=chance.randrange(6)))
            begin = chance.choice((b'"', b"", b'\\"', b',"'))
            parts.append(begin + name + b'": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}')
        raw = b",".join(parts)
        found = []
        last = 0
        for match in _ENTRY.finditer(raw):
            name_or_none = _name_before(raw, last, match.start())
            if name_or_none is not None:
                found.append(name_or_none)
                last = match.end()
        assert found == [match[1] for match in EVERY_QUOTE.finditer(raw)], raw
