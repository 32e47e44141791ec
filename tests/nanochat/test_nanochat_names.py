"""Which file names belong to a checkpoint, and what a directory is said to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from nanochat_builds import write_head

import fastckpt
from fastckpt.errors import NotACheckpointError, UsageError
from fastckpt.nanochat.names import Stem, parse_name
from fastckpt.nanochat.steps import find_tags, read_steps


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("model_000004.pt", Stem("model", 4), "pt"),
        ("model_000000.fckpt", Stem("model", 0), "fckpt"),
        ("model_1234567.safetensors", Stem("model", 1234567), "safetensors"),
        ("optim_000004_rank0.pt", Stem("optim", 4, 0), "pt"),
        ("optim_000004_rank17.fckpt", Stem("optim", 4, 17), "fckpt"),
        ("optim_000002.pt", Stem("optim", 2), "pt"),
        ("meta_000500.json", Stem("meta", 500), "json"),
    ],
)
def test_names_of_nanochat(name: str, stem: Stem, suffix: str) -> None:
    assert parse_name(name) == (stem, suffix)
    assert f"{stem}.{suffix}" == name


@pytest.mark.parametrize(
    "name",
    [
        "model_4.pt",
        "model_0000004.pt",
        "old_model_000005.pt",
        ".tmp-model_000009.pt",
        "model_000011.pt.tmp",
        "model_000200_backup.pt",
        ".model_000004.fckpt.0123456789ab.fckpt-tmp",
        "model_000004_rank0.pt",
        "optim_000004_rank01.pt",
        "optim_000004_rank.pt",
        "optim_000004_rank0.json",
        "meta_000004.pt",
        "model_000004.PT",
        "model_٠٠٠٠٠٤.pt",
        "model_000004",
        "model_000004.pt\n",
        "token_bytes.pt",
    ],
)
def test_other_names(name: str) -> None:
    assert parse_name(name) is None


def test_steps_are_in_order_and_the_model_last(tmp_path: Path) -> None:
    for name in ("optim_000004_rank10.pt", "optim_000004_rank2.pt", "model_000004.pt", "model_000004.fckpt"):
        (tmp_path / name).touch()
    for name in ("model_1000000.pt", "meta_1000000.json", "optim_000002.pt", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "model_000007.pt").mkdir()
    steps = read_steps(str(tmp_path))
    assert list(steps) == [2, 4, 1000000]
    assert list(steps[4].states) == [Stem("optim", 4, 2), Stem("optim", 4, 10), Stem("model", 4)]
    assert steps[4].states[Stem("model", 4)].keys() == {"fckpt", "pt"}
    assert (steps[4].meta, steps[1000000].meta) == (None, str(tmp_path / "meta_1000000.json"))


def test_a_directory_of_directories_lists_them(tmp_path: Path) -> None:
    for tag in ("base_checkpoints/d4", "base_checkpoints/d12", "chatsft_checkpoints/d4"):
        write_head(tmp_path / tag)
    assert len(find_tags(str(tmp_path))) == 3
    with pytest.raises(UsageError) as caught:
        fastckpt.convert(tmp_path / "base_checkpoints")
    assert "d12, d4" in str(caught.value)
    assert f"fastckpt convert {tmp_path}/base_checkpoints/d12" in str(caught.value)
    with pytest.raises(UsageError, match="base_checkpoints/d12, base_checkpoints/d4, chatsft_checkpoints/d4"):
        fastckpt.convert(tmp_path)


def test_a_directory_without_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(NotACheckpointError, match=r"model_000500\.pt") as caught:
        fastckpt.convert(tmp_path)
    assert caught.value.path == str(tmp_path)
    (tmp_path / "meta_000004.json").write_text("{}")
    with pytest.raises(NotACheckpointError, match="neither model nor optimizer"):
        fastckpt.convert(tmp_path)


def test_one_step(tmp_path: Path) -> None:
    for step in (2, 4):
        write_head(tmp_path / "d4", step)
    done = fastckpt.convert(tmp_path / "d4", step=2)
    assert [Path(item.destination).name for item in done] == ["optim_000002_rank0.fckpt", "model_000002.fckpt"]
    assert not (tmp_path / "d4" / "model_000004.fckpt").exists()
    with pytest.raises(UsageError, match=r"no step 3 \(expected one of 2, 4"):
        fastckpt.convert(tmp_path / "d4", step=3)


def test_wrong_arguments(tmp_path: Path) -> None:
    write_head(tmp_path / "d4")
    for wrong in ({"to": "onnx"}, {"codec": "lzma"}, {"threads": 0}):
        with pytest.raises(UsageError):
            fastckpt.convert(tmp_path / "d4", tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
