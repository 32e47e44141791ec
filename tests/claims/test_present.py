"""``present``: every byte that the format names is there, but nothing proves them all, or that they are of one save."""

from __future__ import annotations

from pathlib import Path

from claim_inputs import (
    PROVEN,
    UNPROVEN,
    append,
    changed,
    consistently,
    cut_half,
    cut_tensor,
    each,
    flip_near,
    flip_tensor,
    good,
    prepend,
    safetensors_with,
    zeros_near,
)
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from zip_surgery import swap_contents, swap_names

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("verify", *inputs)
    return "present: " in told.text and told.code == 0


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("verify", *inputs, "--json").json.get("verdict") == "present")


def by_sum(tell: Tell, inputs: list[Path]) -> bool:
    return "1 present but unproven" in tell("verify", inputs[0].parent).text


def by_plot(tell: Tell, inputs: list[Path]) -> bool:
    return "present: " in tell("plot", *inputs, "--text").text


CLAIM = Claim(
    Verdict.PRESENT,
    {"text": by_text, "json": by_json, "sum": by_sum, "plot": by_plot},
    {
        **{form: good(form) for form in UNPROVEN},
        "pt with two tensors swapped, and their checksums": consistently(swap_contents),
        "pt with the names of two tensors swapped": consistently(swap_names),
    },
    [
        Row(
            "every byte is there", each(UNPROVEN, "half of it", cut_half) | each(UNPROVEN, "a tensor's end", cut_tensor)
        ),
        Row(
            "no byte is there besides", each(UNPROVEN, "bytes behind it", append) | each(UNPROVEN, "in front", prepend)
        ),
        Row(
            "its structure can be read and does not contradict itself",
            {
                "safetensors: two tensors overlap": safetensors_with(
                    lambda fields: fields["v"].update(data_offsets=fields["w"]["data_offsets"])
                ),
                "safetensors: a hole": safetensors_with(lambda fields: fields.pop("v")),
                "safetensors: no JSON": changed("safetensors", flip_near(b"{")),
                "legacy: the pickle": changed("legacy", zeros_near(b"_rebuild_tensor_v2\n")),
                "no CRC: a name of the directory": changed("no CRC", flip_near(b"data.pklP", 1)),
                "no CRC: the pickle": changed("no CRC", zeros_near(b"_rebuild_tensor_v2\n")),
            },
        ),
        Row("nothing else proves it: then it is more than present", {f"{form}: whole": good(form) for form in PROVEN}),
        Row("no checksum that there is says otherwise", each(PROVEN, "a bit of a tensor", flip_tensor)),
    ],
)
