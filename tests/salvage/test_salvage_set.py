"""A checkpoint of torch.distributed.checkpoint with a shard lost, cut or damaged: all other pieces come back."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import fastckpt
import fastckpt.dcp
from fastckpt.cli.main import main
from fastckpt.errors import FastckptError, UsageError
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

ROOT = Path(__file__).resolve().parents[2]
CASES = next((place / "shared/cases" for place in (ROOT, ROOT.parent) if (place / "shared/cases").is_dir()), ROOT)
STEP = Path(os.environ.get("FASTCKPT_CASES", CASES)) / "dcp" / "step-100"
needs_cases = pytest.mark.skipif(not STEP.is_dir(), reason="the folder with inputs of real shapes is not there")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE = {
    "model": {"w": torch.arange(24.0).reshape(6, 4), "b": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {
        "state": {"w": {"step": torch.tensor(5.0), "exp_avg": torch.full((6, 4), 2.0)}},
        "param_groups": [{"lr": 0.1, "params": ["w"]}],
    },
    "epoch": {"seen": torch.arange(3)},
    "names": ["a", "b"],
}


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a state by their names."""
    if not isinstance(state, dict | list):
        return {path[1:]: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {name: leaf for key, item in items for name, leaf in flat(item, f"{path}.{key}").items()}


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are the same, bit for bit."""
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    return (
        a.dtype == b.dtype and a.shape == b.shape and a.view(-1).view(torch.uint8).equal(b.view(-1).view(torch.uint8))
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What torch writes of `STATE`, in one process."""
    dcp.save(STATE, checkpoint_id=str(tmp_path / "step-7"), no_dist=True)
    return tmp_path / "step-7"


@needs_cases
@pytest.mark.parametrize("suffix", ["fckpt", "pt"])
def test_a_rank_is_missing(tmp_path: Path, suffix: str) -> None:
    step = tmp_path / "step"
    shutil.copytree(STEP, step)
    whole = flat(fastckpt.load(step))
    lost_file = sorted(step.glob("*.distcp"))[-1]
    lost_file.unlink()
    report = fastckpt.salvage(step)
    # Each rank had a part of each tensor: none is whole, and of each the rows of the others are proven.
    assert (report.exit_code, report.complete, report.written) == (2, False, [])
    assert "--include partial" in report.next_step
    halves = {name: fate for name, fate in report.tensors.items() if fate.status.value == "partial"}
    assert len(halves) == 5
    assert all(lost_file.name in fate.reason and "[128:256,0:128]" in fate.reason for fate in halves.values())
    assert all(fate.rows_intact == [(0, 128)] for fate in halves.values())
    report = fastckpt.salvage(step, tmp_path / f"left.{suffix}", include=["partial"], durable=False)
    assert (report.exit_code, report.complete) == (3, False)
    assert set(report.written) <= set(halves)
    assert any(name.startswith("model.") for name in report.written)
    left = flat(fastckpt.load(tmp_path / f"left.{suffix}"))
    for name in report.written:
        assert same(left[name][:128], whole[name][:128])
        assert left[name][128:].isnan().all()


@needs_cases
def test_shards_of_two_saves_cannot_be_told_apart_and_that_is_said(tmp_path: Path) -> None:
    report = fastckpt.salvage(STEP, tmp_path / "all.fckpt", durable=False)
    assert report.counts["intact"] == len(report.tensors)
    assert not report.complete
    assert any("of one save" in finding.message for finding in report.findings)
    whole, back = flat(fastckpt.load(STEP)), flat(fastckpt.load(tmp_path / "all.fckpt"))
    assert back.keys() == whole.keys()
    assert all(same(value, whole[name]) for name, value in back.items())


def test_what_is_whole_comes_back_in_any_format(saved: Path, tmp_path: Path) -> None:
    for suffix in ("fckpt", "pt"):
        report = fastckpt.salvage(saved, tmp_path / f"all.{suffix}", durable=False)
        # Nothing proves the manifest, which alone says which of the archives is which tensor.
        assert (report.exit_code, report.complete, report.structure) == (0, False, "whole")
        back = flat(fastckpt.load(tmp_path / f"all.{suffix}"))
        assert back.keys() == flat(STATE).keys()
        assert all(same(value, flat(STATE)[name]) for name, value in back.items())
    assert not list(tmp_path.glob(".fastckpt-*"))


def test_a_manifest_that_names_other_tensors_is_never_complete(saved: Path, tmp_path: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    places = {index.fqn: index for index in metadata.storage_data}
    one, other = places["model.w"], places["optimizer.state.w.exp_avg"]
    data = metadata.storage_data
    data[one], data[other] = data[other], data[one]
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    assert not fastckpt.salvage(saved, tmp_path / "all.fckpt", durable=False).complete
    (report,) = [judge(each, threads=1) for each in recognise(str(saved))]
    assert report.is_whole
    assert not report.is_of_one_save


def test_conjugated_and_negated_tensors_have_their_values(tmp_path: Path) -> None:
    values = torch.randn(6, 4, dtype=torch.complex64)
    state = {"conj": values.conj(), "neg": values.conj().imag, "in": {"list": [values.conj()]}}
    dcp.save(state, checkpoint_id=str(tmp_path / "step"), no_dist=True)
    fastckpt.salvage(tmp_path / "step", tmp_path / "all.fckpt", durable=False)
    back = fastckpt.load(tmp_path / "all.fckpt")
    assert torch.equal(back["conj"], state["conj"])
    assert torch.equal(back["neg"], state["neg"])
    assert torch.equal(back["in"]["list"][0], values.conj())


def test_a_piece_that_moved_into_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    state = {f"w{number}": torch.full((64, 32), float(number)) for number in range(4)}
    dcp.save(state, checkpoint_id=str(tmp_path / "step"), no_dist=True)
    shard = tmp_path / "step" / "__0_0.distcp"
    raw = shard.read_bytes()
    size = len(raw) // 4
    for gone in (1, 512, size - 600, size - 1, size, size + 300, 2 * size - 64):
        shard.write_bytes(raw[:900] + raw[900 + gone :])
        report = fastckpt.salvage(tmp_path / "step", tmp_path / "all.fckpt", durable=False)
        assert not report.complete
        back = fastckpt.load(tmp_path / "all.fckpt") if report.destination else {}
        for name in report.written:
            assert torch.equal(back[name], state[name]) or gone == size, (gone, name)


def _at(saved: Path, tensor: torch.Tensor) -> int:
    return (saved / "__0_0.distcp").read_bytes().index(tensor.numpy().tobytes())


def test_one_flipped_bit_loses_one_tensor(saved: Path, tmp_path: Path) -> None:
    shard = saved / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[_at(saved, STATE["model"]["w"]) + 9] ^= 1
    shard.write_bytes(content)
    report = fastckpt.salvage(saved, tmp_path / "left.fckpt", durable=False)
    assert (report.exit_code, report.complete) == (3, False)
    assert [name for name, fate in report.tensors.items() if fate.status.value != "intact"] == ["model.w"]
    assert "[0:6,0:4]" in report.tensors["model.w"].reason
    left = flat(fastckpt.load(tmp_path / "left.fckpt"))
    assert left.keys() == flat(STATE).keys() - {"model.w"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_shard_gives_what_lies_before_the_cut(saved: Path, tmp_path: Path, share: float) -> None:
    shard = saved / "__0_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * share)])
    report = fastckpt.salvage(saved, tmp_path / "left.fckpt", durable=False)
    assert report.exit_code in (2, 3)
    assert not report.complete
    left = flat(fastckpt.load(tmp_path / "left.fckpt")) if report.destination else {}
    assert all(same(value, flat(STATE)[name]) for name, value in left.items())
    assert share < 0.5 or left


def test_a_lost_object_is_named(saved: Path, tmp_path: Path) -> None:
    shard = saved / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    at = content.index(b"]q") if b"]q" in content else content.index(b"](")
    content[at] ^= 1
    shard.write_bytes(content)
    report = fastckpt.salvage(saved, tmp_path / "left.fckpt", durable=False)
    assert not report.complete
    assert any("is lost" in finding.message and not finding.tensors for finding in report.findings)
    assert report.exit_code == 3


def test_the_names_of_another_step(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "step-8"
    dcp.save(STATE | {"names": ["a", "b", "c"]}, checkpoint_id=str(other), no_dist=True)
    (saved / ".metadata").unlink()
    with pytest.raises(FastckptError) as caught:
        fastckpt.salvage(saved)
    assert "--like" in (caught.value.next_step or "")
    report = fastckpt.salvage(saved, tmp_path / "left.fckpt", like=other, include=["unverified"], durable=False)
    assert set(report.counts) == {"intact", "unverified", "partial", "damaged", "lost"}
    # Nothing but the order of the archives says which tensor is which.
    assert report.counts["unverified"] == len(report.tensors)
    left = flat(fastckpt.load(tmp_path / "left.fckpt"))
    assert all(same(value, flat(STATE)[name]) for name, value in left.items() if isinstance(value, torch.Tensor))
    assert main(["salvage", str(saved), "--like", str(other)]) == 1
    assert "unverified" in capsys.readouterr().out


def test_a_directory_that_is_no_one_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(UsageError):
        fastckpt.salvage(tmp_path)


def test_a_file_that_the_system_does_not_read_is_not_called_missing(saved: Path) -> None:
    shard = saved / "__0_0.distcp"
    shard.unlink()
    os.mkdir(shard)
    report = fastckpt.salvage(saved)
    assert report.exit_code == 2
    assert not report.written


def test_a_manifest_whose_pieces_leave_a_hole(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastckpt.salvaging.set_fragments as module

    read = module.read_metadata

    def with_a_larger_tensor(path: str) -> Any:
        metadata = read(path)
        metadata.tensors["model.b"].shape = (5,)
        return metadata

    monkeypatch.setattr(module, "read_metadata", with_a_larger_tensor)
    report = fastckpt.salvage(saved, tmp_path / "left.fckpt", durable=False)
    assert report.tensors["model.b"].status.value == "lost"
    assert "model.b" not in report.written


# --- our own sets ---------------------------------------------------------------


@pytest.fixture
def own_set(tmp_path: Path) -> Path:
    """What `fastckpt.dcp` writes of `STATE`, in one process."""
    fastckpt.dcp.save(STATE, checkpoint_id=str(tmp_path / "own-7"))
    return tmp_path / "own-7"


def test_a_whole_set_is_of_one_save_by_its_manifest(own_set: Path) -> None:
    (report,) = [judge(found, threads=1) for found in recognise(str(own_set))]
    assert report.is_of_one_save
    (shard,) = own_set.glob("shard-*.fckpt")
    shard.rename(own_set / "shard-0009-00000.fckpt")
    (report,) = [judge(found, threads=1) for found in recognise(str(own_set))]
    assert not report.is_of_one_save


def test_a_whole_set_is_complete(own_set: Path, tmp_path: Path) -> None:
    report = fastckpt.salvage(own_set, tmp_path / "all.fckpt", durable=False)
    assert (report.exit_code, report.complete) == (0, True)
    back = flat(fastckpt.load(tmp_path / "all.fckpt"))
    assert back.keys() == flat(STATE).keys()
    assert all(same(value, flat(STATE)[name]) for name, value in back.items())


def test_a_flipped_bit_in_a_shard(own_set: Path, tmp_path: Path) -> None:
    (shard,) = own_set.glob("shard-*.fckpt")
    content = bytearray(shard.read_bytes())
    content[content.index(STATE["model"]["w"].numpy().tobytes()) + 9] ^= 1
    shard.write_bytes(content)
    report = fastckpt.salvage(own_set, tmp_path / "left.fckpt", durable=False)
    # Small tensors share the leaf that the bit is in.
    assert report.exit_code in (2, 3)
    assert not report.complete
    broken = {name for name, fate in report.tensors.items() if fate.status.value != "intact"}
    assert "model.w" in broken
    left = flat(fastckpt.load(tmp_path / "left.fckpt")) if report.destination else {}
    assert "model.w" not in left
    assert all(same(value, flat(STATE)[name]) for name, value in left.items())


def test_a_shard_of_another_save_gives_nothing(own_set: Path, tmp_path: Path) -> None:
    other = {**STATE, "model": {"w": torch.zeros(6, 4), "b": torch.ones(3, dtype=torch.bfloat16)}}
    fastckpt.dcp.save(other, checkpoint_id=str(tmp_path / "own-8"))
    (shard,), (strange,) = own_set.glob("shard-*.fckpt"), (tmp_path / "own-8").glob("shard-*.fckpt")
    shard.write_bytes(strange.read_bytes())
    report = fastckpt.salvage(own_set, tmp_path / "left.fckpt", durable=False)
    assert report.exit_code == 2
    assert all(fate.status.value == "lost" for fate in report.tensors.values())
    assert "another save" in report.tensors["model.w"].reason


@pytest.mark.parametrize("cut", [0.3, 0.8])
def test_a_cut_shard_is_not_proven_to_be_of_this_save(own_set: Path, tmp_path: Path, cut: float) -> None:
    (shard,) = own_set.glob("shard-*.fckpt")
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * cut)])
    report = fastckpt.salvage(own_set, tmp_path / "left.fckpt", include=["unverified"], durable=False)
    assert not report.complete
    assert report.counts["intact"] == 0
    left = flat(fastckpt.load(tmp_path / "left.fckpt")) if report.destination else {}
    assert all(same(value, flat(STATE)[name]) for name, value in left.items() if isinstance(value, torch.Tensor))
