"""Sums files that say what cannot be end in a typed error, and cost no more than they have bytes."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path
from fastckpt.seals.sums import read_sums

SIZE = 5 * LEAF_SIZE + 7
GOOD: dict[str, Any] = {"name": "x.bin", "size": SIZE, "leaf": LEAF_SIZE, "sha256": None, "tensors": None}
DIGESTS = torch.zeros(8 * 6, dtype=torch.uint8)
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a huge size": ({"size": 2**62}, {}),
    "a size beyond all": ({"size": 2**70}, {}),
    "a negative size": ({"size": -1}, {}),
    "a size that is none": ({"size": "5"}, {}),
    "a size that is a truth": ({"size": True}, {}),
    "no name": ({"name": ""}, {}),
    "a name that is none": ({"name": 5}, {}),
    "a SHA-256 that is none": ({"sha256": "zz" * 32}, {}),
    "a short SHA-256": ({"sha256": "00"}, {}),
    "a table that is none": ({"tensors": "w"}, {}),
    "a table of no rows": ({"tensors": [1, 2]}, {}),
    "a row of other things": ({"tensors": [["w", 0, "1"]]}, {}),
    "a row that is too long": ({"tensors": [["w", 0, 1, 2]]}, {}),
    "a tensor behind the end": ({"tensors": [["w", SIZE, 1]]}, {}),
    "a tensor before the begin": ({"tensors": [["w", -1, 1]]}, {}),
    "a tensor of a huge size": ({"tensors": [["w", 1, 2**80]]}, {}),
    "a tensor of negative size": ({"tensors": [["w", 9, -1]]}, {}),
    "too few digests": ({}, {"digests": DIGESTS[:-8]}),
    "too many digests": ({}, {"digests": torch.zeros(8 * 7, dtype=torch.uint8)}),
    "digests of another type": ({}, {"digests": torch.zeros(6, dtype=torch.int64)}),
    "digests in rows": ({}, {"digests": DIGESTS.view(6, 8)}),
    "digests with gaps": ({}, {"digests": torch.zeros(96, dtype=torch.uint8)[::2]}),
    "digests that begin later": ({}, {"digests": torch.zeros(49, dtype=torch.uint8)[1:]}),
    "no digests": ({}, {"digests": None}),
}


def sums_of(path: Path, says: dict[str, Any], state: dict[str, Any], **options: Any) -> str:
    path.write_bytes(bytes(SIZE))
    beside = sums_path(path)
    fastckpt.save({"digests": DIGESTS, **state}, beside, metadata={"seal": {**GOOD, **says}}, durable=False, **options)
    return beside


def test_the_good_one_is_read(tmp_path: Path) -> None:
    assert read_sums(sums_of(tmp_path / "x.bin", {}, {}), threads=1).leaves == 6
    table = [["a", 0, 5], ["b", 3, SIZE - 3]]
    sums = read_sums(sums_of(tmp_path / "x.bin", {"tensors": table, "more": 1}, {"P": torch.ones(9)}), threads=1)
    assert [list(row) for row in sums.tensors] == table


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_is_refused(tmp_path: Path, what: str) -> None:
    beside = sums_of(tmp_path / "x.bin", *HOSTILE[what])
    with pytest.raises(DamagedError):
        read_sums(beside, threads=1)
    assert check(tmp_path / "x.bin").state == "seal damaged"
    with pytest.raises(FastckptError):
        fastckpt.seal(tmp_path / "x.bin")


def test_leaves_of_another_size_need_a_newer_one(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVersionError):
        read_sums(sums_of(tmp_path / "x.bin", {"leaf": 65536}, {}), threads=1)


def test_a_compressed_one_would_be_larger_than_it_is(tmp_path: Path) -> None:
    beside = sums_of(
        tmp_path / "x.bin", {"size": 2**24 * 8}, {"digests": torch.zeros(8 * 8192, dtype=torch.uint8)}, codec="zstd"
    )
    with pytest.raises(DamagedError, match="never compressed"):
        read_sums(beside, threads=1)


def test_no_metadata(tmp_path: Path) -> None:
    fastckpt.save({"digests": DIGESTS}, tmp_path / "x.bin.fckpt-sums", durable=False)
    with pytest.raises(DamagedError, match="no sums file"):
        read_sums(str(tmp_path / "x.bin.fckpt-sums"), threads=1)


def test_tensors_that_overlap_in_their_thousands(tmp_path: Path) -> None:
    """The file differs in every other leaf; each tensor lies in all of them."""
    path = tmp_path / "x.bin"
    count = 400
    path.write_bytes(b"".join(bytes([n % 251]) * LEAF_SIZE for n in range(count)))
    fastckpt.seal(path)
    sums = read_sums(sums_path(path), threads=1)
    table = [[f"tensor.{n}", 0, count * LEAF_SIZE] for n in range(30_000)]
    says = {**GOOD, "size": sums.size, "tensors": table}
    digests = torch.frombuffer(bytearray(sums.digests), dtype=torch.uint8)
    fastckpt.save({"digests": digests}, sums_path(path), metadata={"seal": says}, durable=False)
    raw = bytearray(path.read_bytes())
    for leaf in range(0, count - 4, 2):
        raw[leaf * LEAF_SIZE] ^= 1
    path.write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    assert len(check(path).findings) == 198
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
