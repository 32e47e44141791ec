"""What parity a sums file has, byte for byte; and the example in SPEC.md."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_parity import PRODUCTS, parity_of

import fastckpt
from fastckpt import _core
from fastckpt.constants import LEAF_SIZE, SEAL_DIGESTS, SEAL_DIGESTS_COPY
from fastckpt.errors import DamagedError, MismatchError, OutOfSpaceError, UnsupportedVersionError, UsageError
from fastckpt.saving import save as save_module
from fastckpt.seals import encoded as encoding
from fastckpt.seals.names import sums_path
from fastckpt.seals.parity import PARITIES, Parity
from fastckpt.seals.sums import read_sums

SIZES = [
    0,
    1,
    LEAF_SIZE - 1,
    LEAF_SIZE,
    LEAF_SIZE + 1,
    63 * LEAF_SIZE,
    64 * LEAF_SIZE,
    65 * LEAF_SIZE,
    200 * LEAF_SIZE + 5,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", PARITIES)
def test_the_rows(tmp_path: Path, size: int, share: str) -> None:
    path, raw = tmp_path / "any.gguf", random.Random(size).randbytes(size)
    path.write_bytes(raw)
    sealed = fastckpt.seal(path, parity=share)
    assert (sealed.parity, sealed.is_new) == (share, True)
    depth, rows = PARITIES[share]
    groups = (len(digests := _core.leaf_digests(raw)) // 8 + depth - 1) // depth
    expected = parity_of(raw, groups, rows)
    state = fastckpt.load(sealed.sums)
    assert list(state) == ["P", SEAL_DIGESTS, "Q", SEAL_DIGESTS_COPY]
    for row, name in enumerate("PQ"):
        np.testing.assert_array_equal(state[name].numpy(), expected[row])
    assert state[SEAL_DIGESTS].numpy().tobytes() == digests
    assert state[SEAL_DIGESTS_COPY].numpy().tobytes() == bytes(LEAF_SIZE) + digests
    with fastckpt.open(sealed.sums) as sums:
        assert {name: sums.metadata["seal"][name] for name in "km"} == {"k": depth, "m": rows}
    assert fastckpt.verify(sealed.sums).verdict == "intact"


def test_parity_that_does_not_fit_into_memory_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random.Random(1).randbytes(500 * LEAF_SIZE + 1)
    for name in ("a", "b"):
        (tmp_path / name / "f").parent.mkdir()
        (tmp_path / name / "f").write_bytes(raw)
    fastckpt.seal(tmp_path / "a/f", parity="10%")
    monkeypatch.setattr(encoding, "_IN_MEMORY", 7 * 2 * LEAF_SIZE)
    told: list[int] = []
    fastckpt.seal(tmp_path / "b/f", parity="10%", progress=told.append)
    assert Path(sums_path(tmp_path / "a/f")).read_bytes() == Path(sums_path(tmp_path / "b/f")).read_bytes()
    assert told == sorted(told)
    assert told[-1] == len(raw)
    assert sorted(os.listdir(tmp_path / "b")) == ["f", "f.fckpt-sums"]


def test_parity_can_be_added_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(300_000))
    assert fastckpt.seal(path).parity is None
    assert fastckpt.seal(path, parity="3%").is_new
    assert not fastckpt.seal(path, parity="3%").is_new
    assert not fastckpt.seal(path).is_new
    assert fastckpt.seal(path).parity == "3%"
    assert fastckpt.seal(path, parity="10%").is_new
    sealed = fastckpt.seal(path, parity="3%", sha256=True)
    assert sealed.is_new
    assert sealed.sha256 is not None
    path.write_bytes(os.urandom(400_000))
    with pytest.raises(MismatchError):
        fastckpt.seal(path, parity="3%")
    assert fastckpt.seal(path, update=True).parity == "3%"


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(9))
    for share in ("4%", "", "3"):
        with pytest.raises(UsageError, match="parity"):
            fastckpt.seal(tmp_path / "f", parity=share)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(("k", "m"), [(0, 2), (256, 2), (64, 0), (64, 4), (-1, 1), (64, None), ("64", 2)])
def test_parity_that_there_cannot_be(tmp_path: Path, k: object, m: object) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(9))
    fastckpt.seal(path)
    with fastckpt.open(sums_path(path)) as sums:
        state, says = fastckpt.load(sums_path(path)), dict(sums.metadata["seal"])
    fastckpt.save(state, sums_path(path) + ".fckpt", metadata={"seal": {**says, "k": k, "m": m}})
    shutil.move(sums_path(path) + ".fckpt", sums_path(path))
    with pytest.raises((UnsupportedVersionError, fastckpt.errors.DamagedError)):
        read_sums(sums_path(path), threads=1)


def test_digests_are_read_from_their_copy(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(300_000))
    fastckpt.seal(path, parity="3%")
    beside = Path(sums_path(path))
    expected = bytes(read_sums(str(beside), threads=1).digests)
    raw = bytearray(beside.read_bytes())
    at = raw.index(expected)
    assert raw.rindex(expected) > at + LEAF_SIZE
    raw[at + 5] ^= 1
    beside.write_bytes(raw)
    assert bytes(read_sums(str(beside), threads=1).digests) == expected
    assert not fastckpt.verify(beside).ok


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(50 * LEAF_SIZE))
    fastckpt.seal(path)
    before = Path(sums_path(path)).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding, "_IN_MEMORY", 0)
    monkeypatch.setattr(encoding, "transfer", full)
    with pytest.raises(OutOfSpaceError):
        fastckpt.seal(path, parity="10%")
    assert Path(sums_path(path)).read_bytes() == before


def test_the_share_of_a_large_file() -> None:
    """3 % is what it says: at most 3.3 % of the size, and a burst of 3 % costs no group more than two leaves."""
    for size in (10**9, 10**11):
        parity = Parity(64, 2)
        leaves = -(-size // LEAF_SIZE)
        sums = 2 * parity.groups(size) * LEAF_SIZE + 16 * leaves
        assert sums <= 0.033 * size
        assert (2 * parity.groups(size) - 1) * LEAF_SIZE >= 0.03 * size


def test_the_example_in_the_specification() -> None:
    spec = (Path(fastckpt.__file__).parent / "SPEC.md").read_text(encoding="utf-8")
    leaves = [0x57, 0x83, 0x1C]
    rows = [0, 0, 0]
    for row in range(3):
        for leaf in reversed(leaves):
            rows[row] = int(PRODUCTS[rows[row], 1 << row]) ^ leaf
    assert [f"{row:02X}" for row in rows] == ["C8", "3C", "BC"]
    for row, name in enumerate("PQR"):
        line = next(line for line in spec.splitlines() if line.startswith(f"{name} = 57 +"))
        assert f"= {rows[row]:02X}" in line
    p, q = rows[0] ^ leaves[1], rows[1] ^ int(PRODUCTS[2, leaves[1]])
    last = int(PRODUCTS[p ^ q, 0xA7])
    assert (f"{p:02X}", f"{q:02X}", f"{p ^ q:02X}") == ("4B", "27", "6C")
    assert PRODUCTS[5, 0xA7] == 1
    assert (p ^ last, last) == (leaves[0], leaves[2])
    for number in ("4B = d_0 + d_2", "27 = d_0 + 4 d_2", "6C = 5 d_2", "6C * A7 = 1C", "4B + 1C = 57"):
        assert number in spec


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_save_with_parity(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "state.fckpt"
    state = {"w": torch.randn(200_000), "step": 3}
    fastckpt.save(state, path, codec=codec, parity="3%")
    sums = read_sums(sums_path(path), threads=1)
    assert sums.parity == PARITIES["3%"]
    assert [row.name for row in sums.tensors] == ["w"]
    assert bytes(sums.digests) == _core.leaf_digests(path.read_bytes())
    good = path.read_bytes()
    path.write_bytes(good[:300_000] + bytes(20_000) + good[320_000:])
    assert fastckpt.repair(path).verdict == "healed: every byte as sealed"
    assert path.read_bytes() == good
    with pytest.raises(UsageError, match="parity"):
        fastckpt.save(state, path, parity="5%")
    assert path.read_bytes() == good


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_summed_up_while_saving_is_what_a_seal_reads(tmp_path: Path, durable: bool) -> None:
    """Records of every kind: large and packed ones, of odd sizes, and empty ones."""
    torch.manual_seed(1)
    state: dict[str, object] = {f"small.{n}": torch.randn(n) for n in range(60)}
    state |= {f"large.{n}": torch.randn(300_000 + 1000 * n) for n in range(9)}
    path = tmp_path / "state.fckpt"
    fastckpt.save(state, path, parity="10%", durable=durable)
    saved = Path(sums_path(path)).read_bytes()
    Path(sums_path(path)).unlink()
    fastckpt.seal(path, parity="10%")
    assert saved == Path(sums_path(path)).read_bytes()


def test_parity_that_does_not_fit_into_memory_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.arange(2_000_000)}
    fastckpt.save(state, tmp_path / "a.fckpt", parity="3%")
    monkeypatch.setattr("fastckpt.io.tally.MOST", 2**20 - 1)
    (tmp_path / "b").mkdir()
    fastckpt.save(state, tmp_path / "b/a.fckpt", parity="3%")
    assert Path(sums_path(tmp_path / "a.fckpt")).read_bytes() == Path(sums_path(tmp_path / "b/a.fckpt")).read_bytes()


def test_a_file_that_was_replaced_meanwhile_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.fckpt"
    write = save_module.write_content

    def and_then_another(*arguments: object, **options: object) -> None:
        write(*arguments, **options)  # type: ignore[arg-type]
        shutil.copy(path, tmp_path / "other")
        (tmp_path / "other").rename(path)

    monkeypatch.setattr(save_module, "write_content", and_then_another)
    with pytest.raises(DamagedError, match="taken its place"):
        fastckpt.save({"w": torch.zeros(3)}, path, parity="3%")
    assert not Path(sums_path(path)).exists()
