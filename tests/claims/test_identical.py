"""``identical``: two checkpoints of which every bit was compared, and is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from claim_inputs import PROVEN, module_state, tensors
from claim_pairs import (
    ACROSS,
    WITH_VALUES,
    beside,
    damaged_pair,
    flat_nested,
    metadata_pair,
    namespace,
    nested,
    one_bit,
    ordered,
    other_value,
    pair,
    pairs,
    prefixed,
    sign_of_zero,
    tied,
    too_deep,
    untied,
    with_,
)
from claim_tables import Claim, Make, Row, Tell, made

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("diff", *inputs)
    return any(line.startswith("identical: ") for line in told.text.splitlines())


def by_code(tell: Tell, inputs: list[Path]) -> bool:
    return tell("diff", *inputs).code == 0


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("diff", *inputs, "--json").json.get("same") is True)


CLAIM = Claim(
    Verdict.IDENTICAL,
    {"text": by_text, "code": by_code, "json": by_json},
    {
        **{f"{one} and {other}": pair(tensors, tensors, (one, other)) for one, other in ACROSS},
        "objects": pair(namespace(0.1), namespace(0.1), ("pt", "pt")),
        "values": pair(with_(step=3), with_(step=3), ("pt", "fckpt")),
        "records that nothing refers to": beside(b"ab", b"ab"),
        "and of a converted one": beside(b"ab", b"ab", ("pt", "fckpt")),
    },
    [
        Row(
            "every bit of every tensor is the same",
            {
                **pairs("one bit", tensors, other_value("w", one_bit)),
                **pairs("the sign of a zero", tensors, other_value("small", sign_of_zero)),
            },
        ),
        Row(
            "they have the same tensors, of the same types, under the same names",
            {
                **pairs("a tensor more", tensors, with_(more=torch.ones(1))),
                **pairs("an empty tensor more", tensors, with_(more=torch.empty(0))),
                **pairs("another shape", tensors, other_value("w", lambda tensor: tensor.view(60, 100))),
                **pairs("another type of the same bytes", tensors, other_value("w", lambda t: t.view(torch.int32))),
                **pairs("a prefix", tensors, prefixed("_orig_mod.")),
            },
        ),
        Row(
            "they have the same values",
            {
                **pairs("another value", with_(step=1), with_(step=2), WITH_VALUES),
                **pairs("another type of value", with_(step=1), with_(step=1.0), WITH_VALUES),
                **pairs(
                    "a value that only one can have", with_(step=1), tensors, (("pt", "safetensors"), *WITH_VALUES)
                ),
                **{f"fckpt and {form}: metadata": metadata_pair(form) for form in ("fckpt", "pt", "safetensors")},
                "pt: a value of an object": pair(namespace(0.1), namespace(0.2), ("pt", "pt")),
                "pt and safetensors: an object": pair(namespace(0.1), tensors, ("pt", "safetensors")),
            },
        ),
        Row(
            "they are built in the same way",
            {
                **pairs("nested and flat", nested, flat_nested, WITH_VALUES),
                **pairs("another kind of dict", tensors, ordered, WITH_VALUES),
                **pairs("tied and not", tied, untied, WITH_VALUES),
            },
        ),
        Row(
            "what nothing refers to is the same",
            {
                "pt and pt: one of other bytes": beside(b"ab", b"ac"),
                "pt and fckpt: one of other bytes": beside(b"ab", b"ac", ("pt", "fckpt")),
                "fckpt and pt: only in one": beside(b"ab", None, ("fckpt", "pt")),
                "fckpt and fckpt: only in the other": beside(None, b"ab", ("fckpt", "fckpt")),
            },
        ),
        Row(
            "all of it could be compared",
            {
                "pt and safetensors: nesting": pair(nested, flat_nested, ("pt", "safetensors")),
                "fckpt and safetensors: nesting": pair(nested, flat_nested, ("fckpt", "safetensors")),
                "legacy and safetensors: attributes": pair(module_state, tensors, ("legacy", "safetensors")),
                "pt and safetensors: tied": pair(tied, untied, ("pt", "safetensors")),
                "pt: nested too deep": too_deep,
            },
        ),
        Row("none of it is damaged", {f"{form}: a bit of a tensor": damaged_pair(form) for form in PROVEN}),
    ],
)


def test_it_is_said(true: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(made(CLAIM, true, tmp_path, capsys).values())


def test_it_is_not_said(broken: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not any(made(CLAIM, broken, tmp_path, capsys).values())
