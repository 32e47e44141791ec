"""``source verified``: every byte of a tensor that was converted was proven by a checksum of the source."""

from __future__ import annotations

from pathlib import Path

from claim_inputs import (
    PROVEN,
    UNPROVEN,
    changed,
    cut_half,
    cut_tensor,
    each,
    flip_tensor,
    good,
    zero_tensor,
)
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "source verified" in tell("convert", *inputs, *_target(inputs)).text


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    files = tell("convert", *inputs, *_target(inputs), "--json").json.get("files", [])
    return any(file["source_verified"] for file in files)


def _target(inputs: list[Path]) -> list[str]:
    own = inputs[0].suffix == ".fckpt"
    return [str(inputs[0].parent / f"result.{'pt' if own else 'fckpt'}")]


def some_without(raw: bytearray) -> None:
    """The CRC of one record, in its descriptor and in the directory, is 0: not computed."""
    at = raw.find(b"PK\x07\x08", raw.find(b"data/1"))
    crc = raw[at + 4 : at + 8]
    raw[at + 4 : at + 8] = bytes(4)
    place = raw.find(crc, at)
    raw[place : place + 4] = bytes(4)


CLAIM = Claim(
    Verdict.SOURCE_VERIFIED,
    {"text": by_text, "json": by_json},
    {form: good(form) for form in PROVEN},
    [
        Row(
            "the source has a checksum for every tensor",
            {f"{form}: has none": good(form) for form in UNPROVEN} | {"pt: one has none": changed("pt", some_without)},
        ),
        Row(
            "they match",
            each(PROVEN, "a bit of a tensor", flip_tensor) | each(("pt", "fckpt"), "a sector of zeros", zero_tensor),
        ),
        Row("all of it is there", each(PROVEN, "half is gone", cut_half) | each(("pt", "fckpt"), "an end", cut_tensor)),
    ],
)
