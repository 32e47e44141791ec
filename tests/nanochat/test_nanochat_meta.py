"""A meta file is read in one way, and never more of it than such a file has."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from nanochat_builds import write_head

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.keeping.retention import Retention
from fastckpt.nanochat import load_checkpoint
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.meta import MAX_META_SIZE, read_meta
from fastckpt.nanochat.steps import read_steps
from fastckpt.plotting.survey import measure_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two steps; the meta file of the second says that it has 20 GB."""
    write_head(tmp_path, 2)
    write_head(tmp_path, 4)
    with open(tmp_path / "meta_000004.json", "r+b") as file:
        file.truncate(20 * 10**9)
    return tmp_path


def test_a_huge_meta_file_is_not_read_whole(directory: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedError, match="no such file is"):
        read_meta(str(directory / "meta_000004.json"))
    assert not step_state(read_steps(str(directory))[4], verify=False).complete
    assert [decision.keep for decision in Retention(keep_last=1, keep_best="val_bpb").plan(directory)] == [True, True]
    with pytest.raises(DamagedError, match="no such file is"):
        load_checkpoint(directory, 4, "cpu")
    with pytest.raises(DamagedError, match="no such file is"):
        fastckpt.convert(directory, directory.parent / "other")
    assert measure_directory(str(directory))["steps"][1]["val_bpb"] is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * MAX_META_SIZE // 1024


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b'{"step": 5,', "not whole JSON"), (b"[]", "dict"), (b"\xff", "not whole JSON")],
)
def test_what_is_no_meta_file(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "meta_000005.json"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=message):
        read_meta(str(path))
