"""``verified``: what was written was read back, and its checksums match."""

from __future__ import annotations

from pathlib import Path

from claim_steps import FORMS, change, cut, delete, flip, in_both, replace, run_with, swap
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

from fastckpt.verdicts import Verdict


def by_backup(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("backup", *inputs, inputs[0].parent / "copy", "--step", "8")
    return ", verified in " in told.text


def by_reshard(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("reshard", *inputs, "--step", "8", "--world-size", "1")
    return ", verified, " in told.text


CLAIM = Claim(
    Verdict.VERIFIED,
    {"backup": by_backup, "reshard": by_reshard},
    {form: run_with(form) for form in FORMS},
    [
        Row(
            "there is something to read",
            {
                **in_both("no model", delete("model_000008")),
                **in_both("a rank less", delete("optim_000008_rank1")),
            },
        ),
        Row(
            "it was not damaged before",
            {
                **in_both("a bit of a rank", change("optim_000008_rank1", flip)),
                **in_both("a rank is cut", change("optim_000008_rank1", cut)),
                **in_both("a bit of the model", change("model_000008", flip)),
            },
        ),
        Row(
            "it is what its name says",
            {
                **in_both("two ranks are swapped", swap("optim_000008_rank0", "optim_000008_rank1")),
                **in_both("a rank of another step", replace("optim_000008_rank1", "optim_000004_rank1")),
                **in_both("a rank twice", replace("optim_000008_rank1", "optim_000008_rank0")),
            },
        ),
    ],
)
