"""``healed: every byte as sealed``: what is under the name that is shown is, byte for byte, what was sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from claim_inputs import Change, tensors, write
from claim_tables import Claim, Make, Row, Tell, each_with_its_own
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.verdicts import Verdict

FORMS = ("pt", "safetensors", "fckpt", "legacy")


def sealed(
    form: str, change: Change | None = None, *, also: Callable[[Path], object] | None = None, parity: str | None = "10%"
) -> Make:
    """A file with parity, and what was done to it."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        fastckpt.seal(path, parity=parity, durable=False)
        if change is not None:
            raw = bytearray(path.read_bytes())
            result = change(raw)
            path.write_bytes(raw if result is None else result)
        if also is not None:
            also(path)
        return [path]

    return make


def each(what: str, change: Change | None, **options: object) -> dict[str, Make]:
    return {f"{form}: {what}": sealed(form, change, **options) for form in FORMS}  # type: ignore[arg-type]


def flip(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 1


def three_leaves(raw: bytearray) -> None:
    raw[100:40_000:16_384] = b"xyz"
    raw[0] ^= 1


def zeros_in_front(raw: bytearray) -> bytes:
    return bytes(5) + raw


def nothing_left(raw: bytearray) -> bytes:
    return b""


def parity_gone(path: Path) -> None:
    """All but the ends of the sums file, in which its structure is."""
    beside = Path(f"{path}.fckpt-sums")
    raw = bytearray(beside.read_bytes())
    raw[12_288:-20_480] = bytes(len(raw) - 32_768)
    beside.write_bytes(raw)


def no_seal(path: Path) -> None:
    Path(f"{path}.fckpt-sums").unlink()


def cut_seal(path: Path) -> None:
    beside = Path(f"{path}.fckpt-sums")
    beside.write_bytes(beside.read_bytes()[:5000])


def seal_of_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(100_000))
    fastckpt.seal(other, parity="10%", durable=False)
    Path(f"{other}.fckpt-sums").replace(f"{path}.fckpt-sums")


def flip_in_seal(path: Path) -> None:
    beside = Path(f"{path}.fckpt-sums")
    raw = bytearray(beside.read_bytes())
    raw[len(raw) // 2] ^= 1
    beside.write_bytes(raw)


def with_parity_inside(form: str, seal: Callable[[Path], object] | None = None) -> Make:
    """A file that heals by itself, whatever its seal says."""

    def make(directory: Path) -> list[Path]:
        codec = "none" if form == "fckpt" else form
        path = directory / "s.fckpt"
        fastckpt.save(tensors(), path, codec=codec, parity="10%", parity_at="inside", durable=False)
        if seal is not None:
            seal(path)
        raw = bytearray(path.read_bytes())
        flip(raw)
        path.write_bytes(raw)
        return [path]

    return make


def sealed_before(path: Path) -> None:
    """The seal is of a save that was there before."""
    good = path.read_bytes()
    fastckpt.save(tensors(1), path, durable=False)
    fastckpt.seal(path, parity="10%", durable=False)
    path.write_bytes(good)


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "healed: every byte as sealed" in tell("repair", *inputs).text


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    other = inputs[0].with_name("output")
    return bool(tell("repair", *inputs, "-o", other, "--json").json.get("verdict") == "healed: every byte as sealed")


def by_json_in_place(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("repair", "--in-place", *inputs, "--json").json.get("verdict") == "healed: every byte as sealed")


CLAIM = Claim(
    Verdict.HEALED,
    each_with_its_own({"text": by_text, "json": by_json, "in place": by_json_in_place}),
    {**{form: sealed(form, flip) for form in FORMS}, "both": sealed("pt", flip, also=flip_in_seal)},
    [
        Row(
            "every leaf came back",
            {
                **each("three leaves of one group", three_leaves),
                **each("bytes were put in in front", zeros_in_front),
                **each("nothing is left", nothing_left),
                **each("the seal has no parity", flip, parity=None),
                **each("the parity is damaged", flip, also=parity_gone),
            },
        ),
        Row(
            "the seal tells what was sealed",
            {
                **each("there is none", flip, also=no_seal),
                **each("it is cut", flip, also=cut_seal),
                **each("it is of another file", flip, also=seal_of_another),
            },
        ),
        Row(
            "the seal is what it was healed by",
            {
                f"{form}: {what}": with_parity_inside(form, seal)
                for form in ("fckpt", "planes", "zstd")
                for what, seal in {
                    "there is none": None,
                    "it is of a save before": sealed_before,
                    "it is of another file": seal_of_another,
                }.items()
            },
        ),
        Row(
            "something was wrong",
            {
                **each("nothing was", None),
                **each("all is as it was", lambda raw: None),
            },
        ),
    ],
)
