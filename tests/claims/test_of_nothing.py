"""Sentences about nothing: where there are no tensors, or no bytes of them, no command promises anything of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from claim_inputs import PROVEN, SUFFIX, UNPROVEN, write
from claim_tables import teller

import fastckpt

STATES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "plain values": {"step": 3, "names": ["a", "b"]},
    "a tensor without elements": {"w": torch.empty(0, 4)},
}
CASES = [
    (form, what) for form in (*PROVEN, *UNPROVEN) for what in STATES if form != "safetensors" or what != "plain values"
]
FALSE = (
    "every bit",
    "source verified",
    "nothing can prove it",
    "every byte matches",
    "CRC-32 of every storage",
    "B/s",
    "identical: 0",
    "0 of 0",
)
"""What would be said of bytes and tensors that are not there."""


@pytest.mark.parametrize(("form", "what"), CASES)
def test_nothing_is_promised(form: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(STATES[what], form, tmp_path)
    tell = teller(capsys)
    told = tell("inspect", path).text + tell("diff", path, path).text + tell("doctor", path).text
    if "tensor" not in what:
        told += tell("salvage", path).text
    for suffix in {"fckpt", "pt", "safetensors"} - {SUFFIX[form]}:
        told += tell("convert", path, tmp_path / f"converted.{suffix}").text
    allowed = {"every bit"} if "tensor" in what else set()
    assert [sentence for sentence in FALSE if sentence in told and sentence not in allowed] == []
    assert "no tensor data to verify" in told
    if "tensor" not in what:
        assert "there are no tensors in it, and no damage was found" in told
        assert "identical: no tensors, and the same plain values" in told


@pytest.mark.parametrize("to", ["fckpt", "pt", "safetensors"])
@pytest.mark.parametrize(("form", "what"), [case for case in CASES if "tensor" not in case[1]])
def test_salvage_writes_what_there_is(
    form: str, what: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said to be written is written, and holds all that is not a tensor, or says that it does not."""
    path, out = write(STATES[what], form, tmp_path), tmp_path / f"rescued.{to}"
    told = teller(capsys)("salvage", path, "-o", out)
    assert told.code == 0
    assert "no tensors, and all besides" in told.text
    complete = to != "safetensors" or what == "nothing"
    assert ("(complete)" in told.text) == complete
    assert fastckpt.load(out) == (STATES[what] if complete else {})


def test_damage_around_plain_values_is_got_around(tmp_path: Path) -> None:
    path = write(STATES["plain values"], "fckpt", tmp_path)
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    report = fastckpt.salvage(path, tmp_path / "rescued.fckpt")
    assert (report.exit_code, report.complete) == (1, True)
    assert fastckpt.load(tmp_path / "rescued.fckpt") == STATES["plain values"]


@pytest.mark.parametrize("form", ["no CRC", "legacy", "safetensors"])
def test_files_without_checksums_have_none(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("nothing", "a tensor without elements"):
        path = write(STATES[what], form, tmp_path)
        assert json.loads(teller(capsys)("inspect", path, "--json").text)["checksums"] == "none"
        told = teller(capsys)("doctor", path, "--deep").text
        assert "no checksum proves all of 1 of 1 files" in told
