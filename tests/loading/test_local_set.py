"""A directory in a store that is one checkpoint is loaded as one here; any other is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from states import assert_same

import fastckpt
from fastckpt.errors import FastckptError, NotACheckpointError, UsageError
from fastckpt.remote.path import located

STATE = {f"layers.{n}.w": torch.full((1000,), float(n)) for n in range(6)}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A model in shards with an index."""
    fastckpt.save(STATE, tmp_path / "model.fckpt")
    fastckpt.convert(tmp_path / "model.fckpt", tmp_path / "hf", shard_size=10_000)
    return tmp_path / "hf"


def uploaded(directory: Path, name: str) -> str:
    pytest.importorskip("fsspec")
    url = f"memory://sets/{name}/"
    for path in directory.iterdir():
        place = located(url).joined(path.name)
        place.store.put(place.key, path.read_bytes())
    return url


def test_a_model_in_shards(here: Path) -> None:
    url = uploaded(here, "whole")
    assert_same(fastckpt.load(url), fastckpt.load(here))
    assert_same(fastckpt.load(url, keys="layers.3.*"), {"layers.3.w": STATE["layers.3.w"]})
    into = {name: torch.zeros(1000) for name in STATE}
    fastckpt.load_into(into, url)
    assert_same(into, STATE)


def test_what_is_wrong_is_said_of_the_url(here: Path) -> None:
    next(here.glob("*-00002-*")).unlink()
    url = uploaded(here, "cut")
    with pytest.raises(FastckptError) as error:
        fastckpt.load(url)
    assert url in str(error.value)


def test_an_error_about_no_file_names_none(here: Path) -> None:
    url = uploaded(here, "asked")
    with pytest.raises(UsageError) as error:
        fastckpt.load(url, threads=0)
    assert error.value.path is None


def test_another_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.fckpt").write_bytes(b"x")
    with pytest.raises(NotACheckpointError, match="this is a directory") as error:
        fastckpt.load(uploaded(tmp_path, "other"))
    assert "local directory" in str(error.value)
