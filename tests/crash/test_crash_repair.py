"""A repair that is killed, or of which a call fails, at each of its calls: the damaged file or the healed one is there,
the seal is one that proves it, and the next repair heals.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_lab import TEMP_SUFFIX, Action, Host, Outcome

import fastckpt

GOOD = random.Random(1).randbytes(300_000)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A damaged file, and its seal, of which a leaf of parity is damaged, too."""
    directory = tmp_path_factory.mktemp("sealed")
    (directory / "f").write_bytes(GOOD)
    sums = Path(fastckpt.seal(directory / "f", parity="10%").sums)
    parity = fastckpt.load(sums)["P"].numpy().tobytes()
    raw = bytearray(sums.read_bytes())
    raw[raw.index(parity) + 9] ^= 1
    (directory / "whole-sums").write_bytes(sums.read_bytes())
    sums.write_bytes(raw)
    (directory / "f").write_bytes(GOOD[:40_000] + bytes(5000) + GOOD[45_000:])
    return directory


def at_every_call(
    repair_host: tuple[Host, Path], sealed: Path, version: int, action: Action, every: int, error: int = 0
) -> Iterator[Outcome]:
    """Repair with the action at every so many-th call, until there are no more."""
    running, root = repair_host
    for number in range(1 + (every > 1), 1000, every):
        shutil.rmtree(root)
        shutil.copytree(sealed, root)
        outcome = running.run(root / "f", version, action=action, number=number, error=error)
        yield outcome
        if not outcome.hit:
            assert outcome.how == "saved", outcome
            assert number > 8, "the shim sees too few calls to prove anything"
            return
    raise AssertionError("there is no end of calls")


def check(root: Path, sealed: Path, version: int) -> None:
    """Old or new, each whole, and nothing of it is lost; or, healed where it is, only what was damaged differs."""
    damaged, seal = (sealed / "f").read_bytes(), (sealed / "f.fckpt-sums").read_bytes()
    found = (root / "f").read_bytes()
    if version == 1:
        assert found in (damaged, GOOD)
    assert all(byte in (bad, good) for byte, bad, good in zip(found, damaged, GOOD, strict=True))
    assert (root / "f.fckpt-sums").read_bytes() in (seal, (sealed / "whole-sums").read_bytes())
    for kept in root.glob("f.damaged*"):
        assert kept.read_bytes() == damaged
    assert len(list(root.glob("f.damaged*"))) <= 1


@pytest.mark.parametrize(
    ("version", "action", "every"),
    [
        (1, Action.KILL, 17),
        (2, Action.TEAR, 29),
        pytest.param(1, Action.KILL, 1, marks=pytest.mark.slow),
        pytest.param(2, Action.KILL, 7, marks=pytest.mark.slow),
        pytest.param(1, Action.TEAR, 5, marks=pytest.mark.slow),
    ],
)
def test_killed(repair_host: tuple[Host, Path], sealed: Path, version: int, action: Action, every: int) -> None:
    """At each of its calls in the long form; else at some of them."""
    running, root = repair_host
    for _ in at_every_call(repair_host, sealed, version, action, every):
        check(root, sealed, version)
        assert running.run(root / "f", version).how == "saved"
        check(root, sealed, version)
        assert (root / "f").read_bytes() == GOOD
        assert (root / "f.fckpt-sums").read_bytes() == (sealed / "whole-sums").read_bytes()
        assert not [path for path in root.iterdir() if path.name.endswith(TEMP_SUFFIX)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("every", [17, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("action", [Action.FAIL, Action.FAIL_FROM])
def test_failing(repair_host: tuple[Host, Path], sealed: Path, error: int, action: Action, every: int) -> None:
    """One call, or all from one on: a typed error, and no temporary file where it can be removed."""
    _, root = repair_host
    for outcome in at_every_call(repair_host, sealed, 1, action, every, error):
        check(root, sealed, 1)
        assert outcome.how in ("saved", "typed error"), outcome
        if action is Action.FAIL:
            assert not [path for path in root.iterdir() if path.name.endswith(TEMP_SUFFIX)], outcome


@pytest.mark.thorough
@pytest.mark.parametrize("every", [13, pytest.param(3, marks=pytest.mark.slow)])
def test_interrupted(repair_host: tuple[Host, Path], sealed: Path, every: int) -> None:
    _, root = repair_host
    for outcome in at_every_call(repair_host, sealed, 1, Action.INTERRUPT, every):
        check(root, sealed, 1)
        assert outcome.how in ("saved", "KeyboardInterrupt"), outcome
        assert not [path for path in root.iterdir() if path.name.endswith(TEMP_SUFFIX)], outcome
