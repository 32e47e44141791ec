"""``nothing wrong``: training goes on from what is there, as far as its files tell; with ``--deep``, every byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from claim_steps import (
    FORMS,
    broken_number,
    change,
    cut,
    delete,
    delete_meta,
    flip,
    in_both,
    other_sizes,
    prefixed,
    replace,
    run_with,
    swap,
)
from claim_tables import Claim, Row, Tell, teller
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "nothing wrong; " in tell("doctor", *inputs, "--deep").text


def by_code(tell: Tell, inputs: list[Path]) -> bool:
    return tell("doctor", *inputs, "--deep").code == 0


def cut_meta(directory: Path, form: str) -> None:
    path = directory / "meta_000008.json"
    path.write_text(path.read_text()[:200])


CLAIM = Claim(
    Verdict.NOTHING_WRONG,
    {"text": by_text, "code": by_code},
    {form: run_with(form) for form in FORMS},
    [
        Row(
            "all files of its steps are there",
            {
                **in_both("no model", delete("model_000008")),
                **in_both("a rank less", delete("optim_000008_rank1")),
                **in_both("no meta", delete_meta),
            },
        ),
        Row(
            "none of them is damaged",
            {
                **in_both("a bit of the model", change("model_000008", flip)),
                **in_both("a bit of a rank", change("optim_000008_rank1", flip)),
                **in_both("the model is cut", change("model_000008", cut)),
                **in_both("meta is cut", cut_meta),
            },
        ),
        Row(
            "they are of one save, each in its own place",
            {
                **in_both("two ranks are swapped", swap("optim_000008_rank0", "optim_000008_rank1")),
                **in_both("a rank of another step", replace("optim_000008_rank1", "optim_000004_rank1")),
                **in_both("a rank twice", replace("optim_000008_rank1", "optim_000008_rank0")),
            },
        ),
        Row(
            "nanochat's own model takes it",
            {**in_both("a prefix", prefixed), **in_both("meta of another model", other_sizes)},
        ),
        Row(
            "its numbers are numbers",
            in_both("a NaN", broken_number)
            | {
                "pt: zeros for moments": run_with("pt", lambda directory, form: _zero_moments(directory)),
            },
        ),
    ],
)


def _zero_moments(directory: Path) -> None:
    for rank in range(2):
        path = directory / f"optim_000008_rank{rank}.pt"
        state = torch.load(path)
        for moments in state["state"].values():
            for value in moments.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
        torch.save(state, path)


@pytest.mark.parametrize("form", FORMS)
def test_without_deep_it_says_what_it_looked_at(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell = teller(capsys)
    inputs = run_with(form)(tmp_path / "whole")
    looked = "nothing wrong; no NaN or infinity in the first 16.4 kB of each tensor; --deep would read every byte"
    assert looked in tell("doctor", *inputs).text
    inputs = in_both("a NaN", broken_number)[f"{form}: a NaN"](tmp_path / "broken")
    told = tell("doctor", *inputs)
    assert "nothing wrong" not in told.text
    assert "lm_head.weight" in told.text
    assert told.code
