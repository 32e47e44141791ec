"""Optimizer shards for another number of ranks: bit for bit what those ranks would have saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_builds import write_step
from nanochat_finders import contents
from nanochat_ranks import FORMS, META, STEP, current, model, optim, whole_state, write_ranks
from states import assert_same

import fastckpt
import fastckpt.nanochat
from fastckpt.cli.main import main
from fastckpt.nanochat import reshard
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.steps import read_steps

REAL = Path(__file__).parents[2] / "../shared/checkpoints"

needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real checkpoints are not here")

WAYS = [(4, 1), (1, 4), (4, 2), (2, 8), (8, 2), (1, 2), (2, 1), (8, 32)]
"""Groups of 3, 20, 5 and 5 matrices: with 8 ranks and more, some have nothing but zeros."""


@pytest.mark.sampled(5)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("before", "after"), WAYS)
def test_what_the_other_ranks_would_have_saved(tmp_path: Path, form: str, before: int, after: int) -> None:
    source = write_ranks(tmp_path / "from", before, form)
    original = contents(source)
    done = reshard(source, tmp_path / "to", step=STEP, world_size=after)
    assert (done.form, done.ranks_before, done.ranks) == (form, before, after)
    expected = contents(write_ranks(tmp_path / "expected", after, form))
    assert contents(tmp_path / "to").keys() == expected.keys()
    for rank in range(after):
        made = torch.load(tmp_path / "to" / optim(rank))
        assert_same(made, FORMS[form](whole_state(), rank, after))
    # Even the files: names of the zip, order, pickle.
    assert contents(tmp_path / "to") == expected
    assert contents(source) == original
    note = "torchrun" if after == 1 and form != "MuonAdamW" else ""
    assert note in " ".join(done.notes)


@needs_real_files
@pytest.mark.parametrize("by_way_of", [1, 2, 8])
def test_a_real_run_there_and_back(tmp_path: Path, by_way_of: int) -> None:
    source = REAL / "base_checkpoints/d4_w4"
    reshard(source, tmp_path / "there", step=4, world_size=by_way_of)
    reshard(tmp_path / "there", tmp_path / "back", step=4, world_size=4)
    assert contents(tmp_path / "back") == contents(source)


@needs_real_files
def test_a_real_run_of_one_rank(tmp_path: Path) -> None:
    source = REAL / "base_checkpoints/d4"
    reshard(source, tmp_path / "two", step=4, world_size=2)
    reshard(tmp_path / "two", tmp_path / "back", step=4, world_size=1)
    assert contents(tmp_path / "back") == contents(source)


def test_marked_step_stays_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fastckpt.nanochat saved says who saved it; the new files say so for the new ranks."""
    whole, source = whole_state(), tmp_path / "from"
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in (1, 2, 3, 0):
        fastckpt.nanochat.save_checkpoint(source, STEP, model(), current(whole, rank, 4), META, rank=rank)
    for target, in_place in ((tmp_path / "to", False), (source, True)):
        done = reshard(source, None if in_place else target, step=STEP, world_size=2)
        monkeypatch.setenv("WORLD_SIZE", "2")
        state = step_state(read_steps(str(target))[STEP], verify=True)
        assert (state.complete, state.verified, state.world_size, state.suffix) == (True, True, 2, ".fckpt")
        assert state.reasons == ()
        for rank in range(2):
            data, optimizer, meta = fastckpt.nanochat.load_checkpoint(target, STEP, "cpu", True, rank)
            assert_same(optimizer, current(whole, rank, 2))
            assert_same(data, model())
            assert meta == META
        assert {Path(path).name for path in done.files} >= {optim(0, "fckpt"), optim(1, "fckpt")}
        assert len(read_steps(str(target))[STEP].states) == 3


@pytest.mark.parametrize(("codec", "other"), [("zstd", "zstd:3"), ("planes", "planes")])
def test_converted_step(tmp_path: Path, codec: str, other: str) -> None:
    """A .fckpt made of a .pt carries no mark; codecs go both ways."""
    source = write_ranks(tmp_path / "from", 4)
    fastckpt.convert(source, replace=True, codec=codec)
    reshard(source, tmp_path / "one", step=STEP, world_size=1, codec=other)
    assert_same(fastckpt.load(tmp_path / "one" / optim(0, "fckpt")), current(whole_state(), 0, 1))
    data, optimizer, _ = fastckpt.nanochat.load_checkpoint(tmp_path / "one", STEP, "cpu", True, 0)
    assert_same(optimizer, current(whole_state(), 0, 1))
    assert_same(data, model())
    reshard(tmp_path / "one", tmp_path / "back", step=STEP, world_size=4)
    for rank in range(4):
        assert_same(fastckpt.load(tmp_path / "back" / optim(rank, "fckpt")), current(whole_state(), rank, 4))
    assert step_state(read_steps(str(tmp_path / "back"))[STEP], verify=True).complete


def test_partial_optimizer_stays_partial(tmp_path: Path) -> None:
    """Salvage may leave a parameter without state, which is legal for nanochat: no state is made up for it."""
    optimizers: dict[int | None, Any] = {}
    for world, into in ((4, "from"), (2, "expected")):
        for rank in range(world):
            optimizers[rank] = current(whole_state(), rank, world)
            del optimizers[rank]["state"][0]
            del optimizers[rank]["state"][next(reversed(optimizers[rank]["state"]))]
        write_step(tmp_path / into, STEP, model(), {rank: optimizers[rank] for rank in range(world)}, META)
    reshard(tmp_path / "from", tmp_path / "to", step=STEP, world_size=2)
    assert contents(tmp_path / "to") == contents(tmp_path / "expected")


def test_in_place(tmp_path: Path) -> None:
    directory = write_ranks(tmp_path / "d12", 4)
    (directory / "unrelated.txt").write_text("kept")
    expected = contents(write_ranks(tmp_path / "expected", 2)) | {"unrelated.txt": b"kept"}
    done = reshard(directory, step=STEP, world_size=2)
    assert contents(directory) == expected
    assert [p.name for p in directory.iterdir() if p.name.startswith(".")] == []
    assert [Path(path).name for path in done.removed] == [optim(2), optim(3)]
    assert reshard(directory, step=STEP, world_size=2).files == ()
    assert contents(directory) == expected


def test_both_formats(tmp_path: Path) -> None:
    """After a conversion without --replace; no file is deleted whose content was not looked at."""
    directory = write_ranks(tmp_path / "d12", 4)
    fastckpt.convert(directory)
    before = contents(directory)
    with pytest.raises(fastckpt.errors.UsageError, match="further rank files"):
        reshard(directory, step=STEP, world_size=2)
    assert contents(directory) == before
    reshard(directory, tmp_path / "to", step=STEP, world_size=2)
    assert_same(fastckpt.load(tmp_path / "to" / optim(1, "fckpt")), current(whole_state(), 1, 2))


def change_state(directory: Path, rank: int, change: Any) -> None:
    """Save a rank anew, with something changed in it."""
    state = torch.load(directory / optim(rank))
    change(state)
    torch.save(state, directory / optim(rank))


def swap(directory: Path) -> None:
    (directory / optim(0)).rename(directory / "kept")
    (directory / optim(1)).rename(directory / optim(0))
    (directory / "kept").rename(directory / optim(1))


def add_row(directory: Path) -> None:
    def change(state: Any) -> None:
        state["state"][1]["exp_avg"] = torch.zeros(33, 32, dtype=torch.bfloat16)

    change_state(directory, 2, change)


def small_parameter(directory: Path) -> None:
    def change(state: Any) -> None:
        state["state"][5]["exp_avg"][1] += 1

    change_state(directory, 3, change)


def row_of_nobody(directory: Path) -> None:
    def change(state: Any) -> None:
        number = max(state["state"])
        state["state"][number]["momentum_buffer"][-1, 0, 0] = 1e-30

    change_state(directory, 3, change)


def other_model(directory: Path) -> None:
    state = model()
    state.pop("transformer.h.0.mlp.c_fc.weight")
    torch.save(state, directory / f"model_{STEP:06d}.pt")


def unknown_parameter(directory: Path) -> None:
    torch.save({**model(), "bigram_embed.embed.weight": torch.zeros(64, 32)}, directory / f"model_{STEP:06d}.pt")


def other_step(directory: Path) -> None:
    def change(state: Any) -> None:
        for held in state["state"].values():
            if "step" in held:
                held["step"] += 2

    change_state(directory, 1, change)


def flip(directory: Path) -> None:
    data = bytearray((directory / optim(1)).read_bytes())
    data[len(data) // 2] ^= 4
    (directory / optim(1)).write_bytes(data)


def lose_a_moment(directory: Path) -> None:
    change_state(directory, 1, lambda state: state["state"][0].pop("exp_avg_sq"))


def third_moment(directory: Path) -> None:
    def change(state: Any) -> None:
        state["state"][0]["max_exp_avg_sq"] = state["state"][0]["exp_avg"].clone()

    for rank in range(4):
        change_state(directory, rank, change)


def no_optimizer(directory: Path) -> None:
    for rank in range(4):
        (directory / optim(rank)).unlink()


FAULTS: dict[str, tuple[Any, type[Exception], str]] = {
    "rank missing": (lambda d: (d / optim(2)).unlink(), fastckpt.errors.MismatchError, "rank 2 of 4"),
    "last rank missing": (lambda d: (d / optim(3)).unlink(), fastckpt.errors.MismatchError, "rank 3 of 4"),
    "no model": (lambda d: (d / f"model_{STEP:06d}.pt").unlink(), fastckpt.errors.MismatchError, "model_000012"),
    "no meta": (lambda d: (d / f"meta_{STEP:06d}.json").unlink(), fastckpt.errors.MismatchError, "meta_000012"),
    "ranks swapped": (swap, fastckpt.errors.MismatchError, "was saved as optim_000012_rank1"),
    "rows": (add_row, fastckpt.errors.MismatchError, "found (33, 32)"),
    "ranks disagree": (small_parameter, fastckpt.errors.MismatchError, "differs from that of rank 0"),
    "row of nobody": (row_of_nobody, fastckpt.errors.MismatchError, "is not zero"),
    "another model": (other_model, fastckpt.errors.MismatchError, "groups"),
    "unknown parameter": (unknown_parameter, fastckpt.errors.MismatchError, "bigram_embed.embed.weight"),
    "another step": (other_step, fastckpt.errors.MismatchError, "different numbers of optimizer steps"),
    "flipped bit": (flip, fastckpt.errors.DamagedError, "optim_000012_rank1.pt is damaged"),
    "one moment": (lose_a_moment, fastckpt.errors.MismatchError, "not all ranks have the same state for parameter 0"),
    "three moments": (third_moment, fastckpt.errors.UnsupportedStateError, "max_exp_avg_sq"),
    "no optimizer": (no_optimizer, fastckpt.errors.UnsupportedStateError, "without its optimizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(tmp_path: Path, fault: str) -> None:
    make, error, says = FAULTS[fault]
    directory = write_ranks(tmp_path / "d12", 4)
    make(directory)
    before = contents(directory)
    for destination in (tmp_path / "to", None):
        with pytest.raises(error) as caught:
            reshard(directory, destination, step=STEP, world_size=2)
        assert says in str(caught.value)
        assert caught.value.next_step
        assert not (tmp_path / "to").exists()
        assert contents(directory) == before
        assert [p for p in directory.iterdir() if p.is_dir()] == []


@needs_real_files
def test_only_rank_0_was_kept(tmp_path: Path) -> None:
    with pytest.raises(fastckpt.errors.MismatchError, match="rank 1, 2, 3 of 4"):
        reshard(REAL / "legacy_2025_10_w4", tmp_path / "to", step=2, world_size=1)


def test_single_process_of_old(tmp_path: Path) -> None:
    """torch's own AdamW and the undistributed Muon: other groups, other steps, so not what ranks would load."""
    directory = write_ranks(tmp_path / "from", 1, "AdamW + Muon")

    def change(state: Any) -> None:
        for group in state[1]["param_groups"]:
            del group["zero_buffer"]

    change_state(directory, 0, change)
    with pytest.raises(fastckpt.errors.UnsupportedStateError, match="another make"):
        reshard(directory, tmp_path / "to", step=STEP, world_size=2)


def test_muon_state_on_the_wrong_rank(tmp_path: Path) -> None:
    """The file without a rank in its zip cannot say that it was swapped; who owns which parameter can."""
    directory = write_ranks(tmp_path / "from", 2, "AdamW + Muon")
    states = [torch.load(directory / optim(rank)) for rank in range(2)]
    for rank in range(2):
        torch.save(states[1 - rank], directory / optim(rank))
    with pytest.raises(fastckpt.errors.MismatchError, match="not on the rank that owns it"):
        reshard(directory, tmp_path / "to", step=STEP, world_size=4)


def test_usage(tmp_path: Path) -> None:
    directory = write_ranks(tmp_path / "base_checkpoints/d12", 4)
    for world_size, says in ((3, "128 rows"), (256, "128 rows"), (0, "at least 1"), (4, "for 4 ranks already")):
        with pytest.raises(fastckpt.errors.UsageError, match=says):
            reshard(directory, tmp_path / "to", step=STEP, world_size=world_size)
    with pytest.raises(fastckpt.errors.UsageError, match="no step 13"):
        reshard(directory, tmp_path / "to", step=13, world_size=2)
    with pytest.raises(fastckpt.errors.UsageError, match="directory itself"):
        reshard(directory, directory, step=STEP, world_size=2)
    with pytest.raises(fastckpt.errors.UsageError, match="in place of d12") as caught:
        reshard(directory, tmp_path / "base_checkpoints/d12_w2", step=STEP, world_size=2)
    assert "w2-d12" in str(caught.value)
    assert not (tmp_path / "to").exists()
    reshard(directory, tmp_path / "base_checkpoints/w2-d12", step=STEP, world_size=2)
    with pytest.raises(fastckpt.errors.UsageError, match="files of step 12 already"):
        reshard(directory, tmp_path / "base_checkpoints/w2-d12", step=STEP, world_size=8)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, target = str(write_ranks(tmp_path / "d12", 4)), str(tmp_path / "w2")
    assert main(["reshard", directory, "--step", str(STEP), "--world-size", "2", "-o", target]) == 0
    assert "4 -> 2 ranks" in capsys.readouterr().out
    assert main(["reshard", directory, "--step", str(STEP), "--world-size", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ranks_before"], facts["ranks"], facts["form"]) == (4, 1, "MuonAdamW")
    assert [Path(path).name for path in facts["removed"]] == [optim(1), optim(2), optim(3)]
    assert contents(tmp_path / "d12") == contents(write_ranks(tmp_path / "expected", 1))
    assert main(["reshard", directory, "--step", str(STEP), "--world-size", "3"]) == 64
    assert "a number that divides it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "w2")
    assert main(["reshard", directory, "--step", "9", "--world-size", "2", "-o", target]) == 64


@pytest.mark.parametrize("there", [False, True])
def test_the_first_tag_of_another_base_directory(there: bool, tmp_path: Path) -> None:
    """There is no other model that it could be taken for. The directories above it are made."""
    source = write_ranks(tmp_path / "base_checkpoints" / "d12", 2)
    parent = tmp_path / "new" / "base_checkpoints"
    if there:
        parent.mkdir(parents=True)
    reshard(source, parent / "d12", step=STEP, world_size=1)
    assert (parent / "d12" / optim(0)).exists()
    with pytest.raises(fastckpt.errors.UsageError, match="begins with 'd13'"):
        reshard(source, parent / "d13", step=STEP, world_size=1)


@pytest.mark.parametrize(
    ("own_format", "ranks", "start"),
    [
        (False, 2, "torchrun --standalone --nproc_per_node=2 -m scripts.base_train -- "),
        (False, 1, "python -m scripts.base_train "),
        (True, 2, "torchrun --standalone --nproc_per_node=2 -m fastckpt run -m scripts.base_train -- "),
        (True, 1, "fastckpt run -m scripts.base_train -- "),
    ],
)
def test_the_next_command_resumes_it(
    own_format: bool, ranks: int, start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the options of the run that saved it; nanochat alone reads no .fckpt."""
    directory = write_ranks(tmp_path / "d12", 4)
    meta = directory / f"meta_{STEP:06d}.json"
    meta.write_text(json.dumps({**META, "user_config": {"depth": 5, "resume_from_step": -1}}))
    if own_format:
        fastckpt.convert(directory, replace=True)
    command = ["reshard", str(directory), "--step", str(STEP), "--world-size", str(ranks)]
    assert main(command) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  next: ")]
    assert line == f"  next: {start}--depth=5 --model-tag=d12 --resume-from-step={STEP}"
