"""``healed: every byte as saved``: what is under the name that is shown is, byte for byte, what was saved."""

from __future__ import annotations

import re
from pathlib import Path

from claim_inputs import Change, tensors, write
from claim_tables import Claim, Make, Row, Tell, each_with_its_own
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

CODECS = {"fckpt": "none", "planes": "planes", "zstd": "zstd"}


def saved(form: str, change: Change | None = None, *, seal: bool = False, parity: str | None = "10%") -> Make:
    """A file with parity inside, and what was done to it; with ``seal``, beside one of a save that was there before."""

    def make(directory: Path) -> list[Path]:
        path = directory / "s.fckpt"
        if seal:
            fastckpt.save(tensors(1), path, durable=False)
            fastckpt.seal(path, durable=False)
        fastckpt.save(tensors(), path, codec=CODECS[form], parity=parity, parity_at="inside", durable=False)
        if change is not None:
            raw = bytearray(path.read_bytes())
            result = change(raw)
            path.write_bytes(raw if result is None else result)
        return [path]

    return make


def each(what: str, change: Change | None, **options: object) -> dict[str, Make]:
    return {f"{form}: {what}": saved(form, change, **options) for form in CODECS}  # type: ignore[arg-type]


def sealed(form: str) -> Make:
    """A file that a seal heals."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        fastckpt.seal(path, parity="10%", durable=False)
        raw = bytearray(path.read_bytes())
        flip(raw)
        path.write_bytes(raw)
        return [path]

    return make


def flip(raw: bytearray) -> None:
    raw[13_000] ^= 1


def first_leaf(raw: bytearray) -> None:
    raw[:16_384] = bytes(16_384)


def all_leaves(raw: bytearray) -> bytes:
    """All that is covered, and the parity."""
    return raw[100:2000] + raw[:-70_000]


def digests_gone(raw: bytearray) -> None:
    """Both copies of the only page, and a bit."""
    for page in re.finditer(b"FCKPTPDG", bytes(raw)):
        raw[page.start() : page.start() + 64] = bytes(64)
    flip(raw)


def parity_gone(raw: bytearray) -> None:
    """Every leaf of parity, and a bit."""
    first, last = (page.start() for page in re.finditer(b"FCKPTPDG", bytes(raw)))
    raw[first + 4096 : last] = bytes(last - first - 4096)
    flip(raw)


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "healed: every byte as saved" in tell("repair", *inputs).text


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    other = inputs[0].with_name("output")
    return bool(tell("repair", *inputs, "-o", other, "--json").json.get("verdict") == "healed: every byte as saved")


def by_json_in_place(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("repair", "--in-place", *inputs, "--json").json.get("verdict") == "healed: every byte as saved")


CLAIM = Claim(
    Verdict.HEALED_INSIDE,
    each_with_its_own({"text": by_text, "json": by_json, "in place": by_json_in_place}),
    {
        **each("a bit", flip),
        **each("the first leaf", first_leaf),
        **each("the end is gone", lambda raw: raw[:-9000]),
    },
    [
        Row(
            "every leaf came back",
            {
                **each("nearly all is lost", all_leaves),
                **each("the parity is gone, too", parity_gone),
                **each("bytes were put in in front", lambda raw: bytes(5) + raw),
                **each("nothing is left", lambda raw: b""),
                **each("there is no parity", flip, parity=None),
            },
        ),
        Row("the digests beside the parity are left", each("none is", digests_gone)),
        Row(
            "it is what it was healed by",
            {f"{form}: a seal heals it": sealed(form) for form in ("fckpt", "zstd", "pt")},
        ),
        Row("something was wrong", {**each("nothing was", None), **each("nothing but its seal", None, seal=True)}),
    ],
)
