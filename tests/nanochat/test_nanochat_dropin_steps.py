"""Which steps count as complete, and which step and model are taken when none is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_builds import BUILDS, head_model, head_optimizer, meta_of, write_head

import fastckpt
from fastckpt.errors import CheckpointNotFoundError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.nanochat import find_largest_model, find_last_step, load_checkpoint, save_checkpoint
from fastckpt.nanochat.completeness import StepState, newest_complete, state_at_names
from fastckpt.nanochat.save_mark import SaveMark, parse_mark, read_mark, save_digest
from fastckpt.nanochat.steps import read_steps

CHECKPOINTS = Path(__file__).parents[3] / "shared" / "checkpoints"


def save_step(
    directory: Path, step: int, world: int, monkeypatch: pytest.MonkeyPatch, *, ranks: Any = None, seed: int = 0
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    model = head_model()
    model["resid_lambdas"] += seed
    for rank in range(world) if ranks is None else ranks:
        save_checkpoint(directory, step, model, head_optimizer(rank, world, step), meta_of(step), rank=rank)


def state_of(directory: Path, step: int = 4) -> StepState:
    """What is found of a step when all of it is read."""
    newest, passed = newest_complete(directory, verify=True)
    return next(state for state in [*passed, newest] if state is not None and state.step == step)


def flip(path: Path) -> None:
    """Damage a tensor."""
    raw = bytearray(path.read_bytes())
    at = len(raw) // 2
    if path.suffix == ".fckpt":
        with CheckpointFile(path) as file:
            at = file.records[0].payload.offset
    raw[at] ^= 0x40
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6000])


# The rule


def test_a_complete_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 4, 3, monkeypatch)
    names = ["meta_000004.json", *(f"optim_000004_rank{r}.fckpt" for r in range(3)), "model_000004.fckpt"]
    files = tuple(str(tmp_path / name) for name in names)
    assert state_of(tmp_path) == StepState(4, True, True, (), 3, (), files, ".fckpt")
    assert newest_complete(str(tmp_path), verify=False)[0] == StepState(4, True, None, (), 3, (), files, ".fckpt")


def test_the_order_of_the_ranks_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No barrier: complete with the last file of the last rank, whichever that is."""
    for ranks in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        directory = tmp_path / "".join(map(str, ranks))
        for count in range(1, 4):
            save_step(directory, 4, 3, monkeypatch, ranks=ranks[count - 1 : count])
            state = state_of(directory)
            assert state.complete == (count == 3), ranks[:count]
            assert state.missing_ranks == tuple(sorted(set(ranks) - set(ranks[:count])))


Fault = Callable[[Path], object]
FAULTS: dict[str, tuple[Fault, str]] = {
    "no model": (lambda d: (d / "model_000004.fckpt").unlink(), "there is no model_000004"),
    "no meta": (lambda d: (d / "meta_000004.json").unlink(), "there is no meta_000004"),
    "no rank": (lambda d: (d / "optim_000004_rank1.fckpt").unlink(), "no optimizer of rank 1 of 2"),
    "no optimizer": (
        lambda d: [path.unlink() for path in d.glob("optim_000004*")],
        "there is no optimizer of ranks 0, 1 of 2",
    ),
    "cut model": (lambda d: cut(d / "model_000004.fckpt"), "model_000004.fckpt: the save was cut short"),
    "cut rank": (lambda d: cut(d / "optim_000004_rank1.fckpt"), "optim_000004_rank1.fckpt: the save was cut"),
    "empty rank": (lambda d: (d / "optim_000004_rank1.fckpt").write_bytes(b""), "optim_000004_rank1.fckpt"),
    "rotted model": (lambda d: flip(d / "model_000004.fckpt"), "model_000004.fckpt is damaged"),
    "rotted rank": (lambda d: flip(d / "optim_000004_rank0.fckpt"), "optim_000004_rank0.fckpt is damaged"),
    "other meta": (
        lambda d: (d / "meta_000004.json").write_text(json.dumps(meta_of(4, val_bpb=1.5))),
        "meta_000004.json is not the one that was saved with the model",
    ),
    "cut meta": (lambda d: (d / "meta_000004.json").write_text('{"step": 4,'), "meta_000004.json is not the one"),
    "swapped ranks": (
        lambda d: (
            (d / "optim_000004_rank0.fckpt").rename(d / "t"),
            (d / "optim_000004_rank1.fckpt").rename(d / "optim_000004_rank0.fckpt"),
            (d / "t").rename(d / "optim_000004_rank1.fckpt"),
        ),
        "optim_000004_rank0.fckpt was saved as optim_000004_rank1",
    ),
    "rank of another step": (
        lambda d: (d / "optim_000002_rank1.fckpt").rename(d / "optim_000004_rank1.fckpt"),
        "optim_000004_rank1.fckpt was saved as optim_000002_rank1",
    ),
    "rank without a mark": (
        lambda d: fastckpt.save(head_optimizer(1, 2), d / "optim_000004_rank1.fckpt"),
        "optim_000004_rank1.fckpt does not say which save it belongs to",
    ),
    "model without a mark": (
        lambda d: fastckpt.save(head_model(), d / "model_000004.fckpt"),
        "model_000004.fckpt does not say which save it belongs to",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_damaged_or_of_another_save(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of these is passed over for the step before, with its reason in the log."""
    for step in (1, 2, 4):
        save_step(tmp_path, step, 2, monkeypatch)
    fault, reason = FAULTS[name]
    fault(tmp_path)
    state = state_of(tmp_path)
    assert not state.complete
    assert state.verified in (None, False)
    assert any(reason in text for text in state.reasons), state.reasons
    assert find_last_step(str(tmp_path)) == (1 if name == "rank of another step" else 2)
    assert f"Step 4 in {tmp_path} passed over: " in caplog.text
    assert reason in caplog.text
    if not name.startswith("rotted"):
        newest, passed = newest_complete(tmp_path, verify=False)
        assert newest is not None
        assert passed[0].reasons == state.reasons


def test_a_step_saved_again_by_some_ranks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mix of two saves of a step is told, and the step is what it was until the last rank is done."""

    def at_names() -> StepState:
        return state_at_names(read_steps(str(tmp_path))[4], verify=True)

    save_step(tmp_path, 4, 3, monkeypatch)
    for ranks in ((1,), (2,), (0,)):
        assert at_names().complete == (ranks == (1,))
        assert state_of(tmp_path).complete
        save_step(tmp_path, 4, 3, monkeypatch, ranks=ranks, seed=1)
    assert at_names().complete
    save_step(tmp_path, 4, 3, monkeypatch, ranks=(0,), seed=2)
    reasons = at_names().reasons
    assert reasons == tuple(f"optim_000004_rank{r}.fckpt is of another save than model_000004" for r in (1, 2))
    assert state_of(tmp_path).before


def test_the_same_save_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is repeated bit for bit writes the same files: a part of them is no mix."""
    save_step(tmp_path, 4, 2, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_step(tmp_path, 4, 2, monkeypatch, ranks=(1,))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert state_of(tmp_path).complete


def test_files_of_more_ranks_than_the_save_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 4, 4, monkeypatch)
    save_step(tmp_path, 4, 2, monkeypatch, seed=1)
    state = state_of(tmp_path)
    assert (state.complete, state.world_size, state.missing_ranks) == (True, 2, ())
    assert not any("rank2" in path or "rank3" in path for path in state.files)


def test_a_rank_without_weights_agrees_with_any_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 4, 2, monkeypatch)
    save_checkpoint(tmp_path, 4, None, head_optimizer(1, 2), None, rank=1)
    mark = read_mark(tmp_path / "optim_000004_rank1.fckpt")
    assert mark == SaveMark("optim", 4, 1, 2, None)
    assert state_of(tmp_path).complete


def test_a_model_that_has_no_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reinforcement learning saves; optimizer files of an earlier save do not belong to it."""
    save_step(tmp_path, 4, 2, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    save_checkpoint(tmp_path, 4, head_model(), None, {"model_config": {}})
    state = state_of(tmp_path)
    assert state.complete
    assert [os.path.basename(path) for path in state.files] == ["meta_000004.json", "model_000004.fckpt"]


def test_what_salvage_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: complete. With tensors left out or from elsewhere: loadable by its number, but not complete."""
    save_step(tmp_path, 2, 1, monkeypatch, seed=1)
    model = {name: torch.full((300, 100), float(number)) for number, name in enumerate("abcd")}
    save_checkpoint(tmp_path, 4, model, head_optimizer(), meta_of(4))
    path, salvaged = tmp_path / "model_000004.fckpt", tmp_path / "salvaged.fckpt"
    whole = path.read_bytes()
    cut(path)
    assert fastckpt.salvage(path, salvaged).complete
    os.replace(salvaged, path)
    assert state_of(tmp_path).complete
    path.write_bytes(whole)
    flip(path)
    assert fastckpt.salvage(path, salvaged).written == ["b", "c", "d"]
    os.replace(salvaged, path)
    assert state_of(tmp_path).reasons == ("model_000004.fckpt was salvaged, and not all of it is what was saved",)
    assert find_last_step(tmp_path) == 2
    assert list(load_checkpoint(tmp_path, 4, "cpu")[0]) == ["b", "c", "d"]


# The mark


def test_the_digest_of_a_save() -> None:
    """Written out here from docs/nanochat.md."""
    import xxhash

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": {"c": torch.full((5000,), 7, dtype=torch.uint8)}}
    state["t"] = torch.arange(6.0).reshape(2, 3).t()
    state["s"] = torch.tensor(2, dtype=torch.int64)
    covered = b"a\0float32\0" + b"2,3\0" + state["a"].numpy().tobytes()
    covered += b"b.c\0uint8\0" + b"5000\0" + b"\x07" * 4096
    covered += b"t\0float32\0" + b"3,2\0" + state["t"].contiguous().numpy().tobytes()
    covered += b"s\0int64\0\0" + (2).to_bytes(8, "little")
    assert save_digest(state) == xxhash.xxh3_128_hexdigest(covered)


def test_the_digest_tells_optimizer_steps_apart() -> None:
    model = head_model()
    before = save_digest(model)
    assert save_digest(head_model()) == before
    model["transformer.h.1.attn.c_q.weight"][0, 0] += 1e-7
    assert save_digest(model) != before
    assert save_digest({name: tensor.bfloat16() for name, tensor in head_model().items()}) != before


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"nanochat": "mine"},
        {"nanochat": {}},
        {"nanochat": {"role": "meta", "step": 4, "rank": 0, "world_size": 1}},
        {"nanochat": {"role": "model", "step": "4", "rank": 0, "world_size": 1}},
        {"nanochat": {"role": "model", "step": 4, "rank": "0", "world_size": 1}},
        {"nanochat": {"role": "model", "step": 4, "rank": 0, "world_size": 0}},
        {"nanochat": {"role": "model", "step": 4, "rank": 0, "world_size": 1, "save": 5}},
        {"nanochat": {"role": "model", "step": 4, "rank": 0, "world_size": 1, "optimizer": None}},
    ],
)
def test_other_metadata_is_no_mark(metadata: dict[str, Any]) -> None:
    assert parse_mark(metadata) is None


def test_a_mark_comes_back() -> None:
    for mark in (SaveMark("optim", 4, 1, 2, "ab"), SaveMark("model", 4, 0, 2, None, False, "cd")):
        assert parse_mark(mark.as_metadata()) == mark


# Files without marks


@pytest.mark.parametrize("name", BUILDS)
def test_every_revision_is_complete(name: str, tmp_path: Path) -> None:
    BUILDS[name](tmp_path)
    steps = [int(path.stem.split("_")[1]) for path in tmp_path.glob("model_*.pt")]
    for _ in range(2):
        assert find_last_step(tmp_path) == max(steps)
        newest, passed = newest_complete(tmp_path, verify=True)
        assert newest is not None
        assert not passed
        fastckpt.convert(tmp_path, to="fckpt", replace=True)


@pytest.mark.skipif(not CHECKPOINTS.exists(), reason="the real checkpoints are not beside the repository")
def test_real_directories() -> None:
    found = {}
    for directory in ("base_checkpoints/d4", "base_checkpoints/d4_w4", "legacy_2025_10_w4"):
        newest, passed = newest_complete(CHECKPOINTS / directory, verify=True)
        assert newest is not None
        assert not passed
        assert newest.suffix == ".pt"
        found[directory] = (newest.step, newest.world_size, newest.missing_ranks)
    assert found == {
        "base_checkpoints/d4": (4, 1, ()),
        "base_checkpoints/d4_w4": (4, 4, ()),
        # Then nanochat saved the part of rank 0 only: the step was never more than that.
        "legacy_2025_10_w4": (2, 4, (1, 2, 3)),
    }
    assert find_largest_model(CHECKPOINTS / "base_checkpoints") == "d4"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda d: cut(d / "model_000008.pt"), "model_000008.pt"),
        (lambda d: flip(d / "model_000008.pt"), "model_000008.pt"),
        (lambda d: cut(d / "optim_000008_rank1.pt"), "optim_000008_rank1.pt"),
        (lambda d: (d / "optim_000008_rank1.pt").unlink(), "no optimizer of rank 1 of 2"),
        (lambda d: (d / "model_000008.pt").unlink(), "there is no model_000008"),
        (lambda d: (d / "meta_000008.json").unlink(), "there is no meta_000008"),
        (lambda d: (d / "meta_000008.json").write_text('{"step": 8, "va'), "not whole JSON"),
        (lambda d: (d / "optim_000004_rank1.pt").rename(d / "optim_000008_rank1.pt"), "of different steps"),
    ],
)
def test_a_pt_step_that_is_not_whole(fault: Fault, reason: str, tmp_path: Path) -> None:
    for step in (2, 4, 8):
        write_head(tmp_path, step, world=2)
    fault(tmp_path)
    state = state_of(tmp_path, 8)
    assert any(reason in text for text in state.reasons), state.reasons
    assert find_last_step(tmp_path) == (2 if "different steps" in reason else 4)


def test_the_format_that_is_complete_is_taken(tmp_path: Path) -> None:
    write_head(tmp_path, 4, world=2)
    fastckpt.convert(tmp_path, to="fckpt")
    assert state_of(tmp_path).suffix == ".fckpt"
    flip(tmp_path / "optim_000004_rank1.fckpt")
    state = state_of(tmp_path)
    assert (state.complete, state.verified, state.suffix) == (True, True, ".pt")
    (tmp_path / "optim_000004_rank0.pt").unlink()
    assert not state_of(tmp_path).complete


def test_a_step_half_converted(tmp_path: Path) -> None:
    write_head(tmp_path, 4, world=2)
    fastckpt.convert(tmp_path / "model_000004.pt", tmp_path / "model_000004.fckpt")
    (tmp_path / "model_000004.pt").unlink()
    state = state_of(tmp_path)
    assert (state.complete, state.suffix, len(state.files)) == (True, "", 4)
    assert load_checkpoint(tmp_path, 4, "cpu")[1] is None


# find_last_step


def test_nothing_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no nanochat checkpoint here"):
            find_last_step(directory)
    save_step(tmp_path, 4, 2, monkeypatch, ranks=(0,))
    (tmp_path / "model_000005.backup.pt").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match="no step is complete; the newest, 4: there is no optimizer of"):
        find_last_step(tmp_path)


def test_steps_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (999_999, 1_000_000):
        save_step(tmp_path, step, 1, monkeypatch)
    assert find_last_step(tmp_path) == 1_000_000


def test_only_the_first_rank_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_step(tmp_path, 4, 2, monkeypatch)
    save_step(tmp_path, 5, 2, monkeypatch, ranks=(1,))
    monkeypatch.setenv("RANK", "1")
    assert find_last_step(tmp_path) == 4
    assert not caplog.text


# find_largest_model


def make_tags(parent: Path, *tags: str) -> None:
    for age, tag in enumerate(tags):
        (parent / tag).mkdir()
        (parent / tag / f"model_{age:06d}.fckpt").write_bytes(b"")
        os.utime(parent / tag, (1000 - age, 1000 - age))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (("d4", "d12", "d8"), "d12"),
        (("d4", "d20_swiglu", "d12"), "d20_swiglu"),
        (("mine", "d4", "later"), "d4"),
        (("newest", "older", "oldest"), "newest"),
        # Copies, which nanochat would load in the place of d12.
        (("d12_fastckpt", "d12"), "d12"),
        (("d100.fckpt", "d12"), "d12"),
        (("d26_backup", "d20-old", "d12"), "d12"),
        (("d12_lr2", "d12"), "d12"),
        (("d12_b", "d12_a"), "d12_b"),
        (("d12_fastckpt",), "d12_fastckpt"),
    ],
)
def test_the_largest_model(tags: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    make_tags(tmp_path, *tags)
    (tmp_path / "d99").mkdir()  # Without a model in it.
    (tmp_path / "d98").write_bytes(b"")
    assert find_largest_model(str(tmp_path)) == expected


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "d12").mkdir()
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no nanochat checkpoint here"):
            find_largest_model(directory)
