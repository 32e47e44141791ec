"""Files that were written anew, seals that are damaged, and what is said then: never that a good file is rotted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fastckpt
from fastckpt.cli.main import main
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, MismatchError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path
from fastckpt.seals.sums import read_sums


def flip(path: Path | str, *offsets: int) -> None:
    raw = bytearray(Path(path).read_bytes())
    for offset in offsets:
        raw[offset] ^= 1
    Path(path).write_bytes(raw)


def place(path: Path, name: str) -> int:
    """Where a tensor of the sums file of a file begins in it."""
    with CheckpointFile(sums_path(path)) as file:
        (entry,) = (entry for entry in file.checked_entries() if entry.name == name)
        stored = file.manifest.storages[entry.storage]
        return file.record(stored.record).payload.offset + stored.offset


def doctor(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    main(["doctor", str(path), "--json", *options])
    return [one for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "bad"]


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({f"t{n}": torch.randn(100, 1000) for n in range(8)}, path)
    fastckpt.seal(path, parity="3%", durable=False)
    return path


@pytest.mark.parametrize("form", ["fckpt", "pt"])
def test_a_checkpoint_saved_anew_is_not_made_the_old_one(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, weight = tmp_path / f"m.{form}", torch.randn(300, 1000)
    write = {"pt": torch.save, "fckpt": fastckpt.save}[form]
    write({"w": weight, "step": 1}, path)
    old = path.read_bytes()
    fastckpt.seal(path, parity="10%", durable=False)
    write({"w": weight, "step": 2}, path)
    new = path.read_bytes()

    report = fastckpt.verify(path)
    assert (report.seal, report.exit_code, report.verdict) == ("stale", 1, None)
    assert check(path).state == "stale"
    for told in (report.next_step, check(path).next_step):
        assert told == (
            f"fastckpt seal --update {path}, if it was written anew on purpose; fastckpt repair {path} -o OTHER "
            "writes what was sealed, if enough of that is left"
        )
    assert "repair" not in fastckpt.salvage(path).next_step
    assert [one["kind"] for one in doctor(path, capsys, "--deep")] == ["stale-seal"]
    for dry_run in (True, False):
        with pytest.raises(MismatchError, match="its own checksums match, so it was written anew"):
            fastckpt.repair(path, dry_run=dry_run)
    assert path.read_bytes() == new
    assert fastckpt.repair(path, tmp_path / "old", durable=False).state == "healed"
    assert (tmp_path / "old").read_bytes() == old

    fastckpt.seal(path, update=True, durable=False)
    flip(path, 200_000)
    assert fastckpt.repair(path, durable=False).state == "healed"
    assert path.read_bytes() == new


@pytest.mark.parametrize(
    "where",
    [[3_000_000], [5000], [-6000], [-60], [3, -60], [3, 8300, -60]],
    ids=["payload", "manifest", "its copy", "footer", "both ends", "both ends and the record's header"],
)
def test_a_checkpoint_saved_anew_and_damaged_then_is_not_made_the_old_one(tmp_path: Path, where: list[int]) -> None:
    path, weight = tmp_path / "m.fckpt", torch.randn(1000, 1000)
    fastckpt.save({"w": weight, "step": 1}, path, parity="10%", durable=False)
    old = path.read_bytes()
    weight[500] = 2
    fastckpt.save({"w": weight, "step": 2}, path, durable=False)
    flip(path, *where)
    new = path.read_bytes()
    assert check(path).state == "stale"
    report = fastckpt.verify(path)
    assert (report.seal, report.verdict) == ("stale", None)
    assert report.next_step is not None
    assert not report.next_step.startswith("fastckpt repair")
    for keep in (True, False):
        with pytest.raises(MismatchError, match="prove bytes that were not sealed"):
            fastckpt.repair(path, keep=keep)
    assert path.read_bytes() == new
    assert not fastckpt.salvage(path).healed
    assert fastckpt.repair(path, tmp_path / "old", durable=False).state == "healed"
    assert (tmp_path / "old").read_bytes() == old


def test_damage_in_the_seal_alone(sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(sums_path(sealed), place(sealed, "P") + 5)
    assert fastckpt.verify(sums_path(sealed)).next_step == f"fastckpt repair {sealed}"
    report = fastckpt.repair(sealed, tmp_path / "other")
    assert (report.state, report.exit_code) == ("would heal", 1)
    assert report.next_step == f"fastckpt repair {sealed}"
    assert not (tmp_path / "other").exists()
    assert main(["repair", str(sealed), "-o", str(tmp_path / "other")]) == 1
    assert "does not heal" not in capsys.readouterr().out
    assert fastckpt.repair(sealed).state == "healed"
    assert fastckpt.verify(sums_path(sealed)).ok


@pytest.mark.parametrize("update", [False, True])
def test_sealing_again_mends_a_damaged_seal(sealed: Path, update: bool) -> None:
    before = Path(sums_path(sealed)).read_bytes()
    flip(sums_path(sealed), place(sealed, "Q") + 5)
    assert fastckpt.seal(sealed, update=update, durable=False).is_new
    assert Path(sums_path(sealed)).read_bytes()[4096:-4096] == before[4096:-4096]
    assert fastckpt.verify(sums_path(sealed)).ok


def test_what_a_seal_has_stays_when_more_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(50_000))
    sha256 = fastckpt.seal(path, sha256=True, durable=False).sha256
    assert fastckpt.seal(path, parity="3%", durable=False).sha256 == sha256
    path.with_name("g").write_bytes(bytes(50_000))
    fastckpt.seal(tmp_path / "g", parity="3%", durable=False)
    made = fastckpt.seal(tmp_path / "g", sha256=True, durable=False)
    assert (made.parity, made.sha256) == ("3%", sha256)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_seal_damaged_beyond_reading_and_not_beyond_repair(
    tmp_path: Path, damaged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"t": torch.randn(10_000, 900)}, path)
    good = path.read_bytes()
    fastckpt.seal(path, parity="3%", durable=False)
    os.truncate(sums_path(path), os.path.getsize(sums_path(path)) - 4096)  # Its footer is lost, and nothing else.
    if damaged:
        flip(path, 5_000_000)
    command = f"fastckpt repair {path}"
    assert check(path).next_step == command
    assert fastckpt.verify(path).next_step == command
    (found,) = doctor(path, capsys)
    assert (found["kind"], found["next"]) == ("rotted" if damaged else "damaged-seal", command)
    assert fastckpt.repair(path, durable=False).state == "healed"
    assert path.read_bytes() == good
    assert fastckpt.verify(path).verdict == "intact"


def test_each_digest_is_taken_from_where_it_is_proven(tmp_path: Path) -> None:
    """No digest is damaged in both places, but each place is: nothing but the seal itself needs to be repaired."""
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"t": torch.randn(10_000, 1900)}, path)
    fastckpt.seal(path, parity="3%", durable=False)
    good = read_sums(sums_path(path), threads=1)
    flip(sums_path(path), place(path, "digests") + LEAF_SIZE + 9, place(path, "digests copy") + LEAF_SIZE + 9)
    assert read_sums(sums_path(path), threads=1) == good
    assert check(path).state == "OK"
    assert fastckpt.verify(path).verdict == "intact"
    assert fastckpt.repair(path, durable=False).sums_renewed
    # The same digests in both places: the copy stands a leaf further.
    flip(sums_path(path), place(path, "digests") + 9, place(path, "digests copy") + LEAF_SIZE + 9)
    assert check(path).state == "seal damaged"
    with pytest.raises(DamagedError, match="the digests in this seal are damaged"):
        read_sums(sums_path(path), threads=1)


def test_doctor_does_not_call_a_file_rotted_for_its_seal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"t": torch.randn(100, 900)}, path)
    fastckpt.seal(path, durable=False)
    flip(sums_path(path), place(path, "digests"))
    for options in ((), ("--deep",)):
        (found,) = doctor(path, capsys, *options)
        assert (found["kind"], found["next"]) == ("damaged-seal", f"fastckpt seal --update {path}")
    fastckpt.seal(path, update=True, durable=False)
    safetensors.torch.save_file({"t": torch.randn(100, 900)}, path)
    for options in ((), ("--deep",)):
        (found,) = doctor(path, capsys, *options)
        assert (found["kind"], found["next"]) == ("stale-seal", f"fastckpt seal --update {path}")


def test_what_is_not_healed_in_a_new_file_is_known_there(sealed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    # Four groups: three leaves of the first are lost, and one of the second.
    flip(sealed, *(leaf * LEAF_SIZE + 50 for leaf in (20, 60, 100, 141)))
    report = fastckpt.repair(sealed, other, durable=False)
    assert (report.state, report.healed) == ("partly healed", 1)
    assert report.next_step is not None
    assert report.next_step.endswith(f"fastckpt salvage {other}")
    found = fastckpt.verify(other)
    assert [finding.offset // LEAF_SIZE for finding in found.findings] == [20, 60, 100]
    with pytest.raises(DamagedError):
        fastckpt.load(other)
    assert not fastckpt.salvage(other).complete


@pytest.mark.parametrize("parity", [{}, {"k": 64, "m": 2}, {"k": 1, "m": 1}])
@pytest.mark.parametrize("size", [2**40, 2**50, 2**63 - 1])
def test_a_seal_that_states_a_huge_size(tmp_path: Path, size: int, parity: dict[str, int]) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100_000))
    said = {"name": "f", "size": size, "leaf": LEAF_SIZE, "sha256": None, "tensors": None, **parity}
    fastckpt.save({"digests": torch.zeros(80, dtype=torch.uint8)}, tmp_path / "s.fckpt", metadata={"seal": said})
    (tmp_path / "s.fckpt").rename(sums_path(path))
    for output in (None, tmp_path / "other"):
        with pytest.raises(DamagedError, match="longer than all of it"):
            fastckpt.repair(path, output)
    assert check(path).state == "seal damaged"


def test_what_was_sealed_by_its_name_is_checked_with_its_directory(tmp_path: Path) -> None:
    for name in ("a", "notes.damaged", "left.damaged"):
        (tmp_path / name).write_text("old")
    assert main(["seal", str(tmp_path)]) == 0
    assert main(["seal", str(tmp_path / "notes.damaged")]) == 0
    assert main(["seal", "--check", str(tmp_path)]) == 0
    (tmp_path / "left.damaged").write_text("new")
    assert main(["seal", "--check", str(tmp_path)]) == 0
    (tmp_path / "notes.damaged").write_text("new")
    assert main(["seal", "--check", str(tmp_path)]) == 1


def test_all_names_that_a_shell_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert main(["seal", *map(str, sorted(tmp_path.iterdir()))]) == 0
    (tmp_path / "c").write_text("c")
    assert main(["seal", *map(str, sorted(tmp_path.iterdir()))]) == 0
    assert Path(sums_path(tmp_path / "c")).exists()
    capsys.readouterr()
    assert main(["seal", "--check", *map(str, sorted(tmp_path.iterdir()))]) == 0
    assert capsys.readouterr().out.count(": OK") == 3
