"""``digest as signed; signature not checked``: SHA-256 of a file is the one that the model.sig beside it states."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from claim_inputs import tensors, write
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

sys.path.append(str(Path(__file__).parents[1] / "sealing"))
from signatures import envelope, sign, statement

FORMS = ("safetensors", "pt", "fckpt")


def signed(form: str, change: Callable[[Path], object] | None = None) -> Make:
    """A file that was sealed, then signed, and what was done to it."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        fastckpt.seal(path, durable=False)
        sign(directory, path.name)
        if change is not None:
            change(path)
        return [path]

    return make


def in_all(what: str, change: Callable[[Path], object]) -> dict[str, Make]:
    return {f"{form}: {what}": signed(form, change) for form in FORMS}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def anew(path: Path) -> None:
    """Written and sealed anew, and not signed."""
    write(tensors(3), path.suffix[1:], path.parent, path.stem)
    fastckpt.seal(path, update=True, durable=False)


def signed_as(said: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (path.parent / "model.sig").write_text(json.dumps(said(path)))


def of_other(path: Path) -> None:
    (path.parent / "other").write_text("x")
    sign(path.parent, "other")


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "digest as signed; signature not checked" in tell("seal", "--check", *inputs).text


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    (file,) = tell("seal", "--check", *inputs, "--json").json["files"]
    return bool(file["signed"])


CLAIM = Claim(
    Verdict.AS_SIGNED,
    {"text": by_text, "json": by_json},
    {form: signed(form) for form in FORMS},
    [
        Row("its SHA-256 is the one that is stated", {**in_all("a bit", flip), **in_all("sealed anew", anew)}),
        Row(
            "that is stated of this file",
            {
                **in_all("no signature", lambda path: (path.parent / "model.sig").unlink()),
                **in_all("the signature of another file", of_other),
                **in_all(
                    "another digest", signed_as(lambda p: envelope(statement(p.parent, [p.name], algorithm="b2")))
                ),
            },
        ),
        Row(
            "the signature can be read",
            {
                **in_all("nothing in it", lambda path: (path.parent / "model.sig").write_text("")),
                **in_all("no statement", signed_as(lambda path: envelope([]))),
                **in_all("no envelope", signed_as(lambda path: statement(path.parent, [path.name]))),
            },
        ),
    ],
)
