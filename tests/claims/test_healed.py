"""``healed: every byte as sealed``: what is under the name that is shown is, byte for byte, what was sealed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from claim_inputs import Change, tensors, write
from claim_tables import Claim, Make, Row, Tell
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


def inside(change: Change | None) -> Make:
    """A file with parity inside, and what was done to it."""

    def make(directory: Path) -> list[Path]:
        path = directory / "s.fckpt"
        fastckpt.save(tensors(), path, parity="10%", parity_at="inside", durable=False)
        if change is not None:
            raw = bytearray(path.read_bytes())
            result = change(raw)
            path.write_bytes(raw if result is None else result)
        return [path]

    return make


def digests_gone(raw: bytearray) -> None:
    """Both copies of the only page, and a bit."""
    for page in re.finditer(b"FCKPTPDG", bytes(raw)):
        raw[page.start() : page.start() + 64] = bytes(64)
    raw[20_000] ^= 1


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    return "healed: every byte as sealed" in tell("repair", *inputs).text


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    other = inputs[0].with_name("output")
    return bool(tell("repair", *inputs, "-o", other, "--json").json.get("verdict") == "healed: every byte as sealed")


def by_json_in_place(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("repair", "--in-place", *inputs, "--json").json.get("state") == "healed")


def make_each_its_own(ask: Callable[[Tell, list[Path]], bool]) -> Callable[[Tell, list[Path]], bool]:
    """Asking heals: the next way of asking gets the damaged file again."""

    def asked(tell: Tell, inputs: list[Path]) -> bool:
        before = {path: path.read_bytes() for path in inputs[0].parent.iterdir()}
        said = ask(tell, inputs)
        for path in inputs[0].parent.iterdir():
            path.unlink()
        for path, raw in before.items():
            path.write_bytes(raw)
        return said

    return asked


CLAIM = Claim(
    Verdict.HEALED,
    {
        name: make_each_its_own(ask)
        for name, ask in {"text": by_text, "json": by_json, "in place": by_json_in_place}.items()
    },
    {**{form: sealed(form, flip) for form in FORMS}, "both": sealed("pt", flip, also=flip_in_seal)}
    | {"inside": inside(flip), "inside: the end is gone": inside(lambda raw: raw[:-9000])},
    [
        Row(
            "every leaf came back",
            {
                **each("three leaves of one group", three_leaves),
                "inside: three leaves of one group": inside(three_leaves),
                "inside: the parity is gone, too": inside(lambda raw: raw[100:2000] + raw[:-70_000]),
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
                "inside: no digest is left": inside(digests_gone),
            },
        ),
        Row(
            "something was wrong",
            {
                "inside: nothing was": inside(None),
                **each("nothing was", None),
                **each("all is as it was", lambda raw: None),
            },
        ),
    ],
)
