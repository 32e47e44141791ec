"""``exact way back kept``: converting back gives the source, byte for byte."""

from __future__ import annotations

from pathlib import Path

from claim_inputs import changed, cut_half, flip_near, flip_tensor, good, tensors, write
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

SOURCES = ("pt", "legacy", "no CRC", "safetensors")
PREFIX = "module."


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    own = inputs[0].parent / "own.fckpt"
    said = "exact way back kept" in tell("convert", inputs[0], own, *_options(inputs)).text
    if said:  # Then it is.
        fastckpt.convert(own, inputs[0].parent / f"back{inputs[0].suffix}", durable=False)
        assert (inputs[0].parent / f"back{inputs[0].suffix}").read_bytes() == inputs[0].read_bytes()
    return said


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("convert", inputs[0], inputs[0].parent / "json.fckpt", *_options(inputs), "--json")
    return any(file["exact"] for file in told.json.get("files", []))


def _options(inputs: list[Path]) -> list[str]:
    """Options of the command are given as further inputs."""
    return [str(word) for word in inputs[1:]]


def with_options(form: str, *options: str) -> Make:
    def make(directory: Path) -> list[Path]:
        state = {f"{PREFIX}{name}": tensor for name, tensor in tensors().items()}
        return [write(state, form, directory), *map(Path, options)]

    return make


CLAIM = Claim(
    Verdict.WAY_BACK,
    {"text": by_text, "json": by_json},
    {form: good(form) for form in SOURCES},
    [
        Row("it was wanted", {f"{form}: --no-exact": with_options(form, "--no-exact") for form in SOURCES}),
        Row(
            "what was written is what the source holds",
            {f"{form}: --strip-prefix": with_options(form, f"--strip-prefix={PREFIX}") for form in SOURCES},
        ),
        Row(
            "the source is not damaged",
            {
                "pt: a bit of a tensor": changed("pt", flip_tensor),
                "pt: a bit of the pickle": changed("pt", flip_near(b"storage")),
                "legacy: half is gone": changed("legacy", cut_half),
                "safetensors: half is gone": changed("safetensors", cut_half),
            },
        ),
    ],
)
