"""nanochat never sees half a step, whenever it looks and wherever a run ends; running it again finishes it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import forked
import pytest
from nanochat_builds import BUILDS, write_head
from nanochat_finders import Watch, contents, find_last_step

import fastckpt
from fastckpt.conversion.result import Conversion

HERE = Path(__file__).parent


@pytest.fixture
def tag(tmp_path: Path) -> Path:
    """``d12`` with two steps of two ranks, beside a smaller model."""
    (tmp_path / "base_checkpoints" / "d4").mkdir(parents=True)
    directory = tmp_path / "base_checkpoints" / "d12"
    for step in (2, 4):
        write_head(directory, step, 2)
    return directory


@pytest.mark.parametrize("replace", [False, True])
def test_at_every_change_in_place(tag: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    before = contents(tag)
    watch = Watch(tag)
    watch.on_every_change(monkeypatch)
    fastckpt.convert(tag, replace=replace)
    assert watch.seen == ([4, None] if replace else [4])
    if not replace:
        for path in sorted(tag.glob("*.pt")):
            path.unlink()
    watch.seen.clear()
    fastckpt.convert(tag, replace=replace)
    assert watch.seen == [None, 2, 4]
    assert {name: data for name, data in contents(tag).items() if not name.endswith(".fckpt")} == before


def test_at_every_change_to_and_from_elsewhere(tag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tag)
    watch = Watch(tag)
    with monkeypatch.context() as patch:
        watch.on_every_change(patch)
        fastckpt.convert(tag, tmp_path / "kept", replace=True)
    assert not contents(tag)
    with monkeypatch.context() as patch:
        watch.on_every_change(patch)
        fastckpt.convert(tmp_path / "kept", tag)
    assert contents(tag) == before


def test_seen_by_another_thread(tag: Path) -> None:
    watch = Watch(tag)
    done = threading.Event()
    failures: list[BaseException] = []

    def look_on() -> None:
        while not done.is_set():
            try:
                watch.look()
            except FileNotFoundError:
                continue  # A file that was listed was removed since.
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        for _ in range(2):
            fastckpt.convert(tag)
            for path in sorted(tag.glob("*.pt")):
                path.unlink()  # By name, so the models go first.
            fastckpt.convert(tag)
            for path in tag.glob("*.fckpt"):
                path.unlink()
    finally:
        done.set()
        thread.join()
    assert not failures, failures[0]


# --- killed --------------------------------------------------------------------------------


def run_killed(source: Path, destination: Path, *, replace: bool, at: int, when: str) -> bool:
    """Whether the run was killed; False if it made fewer changes."""
    request = {"source": str(source), "destination": str(destination), "replace": replace, "at": at, "when": when}
    done = forked.run(str(HERE / "killed_convert.py"), json.dumps(request))
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@cache
def one_step() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """As nanochat writes it, and converted."""
    with TemporaryDirectory() as name:
        write_head(Path(name, "d12"), 4, 2)
        pt = contents(Path(name, "d12"))
        fastckpt.convert(Path(name, "d12"), replace=True, durable=False)
        return pt, contents(Path(name, "d12"))


def small_tag(tmp_path: Path, *, to: str) -> tuple[Path, dict[str, bytes], Watch]:
    """A new tag of one step, with what it will hold when converted; its watch knows the ``.pt`` files."""
    pt, own = one_step()
    directory = tmp_path / "base_checkpoints" / "d12"
    shutil.rmtree(directory.parent, ignore_errors=True)
    directory.mkdir(parents=True)
    for file, content in (pt if to == "fckpt" else own).items():
        (directory / file).write_bytes(content)
    return directory, own if to == "fckpt" else pt, Watch(directory, pt)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("to", ["fckpt", "pt"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_change(tmp_path: Path, to: str, when: str) -> None:
    for at in itertools.count(1):
        directory, wanted, watch = small_tag(tmp_path, to=to)
        if not run_killed(directory, directory, replace=True, at=at, when=when):
            break
        watch.look()
        if contents(directory) != wanted:
            fastckpt.convert(directory, replace=True)
        assert contents(directory) == wanted, at
    assert at == 7  # Three renames and three removals.


@pytest.mark.parametrize("replace", [False, True])
def test_killed_on_the_way_to_another_directory(tmp_path: Path, replace: bool) -> None:
    kept = tmp_path / "kept"
    for at in (1, 3, 4, 5, 6, 7, 8):
        directory, wanted, watch = small_tag(tmp_path, to="fckpt")
        shutil.rmtree(kept, ignore_errors=True)
        killed = run_killed(directory, kept, replace=replace, at=at, when="after")
        assert killed is (replace or at <= 4)
        watch.look()
        if contents(directory):
            fastckpt.convert(directory, kept, replace=replace)
        assert contents(kept) == wanted
        assert len(contents(directory)) == (0 if replace else 4)


@pytest.mark.thorough
def test_killed_at_random_moments(tmp_path: Path) -> None:
    random.seed(7)
    for to in ("fckpt", "pt") * 4:
        directory, wanted, watch = small_tag(tmp_path, to=to)
        request = {"source": str(directory), "destination": str(directory), "replace": True}
        process = forked.Forked(str(HERE / "killed_convert.py"), json.dumps(request))
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.12))
        process.kill()
        process.communicate()
        watch.look()
        if {name for name in contents(directory) if not name.startswith(".")} != wanted.keys():
            fastckpt.convert(directory, replace=True)
        assert contents(directory) == wanted


# --- interrupted ---------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["fckpt", "pt"])
@pytest.mark.parametrize("name", ["pwrite", "fsync", "rename", "unlink"])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str) -> None:
    for at in itertools.count(1):
        directory, wanted, watch = small_tag(tmp_path, to=to)
        call: Callable[..., object] = getattr(os, name)
        calls = itertools.count(1)

        def interrupted(*args: object, call=call, calls=calls, at=at, **named: object) -> object:  # type: ignore[no-untyped-def]
            if next(calls) == at:
                raise KeyboardInterrupt
            return call(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupted)
            try:
                fastckpt.convert(directory, replace=True)
                break
            except KeyboardInterrupt:
                pass
        watch.look()
        assert not list(directory.glob(".*"))
        fastckpt.convert(directory, to=to, replace=True)  # type: ignore[arg-type]
        assert contents(directory) == wanted
        if at > 3 and name == "pwrite":
            break
    assert at > 3


# --- what replace may delete ---------------------------------------------------------------


def test_nothing_is_deleted_when_a_written_file_does_not_verify(tag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastckpt.conversion import nanochat_directory as module
    from fastckpt.errors import DamagedError

    before = contents(tag)
    convert_file = module.convert_file

    def rotting(source: str, destination: str, *request: Any, **named: Any) -> Conversion:
        result = convert_file(source, destination, *request, **named)
        if "optim_000004_rank1" in destination:
            with open(destination, "r+b") as file:
                file.seek(3 * 4096 + 5)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes((byte[0] ^ 1,)))
        return result

    monkeypatch.setattr(module, "convert_file", rotting)
    with pytest.raises(DamagedError, match="source was kept"):
        fastckpt.convert(tag, replace=True)
    left = contents(tag)
    assert {name for name in before if name not in left} == {n for n in before if "000002" in n and n.endswith(".pt")}
    assert find_last_step(tag) == 4


def test_the_time_of_the_directory_stays(tmp_path: Path) -> None:
    """Without a d<number>, nanochat loads the directory that was changed last."""
    for number, name in enumerate(("old", "new")):
        BUILDS["sft 2025"](tmp_path / name)
        os.utime(tmp_path / name, (1_700_000_000 + number,) * 2)
    watch = Watch(tmp_path / "new")
    fastckpt.convert(tmp_path / "old")
    watch.look()
    assert (tmp_path / "old" / "model_000700.fckpt").exists()
