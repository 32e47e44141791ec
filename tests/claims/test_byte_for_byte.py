"""``the original file, byte for byte``: what was written is the file that the .fckpt was made from."""

from __future__ import annotations

from pathlib import Path

from claim_inputs import SUFFIX, Change, flip_tensor, tensors, write
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

SOURCES = ("pt", "legacy", "no CRC", "safetensors")


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("convert", *_words(inputs))
    said = "the original file, byte for byte" in told.text
    if said:  # Then it is.
        assert _result(inputs).read_bytes() == (inputs[0].parent / "original").read_bytes()
    return said


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return any(file["exact"] for file in tell("convert", *_words(inputs), "--json").json.get("files", []))


def _result(inputs: list[Path]) -> Path:
    return inputs[0].parent / f"back{inputs[1].suffix}"


def _words(inputs: list[Path]) -> list[str]:
    """Back to a file like the second input."""
    return [str(inputs[0]), str(_result(inputs))]


def way(form: str, *, exact: bool = True, back: str | None = None, change: Change | None = None) -> Make:
    """A .fckpt made from a file, and the suffix that it is to go back to."""

    def make(directory: Path) -> list[Path]:
        source = write(tensors(), form, directory)
        own = directory / "own.fckpt"
        fastckpt.convert(source, own, exact=exact, durable=False)
        (directory / "original").write_bytes(source.read_bytes())
        if change is not None:
            raw = bytearray(own.read_bytes())
            change(raw)
            own.write_bytes(raw)
        return [own, directory / f"x.{back or SUFFIX[form]}"]

    return make


def saved(suffix: str) -> Make:
    """A .fckpt that was never another file."""
    return lambda directory: [write(tensors(), "fckpt", directory), directory / f"x.{suffix}"]


def source_section(raw: bytearray) -> None:
    """A bit of what is kept of the original, which is compressed."""
    raw[raw.rfind(b"\x28\xb5\x2f\xfd") + 12] ^= 1


CLAIM = Claim(
    Verdict.BYTE_FOR_BYTE,
    {"text": by_text, "json": by_json},
    {form: way(form) for form in SOURCES},
    [
        Row("the way back was kept", {f"{form}: --no-exact": way(form, exact=False) for form in SOURCES}),
        Row(
            "it was a file of this format",
            {
                "pt to safetensors": way("pt", back="safetensors"),
                "legacy to safetensors": way("legacy", back="safetensors"),
                "safetensors to pt": way("safetensors", back="pt"),
                "saved, to pt": saved("pt"),
                "saved, to safetensors": saved("safetensors"),
            },
        ),
        Row("no tensor is damaged", {f"{form}: a bit": way(form, change=flip_tensor) for form in SOURCES}),
        Row("what is kept is not damaged", {f"{form}: a bit": way(form, change=source_section) for form in SOURCES}),
    ],
)
