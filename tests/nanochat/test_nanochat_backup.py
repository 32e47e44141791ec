"""`fastckpt.nanochat.backup`: verified copies, finished after a kill, and what is never overwritten."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from nanochat_builds import BUILDS, fill, head_model, meta_of, write_head, write_step
from nanochat_finders import contents

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError, NotACheckpointError, OutOfSpaceError, UsageError
from fastckpt.io import cloning
from fastckpt.nanochat import backing_up
from fastckpt.nanochat.backing_up import backup

MODEL = head_model()


@pytest.fixture
def tag(tmp_path: Path) -> Path:
    """Steps 2, 4 and 1000000 with two ranks."""
    BUILDS["steps"](tmp_path / "base_checkpoints" / "d12")
    return tmp_path / "base_checkpoints" / "d12"


def ways(done: Any) -> set[str]:
    return {file.how for files in done.steps.values() for file in files}


def flip(path: Path, part: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(part)] ^= 1
    path.write_bytes(raw)


# --- what a backup is ---


@pytest.mark.parametrize("name", BUILDS)
def test_every_file_of_a_step_byte_for_byte(name: str, tmp_path: Path) -> None:
    BUILDS[name](tmp_path / "d12")
    before = contents(tmp_path / "d12")
    done = backup(tmp_path / "d12", tmp_path / "copy")
    copied = contents(tmp_path / "copy")
    left_out = {step.step for step in done.left_out}
    assert copied == {n: raw for n, raw in before.items() if int(n.split("_")[1].split(".")[0]) not in left_out}
    assert contents(tmp_path / "d12") == before
    # Of several ranks nanochat kept only the first until November 2025: that is a whole step.
    assert not left_out
    again = backup(tmp_path / "d12", tmp_path / "copy")
    assert ways(again) == {"already there"}


def test_time_and_permissions_are_kept(tag: Path, tmp_path: Path) -> None:
    model = tag / "model_000002.pt"
    os.utime(model, (1_700_000_000, 1_700_000_000))
    model.chmod(0o640)
    backup(tag, tmp_path / "copy", share=False)
    copy = (tmp_path / "copy" / "model_000002.pt").stat()
    assert (copy.st_mtime, copy.st_mode & 0o777) == (1_700_000_000, 0o640)
    assert copy.st_ino != model.stat().st_ino


def test_one_step(tag: Path, tmp_path: Path) -> None:
    done = backup(tag, tmp_path / "copy", step=4)
    assert list(done.steps) == [4]
    assert {name.split("_")[1][:6] for name in contents(tmp_path / "copy")} == {"000004"}


def test_the_model_comes_last(tag: Path, tmp_path: Path) -> None:
    done = backup(tag, tmp_path / "copy")
    for files in done.steps.values():
        assert [os.path.basename(file.source)[:5] for file in files] == ["meta_", "optim", "optim", "model"]


def test_a_symbolic_link_is_followed(tag: Path, tmp_path: Path) -> None:
    model = tag / "model_000002.pt"
    raw = model.read_bytes()
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    backup(tag, tmp_path / "copy")
    copy = tmp_path / "copy" / "model_000002.pt"
    assert not copy.is_symlink()
    assert copy.read_bytes() == raw


# --- sharing ---


def test_without_reflinks_only_fckpt_files_are_linked(
    tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, request: int, other: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    fastckpt.convert(tag, step=4, replace=True)
    done = backup(tag, tmp_path / "copy")
    for step, files in done.steps.items():
        for file in files:
            linked = os.path.samefile(file.source, file.destination)
            assert linked == (file.how == "hard link") == file.source.endswith(".fckpt"), step
    # torch.save writes in place, fastckpt never does: a new save leaves the backup as it is.
    before = contents(tmp_path / "copy")
    torch.save(head_model(), tag / "model_000002.pt")
    fastckpt.save({"a": torch.ones(3)}, tag / "model_000004.fckpt")
    assert contents(tmp_path / "copy") == before


def test_asked_for_copies_nothing_is_shared(tag: Path, tmp_path: Path) -> None:
    fastckpt.convert(tag, replace=True)
    assert ways(backup(tag, tmp_path / "copy", share=False)) == {"copy"}


@pytest.fixture
def reflinks(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks."""
    image, place = tmp_path / "image", tmp_path / "xfs"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no XFS can be made here: {error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_reflinks(tag: Path, reflinks: Path) -> None:
    shutil.copytree(tag, reflinks / "d12")
    before = contents(tag)
    assert ways(backup(reflinks / "d12", reflinks / "copy")) == {"reflink"}
    for path in (reflinks / "d12").iterdir():
        path.write_bytes(b"gone")
    assert contents(reflinks / "copy") == before


# --- damage ---


@pytest.mark.parametrize("what", ["model", "optim", "meta", "cut"])
def test_a_damaged_step_is_left_out_and_named(what: str, tag: Path, tmp_path: Path) -> None:
    if what == "model":
        flip(tag / "model_000004.pt", MODEL["lm_head.weight"].numpy().tobytes())
    elif what == "optim":
        flip(tag / "optim_000004_rank1.pt", fill(2, 8, 8, seed=71).numpy().tobytes())
    elif what == "meta":
        (tag / "meta_000004.json").write_text('{"step"')
    else:
        path = tag / "model_000004.pt"
        path.write_bytes(path.read_bytes()[:-100])
    done = backup(tag, tmp_path / "copy")
    assert list(done.steps) == [2, 1000000]
    (left,) = done.left_out
    assert (left.step, left.damaged) == (4, True)
    assert "000004" in " ".join(left.reasons)
    assert not list((tmp_path / "copy").glob("*000004*"))


def test_a_step_that_lacks_a_rank_is_left_out_but_not_damaged(tag: Path, tmp_path: Path) -> None:
    (tag / "optim_000004_rank0.pt").unlink()
    (left,) = backup(tag, tmp_path / "copy").left_out
    assert (left.step, left.damaged) == (4, False)


def test_a_disk_that_returns_other_bytes(tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def rotting(fd: int) -> None:
        if "copy" in os.readlink(f"/proc/self/fd/{fd}") and "model_000004" in os.readlink(f"/proc/self/fd/{fd}"):
            os.pwrite(fd, b"\xff", 700)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", rotting)
    done = backup(tag, tmp_path / "copy", share=False)
    (left,) = done.left_out
    assert left.step == 4
    assert "what was read back is not what was copied" in left.reasons[0]
    assert not (tmp_path / "copy" / "model_000004.pt").exists()


def test_a_step_that_is_saved_anew_meanwhile(tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied is what was verified, and never the parts of two saves."""
    judge = backing_up.step_state

    def slow(step: Any, **named: Any) -> Any:
        state = judge(step, **named)
        if step.number == 4:
            torch.save(head_model(), tag / "new")
            os.replace(tag / "new", tag / "model_000004.pt")
        return state

    with monkeypatch.context() as patch:
        patch.setattr(backing_up, "step_state", slow)
        done = backup(tag, tmp_path / "copy")
    (left,) = done.left_out
    assert (left.step, left.damaged) == (4, False)
    assert "saved anew" in left.reasons[0]
    assert not list((tmp_path / "copy").glob("*000004*"))


# --- what is there already ---


def test_what_is_damaged_in_the_backup_is_replaced(tag: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    backup(tag, copy)
    before = contents(copy)
    flip(copy / "model_000002.pt", MODEL["lm_head.weight"].numpy().tobytes())
    (copy / "optim_000002_rank0.pt").write_bytes(b"")
    (copy / "meta_000002.json").write_text("{")
    (copy / "model_000004.pt").write_bytes((copy / "model_000004.pt").read_bytes()[:500])
    done = backup(tag, copy)
    assert contents(copy) == before
    assert sum(file.how != "already there" for files in done.steps.values() for file in files) == 4


@pytest.mark.parametrize("name", ["model_000004.pt", "optim_000004_rank1.pt", "meta_000004.json"])
def test_another_whole_file_is_never_overwritten(name: str, tag: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_step(other, 4, {"lm_head.weight": torch.ones(3)}, {1: {"a": torch.ones(3)}}, meta_of(5))
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(other / name, copy / name)
    done = backup(tag, copy)
    (left,) = done.left_out
    assert (left.step, list(done.steps)) == (4, [2, 1000000])
    assert name in left.reasons[0]
    assert [path.name for path in copy.glob("*000004*")] == [name]
    assert (copy / name).read_bytes() == (other / name).read_bytes()


# --- where to ---


def test_destinations_that_are_refused(tag: Path, tmp_path: Path) -> None:
    for name in ("d12_backup", "d100"):
        with pytest.raises(UsageError, match="nanochat could load this directory"):
            backup(tag, tag.parent / name)
        assert not (tag.parent / name).exists()
    (tmp_path / "link").symlink_to(tag)
    for same in (tag, tmp_path / "link"):
        with pytest.raises(UsageError, match="the directory itself"):
            backup(tag, same)
    with pytest.raises(UsageError, match="no step 5"):
        backup(tag, tmp_path / "copy", step=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpointError):
        backup(tmp_path / "empty", tmp_path / "copy")
    with pytest.raises(UsageError, match="subdirectories"):
        backup(tag.parent, tmp_path / "copy")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointIOError):
        backup(tag, tmp_path / "file")
    assert not (tmp_path / "copy").exists()


# --- killed, full, unreadable ---


def test_a_full_disk_leaves_whole_files_and_is_gone_on_with(tmp_path: Path) -> None:
    tag = write_head(tmp_path / "d12", 2)
    write_head(tag, 4)
    needed = sum(len(raw) for raw in contents(tag).values())
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={needed * 3 // 4 // 4096 * 4}k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(OutOfSpaceError):
            backup(tag, place)
        there = contents(place)
        assert there == {name: contents(tag)[name] for name in there}
        assert {name for name in contents(tag) if "000002" in name} <= there.keys()
        assert "model_000004.pt" not in there
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        backup(tag, place)
        assert contents(place) == contents(tag)
    finally:
        subprocess.run(["umount", str(place)], check=True)


KILLED = """
import itertools, os, signal, sys
from fastckpt.nanochat.backing_up import backup
at, count = int(sys.argv[3]), itertools.count(1)
def killing(call):
    def wrapped(*args, **named):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)
    return wrapped
os.rename, os.link, os.fsync = killing(os.rename), killing(os.link), killing(os.fsync)
backup(sys.argv[1], sys.argv[2], threads=1)
"""


@pytest.mark.thorough
def test_killed_anywhere_and_finished(tmp_path: Path) -> None:
    tag = write_head(tmp_path / "d12", 2)
    fastckpt.convert(write_head(tag, 4), step=4, replace=True)
    wanted = contents(tag)
    for at in itertools.count(1):
        copy = tmp_path / f"copy{at}"
        done = forked.run("-c", KILLED, str(tag), str(copy), str(at))
        there = {path.name: path.read_bytes() for path in copy.glob("[!.]*")}
        assert there == {name: wanted[name] for name in there}
        for name in there:
            if name.startswith("model"):
                assert {n for n in wanted if name[6:12] in n} <= there.keys()
        backup(tag, copy)
        # A temp file that a kill left is gone as well.
        assert contents(copy) == wanted
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert at > 12


def test_an_unreadable_source(tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening: Callable[..., int] = os.open

    def refuse(path: Any, flags: int, *args: Any, **named: Any) -> int:
        if isinstance(path, str) and path.endswith("d12/model_000004.pt"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opening(path, flags, *args, **named)

    monkeypatch.setattr(os, "open", refuse)
    done = backup(tag, tmp_path / "copy")
    assert list(done.steps) == [2, 1000000]
    assert "Permission denied" in done.left_out[0].reasons[0]


def test_a_file_that_shrinks_while_it_is_copied(tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = cloning.transfer

    def shrinking(moves: Any, *, sink: int, **named: Any) -> Any:
        if sink >= 0:
            os.truncate(f"/proc/self/fd/{named['source']}", 100)
        return transfer(moves, sink=sink, **named)

    monkeypatch.setattr(cloning, "transfer", shrinking)
    with pytest.raises(CheckpointIOError, match="the file ends there"):
        backup(tag, tmp_path / "copy", share=False)
    assert not list((tmp_path / "copy").glob("*"))


@pytest.mark.parametrize("only", [None, 4])
def test_a_step_without_an_optimizer_is_copied_and_said(
    only: int | None, tag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backup", str(tag), str(tmp_path / "copy"), *([] if only is None else ["--step", str(only)])]
    assert main(words) == 0
    assert "no optimizer" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "copy")
    for path in tag.glob("optim_000004*"):
        path.unlink()
    done = backup(tag, tmp_path / "copy", step=only)
    assert 4 in done.steps
    assert done.no_optimizer == [4]
    assert main(words) == 0
    assert "step 4: there is no optimizer file, as other steps have one; it is copied" in capsys.readouterr().out
    for path in tag.glob("optim_*"):
        path.unlink()
    assert backup(tag, tmp_path / "models").no_optimizer == []
