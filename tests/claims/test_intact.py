"""``intact``: a checksum proves every byte of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from claim_inputs import (
    PROVEN,
    UNPROVEN,
    append,
    beside,
    changed,
    consistently,
    copied_record,
    cut_end,
    cut_half,
    cut_tensor,
    each,
    flip_at,
    flip_near,
    flip_object,
    flip_tensor,
    good,
    prepend,
    sealed,
    swap_tensors,
    tensors,
    torn_mix,
    with_objects,
    without_record,
    write,
    zero_tensor,
)
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from zip_surgery import swap_contents, swap_names

from fastckpt.verdicts import Verdict


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("verify", *inputs)
    return "intact: " in told.text and told.code == 0


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("verify", *inputs, "--json").json.get("verdict") == "intact")


def by_sum(tell: Tell, inputs: list[Path]) -> bool:
    return "1 intact" in tell("verify", inputs[0].parent).text


def by_plot(tell: Tell, inputs: list[Path]) -> bool:
    return "intact: " in tell("plot", *inputs, "--text").text


def no_tensors(directory: Path) -> list[Path]:
    safetensors.torch.save_file({}, directory / "none.safetensors")
    return [directory / "none.safetensors"]


def no_bytes(directory: Path) -> list[Path]:
    torch.save({"empty": torch.empty(0)}, directory / "l.pt", _use_new_zipfile_serialization=False)
    return [directory / "l.pt"]


def two_archives(directory: Path) -> list[Path]:
    with open(directory / "two.pt", "wb") as file:
        for value in (1.0, 2.0):
            torch.save({"w": torch.full((9,), value)}, file)
    return [directory / "two.pt"]


def second_archive_flipped(directory: Path) -> list[Path]:
    (path,) = two_archives(directory)
    raw = bytearray(path.read_bytes())
    raw[raw.find(torch.full((9,), 2.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(raw)
    return [path]


def written_anew(form: str) -> Callable[[Path], None]:
    """Another save of the same structure, and with the size, that nobody sealed."""
    return lambda path: write(tensors(9), form, path.parent, path.stem) and None


def cut_seal(path: Path) -> None:
    beside(path).write_bytes(beside(path).read_bytes()[:-5])


ELSEWHERE: dict[str, Make] = {
    "pt: a bit of the pickle": changed("pt", flip_near(b"storage")),
    "pt: a bit of the version": changed("pt", flip_near(b"3\n")),
    "pt: a bit of the directory": changed("pt", flip_near(b"PK\x01\x02", 30)),
    "pt: a bit between two records": changed("pt", flip_near(b"FB", 6)),
    "fckpt: a bit of the manifest": changed("fckpt", flip_near(b"small")),
    "fckpt: a bit of the superblock": changed("fckpt", lambda raw: raw.__setitem__(3000, 1)),
    "zstd: a bit of the end": changed("zstd", lambda raw: raw.__setitem__(len(raw) - 3000, 1)),
    "planes: a bit of the end": changed("planes", lambda raw: raw.__setitem__(len(raw) - 3000, 1)),
}

CLAIM = Claim(
    Verdict.INTACT,
    {"text": by_text, "json": by_json, "sum": by_sum, "plot": by_plot},
    {
        **{form: good(form) for form in PROVEN},
        **{f"{form}, sealed": sealed(form) for form in (*PROVEN, *UNPROVEN)},
        "pt with objects": good("pt", with_objects),
        "two archives": two_archives,
    },
    [
        Row(
            "every byte of a tensor is the one that was written",
            {
                **each(PROVEN, "a bit of a tensor", flip_tensor),
                **each(("pt", "fckpt"), "a sector of zeros", zero_tensor),
                "pt: a bit below an object": changed("pt", flip_object, with_objects),
                "pt: a bit in the second archive": second_archive_flipped,
            },
        ),
        Row("so is every other byte", ELSEWHERE),
        Row(
            "nothing is missing",
            {
                **each((*PROVEN, *UNPROVEN), "half of it", cut_half),
                **each(PROVEN, "its last byte", cut_end),
                **each(("pt", "fckpt", "safetensors"), "the end of a tensor", cut_tensor),
                "pt: a record": without_record("pt", "data/1"),
            },
        ),
        Row(
            "every byte belongs to it",
            {
                **each((*PROVEN, *UNPROVEN), "bytes behind it", append),
                **each(PROVEN, "bytes in front of it", prepend),
            },
        ),
        Row(
            "there is a checksum for every byte",
            {
                **{f"{form}: has none": good(form) for form in UNPROVEN},
                "safetensors: without tensors": no_tensors,
                "legacy: without bytes of tensors": no_bytes,
            },
        ),
        Row(
            "where there is a seal, every byte is as it was sealed",
            {
                **{f"{form}: a bit of a tensor": sealed(form, flip_tensor) for form in UNPROVEN},
                **{f"{form}: its first bit": sealed(form, lambda raw: flip_at(raw, 0)) for form in UNPROVEN},
                **{
                    f"{form}: two tensors swapped": sealed(form, swap_tensors)
                    for form in ("safetensors", "pt", "fckpt")
                },
                **{f"{form}: its last byte": sealed(form, cut_end) for form in (*UNPROVEN, *PROVEN)},
                **{f"{form}: bytes behind it": sealed(form, append) for form in (*UNPROVEN, *PROVEN)},
                **{f"{form}: written anew": sealed(form, also=written_anew(form)) for form in (*UNPROVEN, *PROVEN)},
                **{f"{form}: its seal is cut": sealed(form, also=cut_seal) for form in (*UNPROVEN, *PROVEN)},
            },
        ),
        Row(
            "every byte is in its own place",
            {
                "pt: two tensors swapped": changed("pt", swap_tensors),
                "pt: two tensors swapped, and their checksums": consistently(swap_contents),
                "pt: the names of two tensors swapped": consistently(swap_names),
                "fckpt: two tensors swapped": changed("fckpt", swap_tensors),
                "pt: a record copied over another": copied_record("pt"),
                "fckpt: a record copied over another": copied_record("fckpt"),
                "pt: a mix of two saves": torn_mix("pt"),
                "fckpt: a mix of two saves": torn_mix("fckpt"),
            },
        ),
    ],
)
