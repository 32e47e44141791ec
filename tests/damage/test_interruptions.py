"""Saves that are really interrupted, and what salvage makes of what they leave.

Signals at many moments of `torch.save`, `safetensors.torch.save_file` and `fastckpt.save`, a full file system, and a
limit on the size of a file. What comes back must be exactly the tensors whose bytes are whole.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab
import pytest
import torch
from goods import Good, map_fckpt, map_safetensors, map_torch_zip
from interrupted_save import save, state
from oracle import INTACT, UNVERIFIED, Oracle
from trials import scratch

import fastckpt

SUFFIXES = {"torch": ".pt", "safetensors": ".safetensors", "fckpt": ".fckpt", "fckpt-zstd": ".fckpt"}
MOMENTS = [0.0, 0.02, 0.13, 0.34, 0.5, 0.71, 0.9, 0.97]
FEW_AND_MANY = [pytest.param(MOMENTS[1::3], id="few"), pytest.param(MOMENTS, id="many", marks=pytest.mark.thorough)]


class Host:
    """The process in whose children saves are interrupted."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import interrupted_save; interrupted_save.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def save(self, how: str, path: Path, **options: Any) -> int:
        """Save in a child; how it ended, as `subprocess` says it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"how": how, "path": str(path), **options}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory, where a save takes so long only because of its checksums."""
    with scratch() as path:
        yield path


@pytest.fixture(scope="module")
def references() -> dict[str, Good]:
    """What a save leaves that was not interrupted, and the map of it."""
    tensors = state()
    found = {}
    with scratch() as path:
        for how, suffix in SUFFIXES.items():
            target = path / f"model{suffix}"
            save(how, tensors, str(target))
            form = suffix.removeprefix(".")
            good = found[how] = Good(f"{form}/interrupted", form, target.read_bytes(), crcs=form != "safetensors")
            if how == "torch":
                map_torch_zip(good, tensors)
            elif how == "safetensors":
                map_safetensors(good, tensors)
            else:
                map_fckpt(good, tensors, target)
    return found


@dataclass
class Left:
    """What salvage said about a file that was left."""

    share: float
    """Of the tensors that came back."""
    required: int
    report: Any


def check(good: Good, left: Path, destination: Path) -> Left:
    """What stands comes back, bit for bit, and nothing else does."""
    # Of the moment before: a salvage that finds nothing leaves a file that is there as it is.
    destination.unlink(missing_ok=True)
    damaged = left.read_bytes()
    include = ("unverified",) if good.format == "safetensors" else ()
    case = lab.Case("interrupted", 0, good, damaged, destination.name, include)
    expected = Oracle(good, damaged).expect()
    report = lab.check_salvage(case, left, destination, expected)
    if report is None:
        return Left(0.0, 0, None)
    back = sum(fate.status.value in (INTACT, UNVERIFIED) for fate in report.tensors.values())
    return Left(back / len(good.tensors), sum(v.required for v in expected.verdicts.values()), report)


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["torch", "safetensors"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("moments", FEW_AND_MANY)
def test_signals(
    moments: list[float],
    how: str,
    number: signal.Signals,
    host: Host,
    directory: Path,
    references: dict[str, Good],
) -> None:
    good = references[how]
    moments = [*moments, *(random.Random(number).random() for _ in range(len(moments) // 2))]
    hit = 0
    for attempt, at in enumerate(moments):
        place = directory / f"{attempt}"
        place.mkdir()
        code = host.save(how, place / f"model{SUFFIXES[how]}", signal=number, at=at, size=len(good.raw))
        # A save that was faster than the signal is whole.
        assert code in (-number, 130, 0)
        # Some versions of safetensors write to a temporary file, which a kill leaves.
        (path,) = place.iterdir()
        if how == "torch" and number == signal.SIGINT and path.stat().st_size:
            assert zipfile.is_zipfile(path), "torch closes its archive: it looks whole"
        result = check(good, path, directory / "salvaged.fckpt")
        if path.read_bytes() == good.raw:
            assert result.share == 1
            assert result.report.exit_code == 0
        else:
            assert code != 0
            assert result.report is None or result.report.exit_code != 0 or how == "safetensors"
            hit += 1
        path.unlink()
    if not (how == "safetensors" and number == signal.SIGINT):  # which is noticed when the file is whole
        assert hit, "no save was hit in the middle"


@pytest.mark.parametrize("how", ["fckpt", "fckpt-zstd"])
@pytest.mark.parametrize("moments", FEW_AND_MANY)
def test_kill_of_our_save(
    moments: list[float], how: str, host: Host, directory: Path, references: dict[str, Good]
) -> None:
    """The old file stands; the temporary file has every record that was finished."""
    good = references[how]
    path = directory / "model.fckpt"
    shares = []
    for attempt, at in enumerate(moments):
        path.write_bytes(good.raw)
        assert host.save(how, path, signal=signal.SIGKILL, at=at) == -signal.SIGKILL
        assert path.read_bytes() == good.raw
        left = [name for name in directory.iterdir() if name.name.startswith(".model.fckpt.")]
        assert len(left) == 1
        result = check(good, left[0], directory / f"salvaged {attempt}.fckpt")
        shares.append(result.share)
        left[0].unlink()
    assert any(share > 0 for share in shares)
    assert any(share < 1 for share in shares)


@pytest.mark.parametrize("how", ["fckpt", "fckpt-zstd"])
def test_ctrl_c_in_our_save(how: str, host: Host, directory: Path, references: dict[str, Good]) -> None:
    path = directory / "model.fckpt"
    path.write_bytes(references[how].raw)
    for at in (0.0, 0.3, 0.8):
        assert host.save(how, path, signal=signal.SIGINT, at=at) == 130
        assert path.read_bytes() == references[how].raw
        assert [name.name for name in directory.iterdir() if name.is_file()] == ["model.fckpt"]


@pytest.fixture
def full(directory: Path) -> Iterator[Path]:
    """A file system with room for 20 MB."""
    place = directory / "full"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_disk_full(how: str, full: Path, directory: Path, host: Host, references: dict[str, Good]) -> None:
    assert host.save(how, full / f"model{SUFFIXES[how]}") == 1
    left = list(full.iterdir())
    if how == "safetensors" and not left:
        return  # Newer versions take back what they could not finish.
    assert 0 < left[0].stat().st_size <= 20 * 2**20
    result = check(references[how], left[0], directory / "salvaged.fckpt")
    assert 0.2 < result.share < 1
    assert result.report.exit_code == 3


def test_disk_full_in_our_save(full: Path, host: Host) -> None:
    path = full / "model.fckpt"
    path.write_bytes(b"old")
    assert host.save("fckpt", path) == 3
    assert path.read_bytes() == b"old"
    assert [name.name for name in full.iterdir()] == ["model.fckpt"]


@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_limit_on_the_size(how: str, directory: Path, host: Host, references: dict[str, Good]) -> None:
    """As on a full file system, without the rights to make one: the file ends at any byte."""
    whole = len(references[how].raw)
    for limit in (100, 1_000_003, whole // 2 + 1, whole - 1):
        place = directory / f"{limit}"
        place.mkdir()
        assert host.save(how, place / f"model{SUFFIXES[how]}", limit=limit) == 1
        left = list(place.iterdir())
        if how == "safetensors" and not left:
            continue
        assert left[0].stat().st_size <= limit
        result = check(references[how], left[0], directory / "salvaged.fckpt")
        assert result.share == pytest.approx(limit / whole, abs=0.15)


def test_killed_model_is_completed_from_the_step_before(
    directory: Path, host: Host, references: dict[str, Good]
) -> None:
    """The way back for a model, whose load is strict: the rest is taken from an older step."""
    good = references["torch"]
    before = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state().items()}
    torch.save(before, directory / "before.pt")
    (directory / "killed").mkdir()
    path = directory / "killed" / "model.pt"
    for at in (0.5, 0.4, 0.3, 0.2):
        host.save("torch", path, signal=signal.SIGKILL, at=at, size=len(good.raw))
        if path.stat().st_size < len(good.raw):
            break
    else:
        pytest.skip("the machine saves faster than it can be interrupted")
    report = fastckpt.salvage(path, directory / "back.pt", backfill=directory / "before.pt")
    assert report.complete
    assert report.exit_code == 1
    lost = {name for name, fate in report.tensors.items() if fate.status.value != INTACT}
    assert lost
    assert set(report.backfilled) == lost
    back = torch.load(directory / "back.pt", weights_only=True)
    assert list(back) == list(good.tensors)
    for name, tensor in back.items():
        source = before[name] if name in lost else state()[name]
        assert torch.equal(tensor.view(torch.uint8), source.view(torch.uint8)), name
