"""What a ``meta_*.json`` says, also one that is cut."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.nanochat.meta import made_anew, parse_meta, read_meta_bytes


@dataclass(slots=True)
class MetaFacts:
    """A meta file.

    Attributes:
        path: The file.
        values: What it holds; empty if it cannot be read.
        fault: What is wrong with it, if it does not hold what a meta file holds.
        unread: Why the system did not let it be read, if so: then nothing is known about it.
        not_json: ``name is Infinity`` for values that are not finite, which JSON has no word for.
        whole_until: Of a cut file: how many bytes hold whole entries.
        whole_values: Of a cut file: those entries.
    """

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    unread: CheckpointIOError | None = None
    not_json: list[str] = field(default_factory=list)
    whole_until: int = 0
    whole_values: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name."""
        return os.path.basename(self.path)

    @property
    def step(self) -> int | None:
        """The step it was written for; meta of reinforcement learning has none."""
        step = self.values.get("step")
        return step if type(step) is int else None

    @property
    def made_anew(self) -> list[str]:
        """Which of its entries are not those of a save, if it says so."""
        return made_anew(self.values)

    def section(self, key: str) -> dict[str, Any]:
        """A dict inside it, or inside what is whole of it; empty if there is none."""
        value = (self.values or self.whole_values).get(key)
        return value if isinstance(value, dict) else {}


def read_meta_facts(path: str) -> MetaFacts:
    """The facts of a meta file, whatever is in it."""
    facts = MetaFacts(path)
    raw = b""
    try:
        raw = read_meta_bytes(path)
        values = parse_meta(raw, path)
    except CheckpointIOError as error:
        facts.unread = error
        return facts
    except DamagedError as error:
        facts.fault = error.message
        facts.whole_until, facts.whole_values = _whole_part(raw)
        return facts
    if not isinstance(values, dict):
        facts.fault = "it does not hold a dict"
        return facts
    facts.values = values
    facts.not_json = list(_not_finite(values, ""))
    return facts


def _not_finite(value: Any, name: str, depth: int = 0) -> list[str]:
    if isinstance(value, float):
        return [] if math.isfinite(value) else [f"{name} is a bare {json.dumps(value)}"]
    if depth > 8 or not isinstance(value, dict):
        return []
    return [found for key, item in value.items() for found in _not_finite(item, f"{name}.{key}".strip("."), depth + 1)]


def _whole_part(raw: bytes) -> tuple[int, dict[str, Any]]:
    """The longest beginning of a cut file that ``}`` makes whole, and what it holds then.

    nanochat indents by two, so an entry of the outermost dict ends where ``,``
    is followed by a line break, two spaces and a quotation mark; the last one
    where a dict in it ends.
    """
    end = len(raw.rstrip())
    if not raw.endswith(b"\n  }", 0, end):
        end = raw.rfind(b',\n  "')
    while end > 0:
        try:
            values = json.loads(raw[:end].decode("utf-8") + "\n}")
        except (ValueError, RecursionError):
            end = raw.rfind(b',\n  "', 0, end)
            continue
        return (end, values) if isinstance(values, dict) else (0, {})
    return 0, {}
