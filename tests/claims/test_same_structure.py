"""``same structure``: all that can be compared without reading the bytes of tensors is the same."""

from __future__ import annotations

from pathlib import Path

import torch
from claim_inputs import module_state, tensors
from claim_pairs import (
    ACROSS,
    WITH_VALUES,
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
    tied,
    untied,
    with_,
)
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return any(
        line.startswith("same structure: ") for line in tell("diff", *inputs, "--structure-only").text.splitlines()
    )


CLAIM = Claim(
    Verdict.SAME_STRUCTURE,
    {"text": by_text},
    {f"{one} and {other}": pair(tensors, other_value("w", one_bit), (one, other)) for one, other in ACROSS},
    [
        Row(
            "they have the same tensors, of the same types, under the same names",
            {
                **pairs("a tensor more", tensors, with_(more=torch.ones(1))),
                **pairs("another shape", tensors, other_value("w", lambda tensor: tensor.view(60, 100))),
                **pairs("another type", tensors, other_value("w", lambda tensor: tensor.half())),
                **pairs("a prefix", tensors, prefixed("module.")),
            },
        ),
        Row(
            "they have the same values",
            {
                **pairs("another value", with_(step=1), with_(step=2), WITH_VALUES),
                **pairs(
                    "a value that only one can have", with_(step=1), tensors, (("pt", "safetensors"), *WITH_VALUES)
                ),
                **{f"fckpt and {form}: metadata": metadata_pair(form) for form in ("fckpt", "pt", "safetensors")},
                "pt: a value of an object": pair(namespace(0.1), namespace(0.2), ("pt", "pt")),
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
            "all of it could be compared",
            {
                "pt and safetensors: nesting": pair(nested, flat_nested, ("pt", "safetensors")),
                "legacy and safetensors: attributes": pair(module_state, tensors, ("legacy", "safetensors")),
                "fckpt and safetensors: tied": pair(tied, untied, ("fckpt", "safetensors")),
            },
        ),
    ],
)
