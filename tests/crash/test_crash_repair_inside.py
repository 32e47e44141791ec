"""A repair by the parity inside of a file that is killed: damaged or healed, each byte is one of the two, and the next
repair heals what is left.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from crash_lab import TEMP_SUFFIX, Action, Host

torch = pytest.importorskip("torch")

import fastckpt  # noqa: E402


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A file, and the same with damage in its tensor, in its parity, and without its end."""
    path = tmp_path_factory.mktemp("inside") / "f"
    noise = torch.frombuffer(bytearray(random.Random(1).randbytes(300_000)), dtype=torch.uint8)
    fastckpt.save({"w": noise}, path, parity="10%", parity_at="inside", durable=False)
    good = path.read_bytes()
    damaged = bytearray(good[:-9000])
    damaged[40_000:45_000] = bytes(5000)
    damaged[-60_000] ^= 1
    return good, bytes(damaged)


@pytest.mark.parametrize(
    ("version", "action", "every"),
    [
        (1, Action.KILL, 23),
        (2, Action.KILL, 9),
        pytest.param(2, Action.TEAR, 3, marks=pytest.mark.slow),
        pytest.param(2, Action.KILL, 1, marks=pytest.mark.slow),
    ],
)
def test_killed(
    repair_host: tuple[Host, Path], files: tuple[bytes, bytes], version: int, action: Action, every: int
) -> None:
    running, root = repair_host
    good, damaged = files
    for number in range(2, 1000, every):
        shutil.rmtree(root)
        root.mkdir()
        (root / "f").write_bytes(damaged)
        outcome = running.run(root / "f", version, action=action, number=number)
        found = (root / "f").read_bytes()
        if version == 1:
            assert found in (damaged, good)
        whole = damaged.ljust(len(good), b"\0")
        assert all(byte in (bad, right) for byte, bad, right in zip(found, whole, good, strict=False))
        assert len(found) <= len(good)
        assert running.run(root / "f", version).how == "saved"
        assert (root / "f").read_bytes() == good
        assert not [path for path in root.iterdir() if path.name.endswith(TEMP_SUFFIX)]
        if not outcome.hit:
            assert number > 8, "the shim sees too few calls to prove anything"
            return
    raise AssertionError("there is no end of calls")
