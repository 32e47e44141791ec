"""Running a conversion again; which way it goes; where it may go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nanochat_builds import head_model, head_optimizer, meta_of, write_head, write_step
from nanochat_finders import contents

import fastckpt
from fastckpt.errors import MismatchError, UsageError


@pytest.fixture
def tag(tmp_path: Path) -> Path:
    return write_head(tmp_path / "d12", 4, 2)


def age(path: Path, seconds: int) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def test_what_is_there_is_kept(tag: Path, tmp_path: Path) -> None:
    for destination in (tag, tmp_path / "out"):
        fastckpt.convert(tag, destination, to="fckpt")
        before = inodes(destination)
        again = fastckpt.convert(tag, destination, to="fckpt")
        assert inodes(destination) == before
        assert all("already" in item.notes[0] and item.exact for item in again)
        assert all(item.source_verified for item in again if item.format != "meta")
        assert [item.tensors > 0 for item in again] == [item.format != "meta" for item in again]


def test_all_done_is_no_error(tag: Path, tmp_path: Path) -> None:
    fastckpt.convert(tag, replace=True)
    assert fastckpt.convert(tag, to="fckpt", replace=True) == []
    with pytest.raises(UsageError, match="in this format already"):
        fastckpt.convert(tag, tmp_path / "out", to="fckpt")


def test_another_codec_is_converted_again(tag: Path) -> None:
    fastckpt.convert(tag)
    assert not fastckpt.convert(tag, to="fckpt", codec="zstd")[1].notes
    fastckpt.convert(tag, to="fckpt", codec="none")
    assert fastckpt.convert(tag, to="fckpt", codec="none")[1].notes


def test_exactness_is_added(tag: Path) -> None:
    fastckpt.convert(tag, exact=False)
    done = fastckpt.convert(tag, to="fckpt")
    assert not any(item.notes for item in done)
    assert all(item.exact for item in done)


@pytest.mark.parametrize("how", ["cut", "rot", "empty", "text"])
def test_a_damaged_result_is_converted_again(tag: Path, how: str) -> None:
    fastckpt.convert(tag)
    target = tag / "optim_000004_rank1.fckpt"
    good = target.read_bytes()
    rotted = bytearray(good)
    rotted[3 * 4096 + 1] ^= 4
    target.write_bytes({"cut": good[:5000], "rot": bytes(rotted), "empty": b"", "text": b"hello" * 2000}[how])
    done = fastckpt.convert(tag, to="fckpt")
    assert [bool(item.notes) for item in done] == [True, False, True]
    assert target.read_bytes() == good


@pytest.mark.parametrize("how", ["cut", "rot", "empty"])
def test_a_damaged_pt_is_restored(tag: Path, how: str) -> None:
    before = contents(tag)
    fastckpt.convert(tag)
    target = tag / "optim_000004_rank1.pt"
    rotted = bytearray(before[target.name])
    rotted[len(rotted) // 2] ^= 4
    target.write_bytes({"cut": bytes(rotted[:5000]), "rot": bytes(rotted), "empty": b""}[how])
    fastckpt.convert(tag, to="pt")
    assert {name: data for name, data in contents(tag).items() if name in before} == before


def test_a_step_saved_anew_is_converted_anew(tag: Path) -> None:
    fastckpt.convert(tag)
    for path in tag.glob("*.fckpt"):
        age(path, 100)
    model = head_model()
    model["lm_head.weight"] += 1
    torch.save(model, tag / "model_000004.pt")
    fastckpt.convert(tag, to="fckpt")
    assert torch.equal(fastckpt.load(tag / "model_000004.fckpt")["lm_head.weight"], model["lm_head.weight"])


def test_what_is_only_there_is_never_overwritten(tag: Path, tmp_path: Path) -> None:
    fastckpt.convert(tag)
    model = head_model()
    model["lm_head.weight"] += 1
    torch.save(model, tag / "model_000004.pt")
    # A newer .fckpt of something else: a resave, or another run's.
    age(tag / "model_000004.pt", 100)
    before = contents(tag)
    for to in ("fckpt", "pt"):
        with pytest.raises(MismatchError, match="does not hold what") as caught:
            fastckpt.convert(tag, to=to, replace=True)
        assert caught.value.next_step is not None
        assert contents(tag) == before
    # A .pt is not overwritten even when it is older: only training writes those.
    age(tag / "model_000004.pt", -200)
    with pytest.raises(MismatchError):
        fastckpt.convert(tag, to="pt")
    assert contents(tag) == before


def test_another_meta_is_not_overwritten(tag: Path, tmp_path: Path) -> None:
    fastckpt.convert(tag, tmp_path / "out")
    copied = tmp_path / "out" / "meta_000004.json"
    copied.write_text('{"step": 4}')
    with pytest.raises(MismatchError):
        fastckpt.convert(tag, tmp_path / "out")
    age(copied, 100)
    fastckpt.convert(tag, tmp_path / "out")
    assert copied.read_bytes() == (tag / copied.name).read_bytes()


# --- which way -----------------------------------------------------------------------------


def test_training_that_went_on(tag: Path) -> None:
    fastckpt.convert(tag, replace=True)
    write_head(tag, 6, 2)
    done = fastckpt.convert(tag, replace=True)
    assert len(done) == 3
    assert all("_000006" in item.destination for item in done)
    assert not list(tag.glob("*.pt"))


def test_a_way_back_killed_between_steps(tag: Path) -> None:
    write_head(tag, 6, 2)
    before = contents(tag)
    fastckpt.convert(tag, replace=True)
    fastckpt.convert(tag, step=4, replace=True)
    with pytest.raises(UsageError, match="--to fckpt or --to pt"):
        fastckpt.convert(tag, replace=True)
    fastckpt.convert(tag, to="pt", replace=True)
    assert contents(tag) == before


def test_pairs_that_disagree(tag: Path) -> None:
    fastckpt.convert(tag)
    age(tag / "model_000004.fckpt", 1000)
    with pytest.raises(UsageError, match="--to"):
        fastckpt.convert(tag)
    assert all(item.notes for item in fastckpt.convert(tag, to="pt"))


def test_left_behind_in_the_source_is_said(tag: Path, tmp_path: Path) -> None:
    fastckpt.convert(tag, replace=True)
    write_head(tag, 6, 2)
    done = fastckpt.convert(tag, tmp_path / "out")
    assert any("model_000004.fckpt is in this format already" in note for note in done[0].notes)
    assert not list((tmp_path / "out").glob("*000004*"))


# --- where to ------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_head(tmp_path / "base_checkpoints" / "d12")
    return tmp_path / "base_checkpoints"


@pytest.mark.parametrize("name", ["d12_fckpt", "d100.fckpt", "d4", "d12.bak"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_nanochat_would_load_is_refused(base: Path, name: str, exists: bool) -> None:
    if exists:
        (base / name).mkdir()
    before = sorted(path.name for path in base.iterdir())
    with pytest.raises(UsageError, match="in place of d12") as caught:
        fastckpt.convert(base / "d12", base / name)
    assert f"outside {base}" in str(caught.value)
    assert sorted(path.name for path in base.iterdir()) == before


def test_other_places_are_fine(base: Path, tmp_path: Path) -> None:
    for place in (base / "kept_d12", tmp_path / "d12", base / "d12" / "d99", tmp_path / "far" / "away" / "d12_fckpt"):
        assert fastckpt.convert(base / "d12", place)
        assert (place / "model_000004.fckpt").exists()


def test_the_newest_directory_is_refused_as_well(tmp_path: Path) -> None:
    write_head(tmp_path / "chatsft_checkpoints" / "mine")
    with pytest.raises(UsageError, match="changed last"):
        fastckpt.convert(tmp_path / "chatsft_checkpoints" / "mine", tmp_path / "chatsft_checkpoints" / "mine_fckpt")
    write_head(tmp_path / "runs" / "mine")
    assert fastckpt.convert(tmp_path / "runs" / "mine", tmp_path / "runs" / "mine_fckpt")


def test_from_elsewhere_into_the_directories_of_nanochat(base: Path, tmp_path: Path) -> None:
    write_head(tmp_path / "backup" / "d20")
    with pytest.raises(UsageError, match="nanochat could load"):
        fastckpt.convert(tmp_path / "backup" / "d20", base / "d20")
    fastckpt.convert(tmp_path / "backup" / "d20", replace=True)
    fastckpt.convert(tmp_path / "backup" / "d20", base / "d20")  # To .pt: what restoring is.
    assert torch.load(base / "d20" / "model_000004.pt")


def test_a_destination_that_is_a_file(tag: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(fastckpt.errors.CheckpointIOError):
        fastckpt.convert(tag, tmp_path / "out")


def test_symbolic_link_to_the_same_directory_is_in_place(tag: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tag)
    fastckpt.convert(tag, tmp_path / "link")
    assert (tag / "model_000004.fckpt").exists()


def test_torch_is_not_imported(tmp_path: Path) -> None:
    write_step(tmp_path / "d12", 4, head_model(), {0: head_optimizer()}, meta_of(4))
    program = (
        "import pkgutil, sys, importlib, fastckpt, fastckpt.nanochat\n"
        "for module in pkgutil.iter_modules(fastckpt.nanochat.__path__):\n"
        "    if module.name != 'sample': importlib.import_module('fastckpt.nanochat.' + module.name)\n"
        f"for _ in range(3): fastckpt.convert({str(tmp_path / 'd12')!r}, replace=True)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
