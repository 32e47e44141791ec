"""Every row of the cases' README has a test; those that need more than a command and its exit code are here."""

from __future__ import annotations

import fnmatch
import random
import re
from pathlib import Path

import numpy
import pytest
import torch
from test_cases import CASES, _files, same_bits

import fastckpt
from fastckpt.cli.main import main

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder shared/cases is not here")

ELSEWHERE = {
    "faults/replaced_*.py": "loading/test_one_door.py::test_a_file_replaced_meanwhile_gives_the_state_it_had",
    "faults/convert_swapped_native.sh": "nanochat/test_nanochat_swapped.py::test_swapped_ranks_of_either_format",
    "faults/warm_probe.py": "io/test_residency.py::test_asked_twice_a_cold_file_is_still_cold",
    "faults/plot_hang.py": "damage/hostile_files.py::storage-2e62.pt",
}
"""Scripts that are written anew where their room is, and not run."""


def named() -> list[str]:
    """What the first column of the table names."""
    found: list[str] = []
    for cell in re.findall(r"^\| ([^|]+) \|", (CASES / "README.md").read_text(), re.MULTILINE)[1:]:
        place = ""
        for word in re.split(r",\s*", cell):
            name = word.split()[0]
            # Only the first of several names has its directory.
            place = name.rpartition("/")[0] if "/" in name else place
            found.append(name if "/" in name else f"{place}/{name}")
    return found


@pytest.mark.parametrize("case", named() if CASES.is_dir() else ())
def test_each_row_has_a_test(case: str) -> None:
    if case in ELSEWHERE:
        module, _, test = ELSEWHERE[case].partition("::")
        assert test in (TESTS / module).read_text()
        return
    written = "".join(path.read_text() for path in (TESTS / "cases").glob("test_*.py"))
    tried = [*_files(), *re.findall(r"[\w./-]+", written)]
    wanted = case.removeprefix("faults/")
    assert any(fnmatch.fnmatch(name, wanted) or name.startswith(f"{wanted}/") for name in tried), case


@pytest.mark.parametrize("name", ["pl_plain.ckpt", "pl_omega.ckpt", "ds_like.pt"])
def test_weights_load_strictly(name: str) -> None:
    part = "module" if name == "ds_like.pt" else "state_dict"
    theirs = torch.load(CASES / "pt" / name, weights_only=name == "pl_plain.ckpt") if "omega" not in name else None
    ours = fastckpt.load(CASES / "pt" / name, opaque="keep")[part]
    assert ours
    assert all(type(tensor) is torch.Tensor for tensor in ours.values())
    if theirs is not None:
        assert ours.keys() == theirs[part].keys()
        assert all(same_bits(ours[key], theirs[part][key]) for key in ours)


def test_states_of_random_number_generators_are_usable() -> None:
    state = fastckpt.load(CASES / "pt/hf_rng_state.pt")
    random.Random().setstate(state["python"])
    numpy.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["cpu"])


def test_tensors_in_objects_are_seen_verified_and_salvaged(tmp_path: Path) -> None:
    path = CASES / "pt/in_objects.pt"
    theirs = dict(fastckpt.stream(path))
    assert len(theirs) == 6
    assert fastckpt.verify(path).tensors_total in (None, 6)
    for suffix in ("pt", "fckpt"):
        report = fastckpt.salvage(path, tmp_path / f"out.{suffix}")
        assert len(report.written) == 6
        ours = dict(fastckpt.stream(tmp_path / f"out.{suffix}"))
        assert all(any(same_bits(tensor, other) for other in ours.values()) for tensor in theirs.values())
    raw = path.read_bytes()
    for tensor in theirs.values():
        changed = bytearray(raw)
        changed[raw.index(tensor.numpy().tobytes())] ^= 1
        (tmp_path / "flipped.pt").write_bytes(changed)
        assert not fastckpt.verify(tmp_path / "flipped.pt").ok


@pytest.mark.parametrize("suffix", ["pt", "fckpt", "safetensors"])
@pytest.mark.parametrize("name", ["d_fsdp2", "yolo"])
def test_what_is_salvaged_is_never_empty_and_complete(name: str, suffix: str, tmp_path: Path) -> None:
    whole = CASES / "pt" / ("yolo_whole.pt" if name == "yolo" else "d_fsdp2.pt")
    report = fastckpt.salvage(CASES / f"pt/{name}_flip.pt", tmp_path / f"out.{suffix}")
    assert (report.exit_code, report.complete) == (3, False)
    expected = dict(fastckpt.stream(whole))
    found = dict(fastckpt.stream(tmp_path / f"out.{suffix}"))
    same = [key for key in expected if key in found and same_bits(found[key], expected[key])]
    assert len(same) == len(expected) - 1


def test_a_distributed_checkpoint_becomes_one_file(tmp_path: Path) -> None:
    assert main(["convert", str(CASES / "dcp/step-100"), str(tmp_path / "one.fckpt")]) == 0
    found = dict(fastckpt.stream(tmp_path / "one.fckpt"))
    assert len(found) == 6
    assert fastckpt.verify(tmp_path / "one.fckpt").ok


@pytest.mark.parametrize("name", ["rank_missing", "no_metadata", "meta_torn"])
def test_what_is_there_of_a_distributed_checkpoint_is_salvaged(name: str, tmp_path: Path) -> None:
    files = sorted((CASES / "dcp" / name).glob("*.distcp"))
    assert files
    for file in files:
        report = fastckpt.salvage(file, tmp_path / f"{file.stem}.fckpt")
        assert report.exit_code == 0
        assert len(report.written) == len(report.tensors)
        assert report.tensors


def test_the_whole_tensors_before_a_cut_come_back(tmp_path: Path) -> None:
    report = fastckpt.salvage(CASES / "dcp/damaged/cut60.distcp", tmp_path / "out.fckpt")
    assert not report.complete
    raw = (CASES / "dcp/damaged/cut60.distcp").read_bytes()
    found = dict(fastckpt.stream(tmp_path / "out.fckpt"))
    assert len(found) == 3
    assert all(tensor.numpy().tobytes() in raw for tensor in found.values())
