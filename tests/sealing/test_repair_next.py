"""Whoever tells of damage names `fastckpt repair` where that heals the file, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from doctor_builds import write_step

import fastckpt
from fastckpt.cli.main import main
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path

FORMS = ("safetensors", "pt", "fckpt")


def flip(path: Path, *offsets: int) -> None:
    raw = bytearray(path.read_bytes())
    for offset in offsets:
        raw[offset] ^= 1
    path.write_bytes(raw)


@pytest.fixture(params=FORMS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sealed file of one group of leaves, of which two are damaged."""
    path = tmp_path / f"m.{request.param}"
    write = {"safetensors": safetensors.torch.save_file, "pt": torch.save, "fckpt": fastckpt.save}[request.param]
    write({"a": torch.randn(50_000), "b": torch.randn(20_000)}, path)
    fastckpt.seal(path, parity="10%")
    flip(path, 60_000, 110_000)
    return path


def said(path: Path) -> list[str]:
    """What each of them says to do next."""
    return [str(fastckpt.verify(path).next_step), str(check(path).next_step), str(fastckpt.salvage(path).next_step)]


def test_it_is_named(path: Path) -> None:
    assert all(text.startswith(f"fastckpt repair {path}") for text in said(path))
    assert fastckpt.repair(path).state == "healed"
    assert not any("repair" in text for text in said(path))
    assert fastckpt.verify(path).verdict == "intact"


def test_it_is_not_named_where_it_does_not_help(path: Path) -> None:
    flip(path, 20_000, 40_000, 80_000)
    assert not any("repair" in text for text in said(path))


def test_without_parity(path: Path) -> None:
    assert fastckpt.repair(path).state == "healed"
    Path(sums_path(path)).unlink()
    fastckpt.seal(path)
    flip(path, 60_000)
    assert not any("repair" in text for text in said(path))


def test_a_salvage_that_writes_says_so(path: Path) -> None:
    report = fastckpt.salvage(path, path.with_name(f"rescued{path.suffix}"))
    assert any(f"fastckpt repair {path}" in note for note in report.notes)


def test_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(bytes(100_000))
    fastckpt.seal(path, parity="3%")
    flip(path, 5)
    assert main(["verify", str(path)]) == 2
    assert f"fastckpt repair {path}" in capsys.readouterr().out


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def examined() -> list[dict[str, Any]]:
        capsys.readouterr()
        main(["doctor", str(tmp_path / "d4"), "--json"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return [one for one in findings if one["path"] == str(model)]

    write_step(tmp_path / "d4", 10)
    model = tmp_path / "d4" / "model_000010.pt"
    fastckpt.seal(model, parity="10%")
    raw = model.read_bytes()
    model.write_bytes(raw[: len(raw) - 700])
    (found,) = examined()
    assert found["next"] == f"fastckpt repair {model}"
    assert not found["loss"]
    assert fastckpt.repair(model).state == "healed"
    assert not examined()
