"""``OK``: every byte of a file is the one that was sealed, none is missing and none was added."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from claim_inputs import (
    Change,
    append,
    beside,
    cut_end,
    cut_half,
    flip_tensor,
    prepend,
    sealed,
    swap_tensors,
    tensors,
    write,
)
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

FORMS = ("pt", "legacy", "no CRC", "safetensors", "fckpt", "zstd", "planes")


def json_sealed(change: str | None = None) -> Make:
    def make(directory: Path) -> list[Path]:
        path = directory / "config.json"
        path.write_text('{"a": 1}')
        fastckpt.seal(path, durable=False)
        if change is not None:
            path.write_text(change)
        return [path]

    return make


def empty_sealed(directory: Path) -> list[Path]:
    (directory / "empty").write_bytes(b"")
    fastckpt.seal(directory / "empty", durable=False)
    return [directory / "empty"]


def each_sealed(forms: tuple[str, ...], what: str, change: Change) -> dict[str, Make]:
    return {f"{form}: {what}": sealed(form, change) for form in forms}


def other_file(path: Path) -> None:
    """Another file of the same format under this name."""
    kept = path.with_name("kept")
    os.replace(path, kept)
    form = {".pt": "pt", ".safetensors": "safetensors", ".fckpt": "fckpt"}[path.suffix]
    write({name: tensor + 1 for name, tensor in tensors(5).items()}, form, path.parent, path.stem)
    kept.unlink()


def other_name(path: Path) -> None:
    """The file and its seal are there under another name, too, and swapped in its place."""
    other = path.with_name(f"other{path.suffix}")
    shutil.copyfile(path, other)
    fastckpt.seal(other, durable=False)
    os.replace(beside(other), beside(path))
    other.unlink()


def flip_sums(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = bytearray(beside(path).read_bytes())
        raw[at] ^= 1
        beside(path).write_bytes(raw)

    return damage


def digests_of(path: Path) -> int:
    """Where in the sums file the digests stand."""
    with fastckpt.open(beside(path)) as sums:
        return beside(path).read_bytes().find(bytes(sums["digests"].tolist()))


def flip_digest(path: Path) -> None:
    flip_sums(digests_of(path))(path)


def no_seal(path: Path) -> None:
    beside(path).unlink()


def not_a_seal(path: Path) -> None:
    beside(path).unlink()
    fastckpt.save(tensors(), beside(path), durable=False)


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("seal", "--check", *inputs)
    return f"{inputs[0]}: OK" in told.text and told.code == 0


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    (file,) = tell("seal", "--check", *inputs, "--json").json["files"]
    return bool(file["state"] == "OK")


def by_directory(tell: Tell, inputs: list[Path]) -> bool:
    return f"{inputs[0]}: OK" in tell("seal", "--check", inputs[0].parent).text


CLAIM = Claim(
    Verdict.AS_SEALED,
    {"text": by_text, "json": by_json, "directory": by_directory},
    {**{form: sealed(form) for form in FORMS}, "json": json_sealed(), "empty": empty_sealed},
    [
        Row(
            "every byte is the one that was sealed",
            {
                **each_sealed(FORMS, "a bit of a tensor", flip_tensor),
                **each_sealed(FORMS, "the first bit", lambda raw: raw.__setitem__(0, raw[0] ^ 1)),
                **each_sealed(FORMS, "the last bit", lambda raw: raw.__setitem__(-1, raw[-1] ^ 128)),
                **each_sealed(("pt", "safetensors", "fckpt"), "two tensors swapped", swap_tensors),
                "json: a character": json_sealed('{"a": 2}'),
            },
        ),
        Row(
            "none is missing",
            {
                **each_sealed(FORMS, "half of it", cut_half),
                **each_sealed(FORMS, "the last byte", cut_end),
                "json: all": json_sealed(""),
            },
        ),
        Row(
            "none was added",
            {
                **each_sealed(FORMS, "bytes behind it", append),
                **each_sealed(FORMS, "a zero behind it", lambda raw: bytes(raw) + b"\0"),
                **each_sealed(FORMS, "bytes in front of it", prepend),
            },
        ),
        Row(
            "it is the file of that name that was sealed",
            {
                **{f"{form}: another one": sealed(form, also=other_file) for form in ("pt", "safetensors", "fckpt")},
                **{f"{form}: the seal of another name": sealed(form, also=other_name) for form in FORMS},
            },
        ),
        Row(
            "its seal is there, and all of that is proven",
            {
                **{f"{form}: no seal": sealed(form, also=no_seal) for form in FORMS},
                **{f"{form}: something else": sealed(form, also=not_a_seal) for form in ("pt", "safetensors")},
                "safetensors: a wrong digest in it": sealed("safetensors", also=flip_digest),
                "pt: a wrong digest in it": sealed("pt", also=flip_digest),
                "pt: its end": sealed("pt", also=flip_sums(-100)),
            },
        ),
    ],
)
