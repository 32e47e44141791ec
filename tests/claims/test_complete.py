"""``complete``: nothing of the file is missing in what was salvaged, and no byte of it is known to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from claim_inputs import (
    PROVEN,
    UNPROVEN,
    changed,
    consistently,
    copied_record,
    cut_end,
    cut_half,
    cut_tensor,
    each,
    flip_near,
    flip_object,
    flip_tensor,
    good,
    module_state,
    swap_tensors,
    tensors,
    torn_mix,
    with_objects,
    write,
    zero_tensor,
)
from claim_tables import Ask, Claim, Row, Tell, teller
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from states import assert_same
from zip_surgery import swap_contents, swap_names

import fastckpt
from fastckpt.cli.main import main
from fastckpt.verdicts import Verdict


def to(suffix: str, *options: str, as_json: bool = False) -> Ask:
    """Salvage to a file, and what is then said of it."""

    def ask(tell: Tell, inputs: list[Path]) -> bool:
        words = ["salvage", *inputs, "-o", inputs[0].parent / f"result.{suffix}", *options]
        if as_json:
            return bool(tell(*words, "--json").json.get("complete") is True)
        return "(complete)" in tell(*words).text

    return ask


def directory_cut(raw: bytearray) -> bytes:
    return raw[: raw.rfind(b"PK\x01\x02")]


def superblock(raw: bytearray) -> None:
    raw[100] ^= 1


CLAIM = Claim(
    Verdict.COMPLETE,
    {
        "to .pt": to("pt"),
        "to .pt, JSON": to("pt", as_json=True),
        "all to .pt": to("pt", "--include", "partial,damaged"),
        "to .fckpt": to("fckpt"),
        "to .fckpt, JSON": to("fckpt", as_json=True),
        "to .safetensors": to("safetensors"),
        "to .safetensors, JSON": to("safetensors", as_json=True),
    },
    {
        "pt without its directory": changed("pt", directory_cut),
        "fckpt without its end": changed("fckpt", cut_end),
        "zstd with a damaged superblock": changed("zstd", superblock),
        "planes with a damaged superblock": changed("planes", superblock),
        "fckpt with a damaged superblock": changed("fckpt", superblock),
    },
    [
        Row(
            "every tensor is in it, whole",
            {
                **each(PROVEN, "a bit of a tensor", flip_tensor),
                **each(("pt", "fckpt"), "a sector of zeros", zero_tensor),
                **each((*PROVEN, *UNPROVEN), "half of it is gone", cut_half),
                **each(("pt", "fckpt", "safetensors"), "the end of a tensor is gone", cut_tensor),
            },
        ),
        Row("what nothing proves is asked for", {f"{form}: whole": good(form) for form in UNPROVEN}),
        Row(
            "no tensor stands in the place of another",
            {
                "pt: two tensors swapped": changed("pt", swap_tensors),
                "pt: two tensors swapped, and their checksums": consistently(swap_contents),
                "pt: the names of two tensors swapped": consistently(swap_names),
                "pt: a record copied over another": copied_record("pt"),
                "fckpt: a record copied over another": copied_record("fckpt"),
                "fckpt: a mix of two saves": torn_mix("fckpt"),
                "pt: a mix of two saves": torn_mix("pt"),
            },
        ),
        Row(
            "so is what is not understood",
            {
                "pt: a bit below an object": changed("pt", flip_object, with_objects),
                "pt: an object, and a cut": changed("pt", cut_half, with_objects),
                "no CRC: an object": good("no CRC", with_objects),
                "legacy: an object": good("legacy", with_objects),
                "pt: a bit of the pickle": changed("pt", flip_near(b"storage"), with_objects),
            },
        ),
    ],
)


W = torch.arange(5_000.0)
NOT_IN_SAFETENSORS: dict[str, tuple[Any, str]] = {
    "a plain value": ({"w": W, "step": 3}, "as JSON: 1 plain value (step)"),
    "a value that is no JSON": ({"w": W, "raw": b"x"}, "left out, which a .safetensors cannot hold: state['raw']"),
    "another dtype": ({"w": W, "z": torch.ones(3, dtype=torch.complex128)}, "cannot hold: z: complex128"),
    "ties": ({"w": W, "head": W}, "written once: head is w"),
    "a part of a storage": ({"w": W[5:50]}, "shared or larger, and written each for itself: w"),
    "overlapping views": ({"w": W, "v": W[5:50]}, "shared or larger, and written each for itself: w, v"),
    "strides": ({"w": W.view(50, 100).t()}, "written contiguous: w"),
    "requires_grad": ({"w": W.clone().requires_grad_()}, "written as a plain tensor: w"),
    "a Parameter": ({"w": torch.nn.Parameter(W)}, "written as a plain tensor: w"),
    "a nesting": ({"model": {"w": W}}, "flat by name: state['model']['w']"),
    "a list": ([W], "flat by name: state[0]"),
    "attributes of a dict": (module_state(), "as JSON: 1 plain value (__dict__)"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", PROVEN)
@pytest.mark.parametrize("what", NOT_IN_SAFETENSORS)
def test_what_a_safetensors_cannot_hold(
    what: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said by both that write one, and what is said is true: loaded again, it is not the state."""
    state, note = NOT_IN_SAFETENSORS[what]
    path = write(state, form, tmp_path)
    out, converted = tmp_path / "rescued.safetensors", tmp_path / "converted.safetensors"
    main(["salvage", str(path), "-o", str(out)])
    told = capsys.readouterr().out
    assert note in told
    assert "(complete)" not in told
    main(["convert", str(path), str(converted)])
    assert note in capsys.readouterr().out
    rescued = fastckpt.load(out)
    with pytest.raises(AssertionError):
        assert_same(rescued, fastckpt.load(path))
    assert_same(rescued, fastckpt.load(converted))


@pytest.mark.parametrize("form", PROVEN)
def test_what_it_can_hold_comes_back(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tensors(), form, tmp_path)
    assert to("safetensors", as_json=True)(teller(capsys), [path])
    loaded = fastckpt.load(tmp_path / "result.safetensors")
    assert_same({name: loaded.pop(name) for name in tensors()}, fastckpt.load(path))
    assert not loaded


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_metadata_that_the_format_has_no_place_for(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastckpt.save(tensors(), tmp_path / "a.fckpt", metadata={"run": 7}, durable=False)
    for destination in ("fckpt", suffix):
        main(["salvage", str(tmp_path / "a.fckpt"), "-o", str(tmp_path / f"b.{destination}")])
        told = capsys.readouterr().out
        assert ("(complete)" in told) == (destination == "fckpt")
        assert any("note: " in line and "metadata" in line for line in told.splitlines()) == (destination != "fckpt")


def test_what_is_not_there_at_all_is_a_part(tmp_path: Path) -> None:
    torch.save({"w": W, "raw": b"x"}, tmp_path / "a.pt")
    assert fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.safetensors").exit_code == 3
    torch.save({"model": {"w": W}}, tmp_path / "a.pt")
    assert fastckpt.salvage(tmp_path / "a.pt", tmp_path / "b.safetensors").exit_code == 0
