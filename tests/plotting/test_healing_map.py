"""`fastckpt plot` of a damaged, sealed file: which of its bytes the parity in its seal brings back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch

import fastckpt
from fastckpt.cli.main import main
from fastckpt.constants import LEAF_SIZE
from fastckpt.plotting.page import file_page
from fastckpt.plotting.survey import measure_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """240 leaves in four groups."""
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({name: torch.ones(982_000, dtype=torch.uint8) for name in "abcd"}, path)
    fastckpt.seal(path, parity="3%", durable=False)
    return path


def spoil(path: Path, *leaves: int) -> None:
    raw = bytearray(path.read_bytes())
    for leaf in leaves:
        raw[leaf * LEAF_SIZE + 500] ^= 1
    path.write_bytes(raw)


def test_what_heals_and_what_does_not(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(path, 2, 6, 7, 10, 101)  # Three of group 2; one of 3 and one of 1.
    facts = measure_file(str(path))
    healing = facts["healing"]
    assert healing is not None
    assert (healing["lost"], healing["heal"]) == (5, 2)
    assert [run.state for run in healing["runs"]] == [
        "intact", "lost", "intact", "lost", "heals", "intact", "lost", "intact", "heals", "intact"
    ]  # fmt: skip
    bad = [(run.place, run.tensors) for run in healing["runs"] if run.state == "heals"]
    assert bad == [("bytes 114688-131071", ("a",)), ("bytes 1654784-1671167", ("b",))]
    assert sum(run.nbytes for run in healing["runs"]) == path.stat().st_size
    page = ElementTree.fromstring(file_page(facts))
    drawn = Counter(str(shape.get("class")) for shape in page.iter() if "chunk heals" in str(shape.get("class")))
    assert drawn["chunk heals"] == 2
    words = "".join(page.itertext())
    assert "Its parity heals 2 of 5 lost leaves." in words
    assert "bytes 114688-131071: comes back by parity: a" in words
    assert "bytes 32768-49151: more damage than parity: a" in words
    assert main(["plot", str(path), "--text"]) is not None
    assert "its parity heals 2 of 5 lost leaves" in capsys.readouterr().out


def test_a_cut_is_drawn_as_it_was(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 100_000])
    healing = measure_file(str(path))["healing"]
    assert healing is not None
    assert [run.state for run in healing["runs"]] == ["intact", "heals"]
    assert sum(run.nbytes for run in healing["runs"]) == size


def test_without_damage_or_parity_there_is_none(path: Path) -> None:
    assert measure_file(str(path))["healing"] is None
    fastckpt.seal(path, update=True, durable=False)
    Path(f"{path}.fckpt-sums").unlink()
    fastckpt.seal(path, durable=False)
    spoil(path, 2)
    assert measure_file(str(path))["healing"] is None
    Path(f"{path}.fckpt-sums").unlink()
    assert measure_file(str(path))["healing"] is None
