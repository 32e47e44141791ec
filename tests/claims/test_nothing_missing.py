"""``nothing is missing, and nothing can prove it``: salvage found every tensor, but no checksum for each."""

from __future__ import annotations

from pathlib import Path

from claim_tables import Claim, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from test_present import CLAIM as PRESENT

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "nothing is missing, and nothing can prove it" in tell("salvage", *inputs).text


CLAIM = Claim(
    Verdict.NOTHING_MISSING,
    {"text": by_text},
    PRESENT.true,
    PRESENT.rows,
)
