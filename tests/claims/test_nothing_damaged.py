"""``nothing is damaged``: salvage found every tensor, and a checksum for each that matches."""

from __future__ import annotations

from pathlib import Path

from claim_inputs import PROVEN, UNPROVEN, good
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from test_intact import CLAIM as INTACT

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "nothing is damaged" in tell("salvage", *inputs).text


CLAIM = Claim(
    Verdict.NOTHING_DAMAGED,
    {"text": by_text},
    {form: good(form) for form in PROVEN},
    # What salvage calls undamaged is intact.
    [*INTACT.rows, Row("there is a checksum for every tensor", {f"{form}: whole": good(form) for form in UNPROVEN})],
)
