"""Files that do not belong together are named; what is missing is said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from nanochat_builds import BASE_META, head_model, head_optimizer, meta_of, state_dict, write_head, write_step
from nanochat_finders import contents

import fastckpt
from fastckpt.errors import DamagedError, MismatchError


@pytest.fixture
def four(tmp_path: Path) -> Path:
    return write_head(tmp_path / "d12", world=4)


@pytest.fixture(params=["pt", "fckpt"])
def either(request: pytest.FixtureRequest, four: Path) -> Path:
    """The same step in either format: the rules hold in both directions."""
    if request.param == "fckpt":
        fastckpt.convert(four, replace=True)
    return four


def suffix_of(directory: Path) -> str:
    return next(iter(directory.glob("model_*"))).suffix


def notes(directory: Path, tmp_path: Path) -> str:
    return " | ".join(
        note for item in fastckpt.convert(directory, tmp_path / "out", durable=False) for note in item.notes
    )


def refuse(directory: Path, tmp_path: Path) -> str:
    before = contents(directory)
    with pytest.raises(MismatchError) as caught:
        fastckpt.convert(directory, tmp_path / "out")
    assert contents(directory) == before
    assert not (tmp_path / "out").exists()
    assert caught.value.next_step
    return str(caught.value)


def test_a_whole_step_needs_no_note(either: Path, tmp_path: Path) -> None:
    assert notes(either, tmp_path) == ""


def test_swapped_ranks(either: Path, tmp_path: Path) -> None:
    a, b = (either / f"optim_000004_rank{rank}{suffix_of(either)}" for rank in (1, 2))
    a.rename(tmp_path / "aside")
    b.rename(a)
    (tmp_path / "aside").rename(b)
    text = refuse(either, tmp_path)
    assert f"{a.name} was saved as optim_000004_rank2; {b.name} was saved as optim_000004_rank1" in text


def test_a_rank_twice(either: Path, tmp_path: Path) -> None:
    suffix = suffix_of(either)
    shutil.copy(either / f"optim_000004_rank0{suffix}", either / f"optim_000004_rank3{suffix}")
    assert f"optim_000004_rank3{suffix} was saved as optim_000004_rank0" in refuse(either, tmp_path)


def test_an_optimizer_in_place_of_the_model(four: Path, tmp_path: Path) -> None:
    shutil.copy(four / "optim_000004_rank0.pt", four / "model_000004.pt")
    assert "model_000004.pt was saved as optim_000004_rank0" in refuse(four, tmp_path)


@pytest.mark.parametrize("stem", ["model_{}", "optim_{}_rank2"])
def test_a_file_of_another_step(either: Path, tmp_path: Path, stem: str) -> None:
    write_head(tmp_path / "other", 6, 4)
    suffix = suffix_of(either)
    if suffix == ".fckpt":
        fastckpt.convert(tmp_path / "other")
    shutil.copy(tmp_path / "other" / (stem.format("000006") + suffix), either / (stem.format("000004") + suffix))
    text = refuse(either, tmp_path)
    assert stem.format("000004") + suffix + " of step 6" in text
    assert "meta_000004.json of step 4" in text


@pytest.mark.parametrize("missing", [[2], [0, 3]])
def test_missing_ranks(either: Path, tmp_path: Path, missing: list[int]) -> None:
    for rank in missing:
        (either / f"optim_000004_rank{rank}{suffix_of(either)}").unlink()
    shown = ", ".join(map(str, missing))
    assert f"of rank {shown} of 4" in notes(either, tmp_path)
    assert len(list((tmp_path / "out").glob("optim*"))) == 4 - len(missing)


def test_missing_ranks_without_the_model(four: Path, tmp_path: Path) -> None:
    (four / "optim_000004_rank3.pt").unlink()
    (four / "model_000004.pt").unlink()
    found = notes(four, tmp_path)
    assert "of rank 3 of 4 is missing" in found  # From the padded vocab_size in meta.
    assert "there is no model_000004" in found


def test_missing_ranks_when_nothing_tells_how_many(four: Path, tmp_path: Path) -> None:
    for name in ("model_000004.pt", "meta_000004.json", "optim_000004_rank1.pt", "optim_000004_rank3.pt"):
        (four / name).unlink()
    assert "of rank 1 of 3 is missing" in notes(four, tmp_path)


def test_the_single_file_of_october_2025(tmp_path: Path) -> None:
    from nanochat_builds import BUILDS

    BUILDS["2025-10 ranks"](tmp_path / "d12")
    assert "of rank 1, 2, 3 of 4 are missing: nanochat saved only that of rank 0" in notes(tmp_path / "d12", tmp_path)


def test_ranks_of_two_world_sizes(four: Path, tmp_path: Path) -> None:
    torch.save(head_optimizer(1, 2), four / "optim_000004_rank1.pt")
    assert "different numbers of ranks" in refuse(four, tmp_path)


def test_ranks_of_two_runs(four: Path, tmp_path: Path) -> None:
    other = head_optimizer(2, 4)
    other["param_groups"][0]["lr"] = 0.1
    torch.save(other, four / "optim_000004_rank2.pt")
    text = refuse(four, tmp_path)
    assert "optim_000004_rank0.pt and optim_000004_rank2.pt differ in their param_groups" in text


@pytest.mark.parametrize("kind", ["int", "tensor"])
def test_ranks_after_different_numbers_of_steps(tmp_path: Path, kind: str) -> None:
    from nanochat_builds import BUILDS

    if kind == "int":
        directory, step = write_head(tmp_path / "d12", world=4), 4
    else:
        BUILDS["2025-11 list per rank"](tmp_path / "d12")
        directory, step = tmp_path / "d12", 30
    path = directory / f"optim_{step:06d}_rank1.pt"
    state = torch.load(path)
    moments = (state if kind == "int" else state[0])["state"]
    for values in moments.values():
        if "step" in values:
            values["step"] += 2
    torch.save(state, path)
    assert f"(expected {step}, found {step + 2})" in refuse(directory, tmp_path)
    fastckpt.convert(path, path.with_suffix(".fckpt"))
    path.unlink()
    shutil.move(path.with_suffix(".fckpt"), tmp_path / "kept")
    # The same from .fckpt files, where the counters may be tensors in packs.
    fastckpt.convert(directory, replace=True)
    shutil.move(tmp_path / "kept", path.with_suffix(".fckpt"))
    assert f"(expected {step}, found {step + 2})" in refuse(directory, tmp_path)


def test_a_renamed_set_is_only_noted(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "d12", 6, 2)
    for path in list(directory.iterdir()):
        path.rename(directory / path.name.replace("000006", "000004"))
    text = notes(directory, tmp_path)
    assert "all files of this step were saved as step 6" in text
    assert "the optimizer counts 6 steps in the files of step 4" in text


def test_files_that_do_not_tell_are_noted(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "d12", 4, 2)
    for rank in range(2):
        with open(directory / f"optim_000004_rank{rank}.pt", "wb") as file:
            torch.save(head_optimizer(rank, 2), file)
    assert "optim_000004_rank1.pt (saved as 'archive')" in notes(directory, tmp_path)


def test_fine_tuning_counts_on(tmp_path: Path) -> None:
    write_step(tmp_path / "d12", 4, head_model(), {0: head_optimizer(step=2000)}, meta_of(4))
    assert notes(tmp_path / "d12", tmp_path) == ""


@pytest.mark.parametrize(("step", "noted"), [(3, True), (5, True), (4, False)])
def test_a_counter_that_is_not_the_step(tmp_path: Path, step: int, noted: bool) -> None:
    write_step(tmp_path / "d12", 4, head_model(), {0: head_optimizer(step=step)}, meta_of(4, **BASE_META))
    assert (f"counts {step} steps" in notes(tmp_path / "d12", tmp_path)) is noted


@pytest.mark.parametrize("text", [b"", b'{"step": 4, "val_', b"[1]", b"\xff\xfe"])
def test_meta_that_is_not_whole(tmp_path: Path, text: bytes) -> None:
    directory = write_head(tmp_path / "d12")
    (directory / "meta_000004.json").write_bytes(text)
    assert "meta_000004.json" in notes(directory, tmp_path)
    assert (tmp_path / "out" / "meta_000004.json").read_bytes() == text


def test_no_meta(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "d12")
    (directory / "meta_000004.json").unlink()
    assert "there is no meta_000004.json" in notes(directory, tmp_path)


@pytest.mark.parametrize(
    "state", [[], {}, {"state": 1, "param_groups": []}, {"state": {0: 5}, "param_groups": None}, 7]
)
def test_an_optimizer_of_another_kind_is_taken(tmp_path: Path, state: object) -> None:
    write_step(tmp_path / "d12", 4, state_dict(), {0: state}, meta_of(4))
    notes(tmp_path / "d12", tmp_path)
    assert fastckpt.load(tmp_path / "out" / "optim_000004_rank0.fckpt") == state


# --- damage ----------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit in the first tensor's bytes."""
    from at_path import open_foreign

    offset = open_foreign(path).storages[0].offset if path.suffix == ".pt" else 12 * 1024
    raw = bytearray(path.read_bytes())
    raw[offset + 3] ^= 1
    path.write_bytes(raw)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", ["model_000004.pt", "optim_000004_rank1.pt"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_damaged_file_stops_its_step_only(tmp_path: Path, name: str, damage, replace: bool) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path / "d12"
    for step in (2, 4, 6):
        write_head(directory, step, 2)
    damage(directory / name)
    before = contents(directory)
    with pytest.raises(DamagedError) as caught:
        fastckpt.convert(directory, replace=replace)
    text = str(caught.value)
    assert name in text
    assert "steps that failed: 4; converted: 2, 6" in text
    assert not (directory / "model_000004.fckpt").exists()
    for step in (2, 6):
        assert (directory / f"model_{step:06d}.fckpt").exists()
        assert (directory / f"model_{step:06d}.pt").exists() is not replace
    for kept in (item for item in before if "000004" in item):
        assert (directory / kept).read_bytes() == before[kept]


def test_a_damaged_fckpt_gives_no_visible_step(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "d12", 4, 2)
    fastckpt.convert(directory, replace=True)
    flip(directory / "model_000004.fckpt")
    with pytest.raises(DamagedError, match=r"model_000004\.fckpt"):
        fastckpt.convert(directory, replace=True)
    assert not (directory / "model_000004.pt").exists()
    assert (directory / "optim_000004_rank1.fckpt").exists()


def test_meta_is_copied_and_never_rewritten(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "d12")
    meta = directory / "meta_000004.json"
    assert b"Infinity" in meta.read_bytes()
    with pytest.raises(ValueError, match="Infinity"):
        json.loads(meta.read_text(), parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    done = fastckpt.convert(directory, tmp_path / "out")
    copied = next(item for item in done if item.format == "meta")
    assert Path(copied.destination).read_bytes() == meta.read_bytes()
    assert (copied.tensors, copied.exact, copied.nbytes) == (0, True, meta.stat().st_size)
