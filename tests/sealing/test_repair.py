"""`fastckpt.repair`: what heals and what does not, and that nothing else changes."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from changes import LEAF, SIZE, Change, change, flip, zero

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import CheckpointNotFoundError, DamagedError, MismatchError, OutOfSpaceError, UsageError
from fastckpt.io import commit
from fastckpt.sealing import repair as repairing
from fastckpt.seals import healed_copy, remains
from fastckpt.seals.healed_copy import HealedCopy
from fastckpt.seals.names import sums_path

"""The steps of a repair, and where each is found."""


@pytest.mark.parametrize(
    "how",
    [
        flip(5),
        flip(SIZE - 1),
        flip(0, 9 * LEAF, 50 * LEAF, 199 * LEAF),
        zero(0, 65_536),
        zero(SIZE - 65_536, 65_536),
        zero(1_000_001, int(SIZE * 0.03)),
        lambda raw: raw[: int(SIZE * 0.971)],
        lambda raw: raw + b"more",
        lambda raw: raw[: SIZE - 10] + bytes(100_000),
    ],
    ids=["bit", "last bit", "a bit a group", "first", "last", "burst", "cut", "longer", "cut and longer"],
)
def test_what_heals(path: Path, good: bytes, how: Change) -> None:
    sums = Path(sums_path(path)).read_bytes()
    change(path, how)
    damaged = path.read_bytes()
    dry = fastckpt.repair(path, dry_run=True)
    assert (dry.state, dry.exit_code, dry.verdict, dry.output) == ("would heal", 1, None, None)
    assert path.read_bytes() == damaged
    report = fastckpt.repair(path, durable=False)
    assert (report.state, report.exit_code, report.left) == ("healed", 0, [])
    assert report.lost == report.healed == dry.healed
    assert path.read_bytes() == good
    assert Path(report.kept or "").read_bytes() == damaged
    assert Path(sums_path(path)).read_bytes() == sums
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.damaged", "model.bin.fckpt-sums"]
    again = fastckpt.repair(path)
    assert (again.state, again.exit_code, again.verdict) == ("as sealed", 0, "OK")


@pytest.mark.parametrize("form", ["safetensors", "pt", "fckpt"])
def test_a_checkpoint_loads_again(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"m.{form}"
    state = {"a": torch.randn(100_000), "b": torch.randn(50_000)}
    write = {"safetensors": safetensors.torch.save_file, "pt": torch.save, "fckpt": fastckpt.save}
    write[form](state, path)
    fastckpt.seal(path, parity="10%")
    change(path, zero(0, 16_000))
    change(path, zero(300_000, 5_000))
    report = fastckpt.repair(path)
    assert {name for finding in report.findings for name in finding.tensors} <= {"a", "b"}
    assert report.verdict == "healed: every byte as sealed"
    loaded = fastckpt.load(path)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_more_than_parity_stays_as_it_is(path: Path, good: bytes) -> None:
    """Three leaves of group 1 are lost, and one of group 2."""
    change(path, flip(1 * LEAF, 5 * LEAF, 9 * LEAF, 2 * LEAF))
    damaged = path.read_bytes()
    report = fastckpt.repair(path)
    assert (report.state, report.exit_code, report.verdict) == ("not healed", 2, None)
    assert (report.lost, report.healed) == (4, 1)
    assert [(finding.offset, finding.size) for finding in report.left] == [(leaf * LEAF, LEAF) for leaf in (1, 5, 9)]
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.fckpt-sums"]
    assert path.read_bytes() == damaged
    assert report.next_step is not None
    assert "-o OTHER" in report.next_step
    other = path.with_name("other")
    partly = fastckpt.repair(path, other)
    assert (partly.state, partly.exit_code, partly.output) == ("partly healed", 3, str(other))
    assert path.read_bytes() == damaged
    expected = bytearray(good)
    for leaf in (1, 5, 9):
        expected[leaf * LEAF] ^= 0x10
    assert other.read_bytes() == expected


def test_a_file_that_is_too_short_is_partly_healed(path: Path, good: bytes) -> None:
    """What is not there and does not come back is zeros, in a file that says so."""
    change(path, lambda raw: raw[: 180 * LEAF])
    change(path, flip(0))
    report = fastckpt.repair(path, path.with_name("other"))
    assert (report.state, report.lost, report.healed) == ("not healed", 21, 0)
    assert not path.with_name("other").exists()
    change(path, lambda raw: raw + good[180 * LEAF : 189 * LEAF])
    report = fastckpt.repair(path, path.with_name("other"))
    # Of 189 to 199, groups 1, 2 and 3 have three each; group 0 has leaf 0 and two more.
    assert (report.state, report.healed) == ("not healed", 0)
    change(path, lambda raw: raw + good[189 * LEAF : 190 * LEAF + 7])
    report = fastckpt.repair(path, path.with_name("other"))
    assert (report.state, report.lost, report.healed) == ("partly healed", 11, 2)
    made = path.with_name("other").read_bytes()
    assert len(made) == SIZE
    back = [
        leaf for leaf in range(200) if made[leaf * LEAF : (leaf + 1) * LEAF] == good[leaf * LEAF : (leaf + 1) * LEAF]
    ]
    assert back == [*range(1, 190), 193, 197]
    assert not any(made[198 * LEAF :])


@pytest.mark.parametrize("row", ["P", "Q"])
def test_damage_in_the_parity_itself(path: Path, good: bytes, row: str) -> None:
    beside = Path(sums_path(path))
    sums = beside.read_bytes()
    parity = fastckpt.load(beside)[row].numpy().tobytes()
    at = sums.index(parity)
    change(beside, zero(at, len(parity)))
    report = fastckpt.repair(path)
    assert (report.state, report.sums_renewed, report.output) == ("healed", True, None)
    assert beside.read_bytes() == sums
    change(beside, zero(at, len(parity)))
    change(path, flip(1 * LEAF, 2 * LEAF))
    report = fastckpt.repair(path)
    assert (report.state, report.sums_renewed, report.healed) == ("healed", True, 2)
    assert path.read_bytes() == good
    assert beside.read_bytes() == sums
    change(beside, zero(at, len(parity)))
    change(path, flip(1 * LEAF, 5 * LEAF))
    report = fastckpt.repair(path)
    assert (report.state, report.sums_renewed, report.healed) == ("not healed", False, 0)


@pytest.mark.parametrize("where", ["head", "tail", "digests"])
def test_damage_in_the_structure_of_the_seal(path: Path, good: bytes, where: str) -> None:
    beside = Path(sums_path(path))
    sums = beside.read_bytes()
    digests = fastckpt.load(beside)["digests"].numpy().tobytes()
    places = {
        "head": (0, 8192),
        "tail": (len(sums) - 8192, 8192),
        "digests": (sums.index(digests), len(digests)),
    }
    change(beside, zero(*places[where]))
    change(path, flip(77))
    report = fastckpt.repair(path, durable=False)
    assert (report.state, report.sums_renewed) == ("healed", True)
    assert path.read_bytes() == good
    assert beside.read_bytes() == sums


def test_a_seal_that_proves_nothing(path: Path) -> None:
    beside = Path(sums_path(path))
    digests = fastckpt.load(beside)["digests"].numpy().tobytes()
    sums = beside.read_bytes()
    change(path, flip(77))
    change(beside, flip(sums.index(digests), sums.rindex(digests)))
    with pytest.raises(DamagedError, match="nothing proves"):
        fastckpt.repair(path)
    beside.write_bytes(sums[:3000])
    with pytest.raises(DamagedError):
        fastckpt.repair(path)
    beside.write_bytes(b"no seal")
    with pytest.raises(fastckpt.errors.FastckptError):
        fastckpt.repair(path)


def test_every_byte_of_the_seal_flipped(tmp_path: Path) -> None:
    """One flipped bit in the sums file of a small file, anywhere, with one lost leaf: it heals, always."""
    path = tmp_path / "f"
    good = random.Random(2).randbytes(60 * LEAF)
    path.write_bytes(good)
    fastckpt.seal(path, parity="3%", durable=False)
    beside = Path(sums_path(path))
    sums = beside.read_bytes()
    for at in range(0, len(sums), 1021):
        beside.write_bytes(sums[:at] + bytes([sums[at] ^ 1]) + sums[at + 1 :])
        path.write_bytes(good[:100_000] + b"x" + good[100_001:])
        report = fastckpt.repair(path, keep=False, durable=False)
        assert (report.state, report.sums_renewed) == ("healed", True), at
        assert path.read_bytes() == good
        assert beside.read_bytes() == sums


def test_a_seal_without_parity(path: Path, good: bytes) -> None:
    Path(sums_path(path)).unlink()
    fastckpt.seal(path)
    assert fastckpt.repair(path).state == "as sealed"
    change(path, flip(9))
    report = fastckpt.repair(path)
    assert (report.state, report.exit_code, report.healed) == ("not healed", 2, 0)
    assert "no parity" in report.message
    path.write_bytes(good + b"behind")
    assert fastckpt.repair(path).state == "healed"
    assert path.read_bytes() == good


def test_what_is_of_another_file(path: Path, good: bytes, tmp_path: Path) -> None:
    """A stale seal heals nothing in its place: the file may have been written anew on purpose."""
    path.write_bytes(random.Random(3).randbytes(SIZE))
    with pytest.raises(MismatchError, match="not the file that was sealed"):
        fastckpt.repair(path)
    renamed = tmp_path / "renamed"
    renamed.write_bytes(good)
    Path(sums_path(path)).rename(sums_path(renamed))
    change(renamed, flip(9))
    with pytest.raises(MismatchError, match=r"called model\.bin"):
        fastckpt.repair(renamed)
    report = fastckpt.repair(renamed, tmp_path / "model.bin")
    assert report.state == "healed"
    assert path.read_bytes() == good


def test_a_small_file_that_was_edited(tmp_path: Path) -> None:
    """Its only leaf differs: that is no damage for certain. Under another name comes what was sealed."""
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    fastckpt.seal(path, parity="3%")
    path.write_text('{"a": 2}')
    with pytest.raises(MismatchError, match="1 of 1 leaves"):
        fastckpt.repair(path)
    assert fastckpt.repair(path, tmp_path / "old.json").state == "healed"
    assert (tmp_path / "old.json").read_text() == '{"a": 1}'
    assert path.read_text() == '{"a": 2}'


def test_what_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sums file"):
        fastckpt.repair(sums_path(path))
    with pytest.raises(UsageError, match="directory"):
        fastckpt.repair(tmp_path)
    for own in (path, sums_path(path)):
        with pytest.raises(UsageError):
            fastckpt.repair(path, own)
    Path(sums_path(path)).unlink()
    with pytest.raises(MismatchError, match="no seal beside it, and no parity was found inside"):
        fastckpt.repair(path)
    fastckpt.seal(path, parity="3%")
    path.unlink()
    with pytest.raises(CheckpointNotFoundError):
        fastckpt.repair(path)


def test_damaged_files_are_kept_beside_each_other(path: Path, good: bytes) -> None:
    for number, name in enumerate(["model.bin.damaged", "model.bin.damaged.1", "model.bin.damaged.2"]):
        change(path, flip(number))
        damaged = path.read_bytes()
        report = fastckpt.repair(path, durable=False)
        assert report.kept == str(path.with_name(name))
        assert path.with_name(name).read_bytes() == damaged
    change(path, flip(7))
    assert fastckpt.repair(path, keep=False).kept is None
    assert path.read_bytes() == good
    assert len(os.listdir(path.parent)) == 5
    # They belong to the file: nobody is told that they are damaged, or not sealed.
    assert main(["seal", "--check", str(path.parent)]) == 0


def test_a_file_system_without_links(path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "hard_link", lambda *_: False)
    change(path, flip(5))
    damaged = path.read_bytes()
    report = fastckpt.repair(path, durable=False)
    assert Path(report.kept or "").read_bytes() == damaged
    assert path.read_bytes() == good


def test_a_symbolic_link_is_followed(path: Path, good: bytes, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "blob"
    path.rename(real)
    path.symlink_to(real)
    change(real, flip(5))
    report = fastckpt.repair(path)
    assert path.is_symlink()
    assert real.read_bytes() == good
    assert report.kept == f"{real}.damaged"


def test_a_disk_without_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, flip(5))
    damaged = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OutOfSpaceError("no room", errno=28)

    monkeypatch.setattr(commit, "check_space", full)
    with pytest.raises(OutOfSpaceError):
        fastckpt.repair(path)
    assert path.read_bytes() == damaged
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.fckpt-sums"]


STEPS: dict[str, Any] = {
    "standing_of": remains, "write": HealedCopy, "heal_leaves": healed_copy, "require_proven": HealedCopy,
    "_keep": repairing,
}  # fmt: skip


@pytest.mark.parametrize("when", ["write", "require_proven", "_keep"])
def test_a_file_that_changes_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """By another program: nothing takes its place, and what that wrote is still there."""
    change(path, flip(5))
    step: Any = getattr(STEPS[when], when)

    def write_meanwhile(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.02)
        with open(path, "r+b") as file:
            file.seek(100 * LEAF)
            file.write(b"written meanwhile")
        return step(*arguments, **options)

    monkeypatch.setattr(STEPS[when], when, write_meanwhile)
    if when == "_keep":  # After the last look at it: the name goes to the healed file, and the other one is kept.
        assert b"written meanwhile" in Path(fastckpt.repair(path).kept or "").read_bytes()
        return
    with pytest.raises(DamagedError):
        fastckpt.repair(path)
    assert b"written meanwhile" in path.read_bytes()
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.fckpt-sums"]


def test_a_file_that_is_replaced_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, flip(5))
    step = HealedCopy.require_proven

    def replace_meanwhile(copy: HealedCopy, **options: Any) -> None:
        path.with_name("new").write_bytes(b"a new file")
        path.with_name("new").replace(path)
        step(copy, **options)

    monkeypatch.setattr(HealedCopy, "require_proven", replace_meanwhile)
    with pytest.raises(DamagedError, match="another file"):
        fastckpt.repair(path)
    assert path.read_bytes() == b"a new file"


def test_what_a_disk_makes_of_it_is_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of the new file that is not what was written: it does not take the name."""
    change(path, flip(5))
    step = HealedCopy.require_proven

    def rot(copy: HealedCopy, **options: Any) -> None:
        os.pwrite(copy._fd, b"rotten", 150 * LEAF + 3)
        step(copy, **options)

    monkeypatch.setattr(HealedCopy, "require_proven", rot)
    with pytest.raises(DamagedError, match="not what was sealed"):
        fastckpt.repair(path)
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.fckpt-sums"]


@pytest.mark.parametrize("step", ["standing_of", "heal_leaves", "require_proven", "_keep"])
def test_ctrl_c(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    change(path, flip(5))
    damaged = path.read_bytes()
    original: Any = getattr(STEPS[step], step)

    def interrupted(*arguments: Any, **options: Any) -> None:
        if step == "_keep":
            original(*arguments, **options)
            monkeypatch.undo()
            raise _Interrupted(original(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(STEPS[step], step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastckpt.repair(path)
    monkeypatch.undo()
    assert path.read_bytes() == damaged
    assert not [name for name in os.listdir(path.parent) if name.endswith(".fckpt-tmp")]
    assert fastckpt.repair(path).state == "healed"
    assert sorted(os.listdir(path.parent)) == ["model.bin", "model.bin.damaged", "model.bin.fckpt-sums"]


class _Interrupted(KeyboardInterrupt):
    """Right behind a step."""


def test_progress_and_threads(path: Path) -> None:
    change(path, flip(5))
    told: list[int] = []
    before = threading.active_count()
    fastckpt.repair(path, progress=told.append, threads=3, durable=False)
    assert told == sorted(told)
    assert SIZE <= told[-1] <= 3 * SIZE
    assert threading.active_count() <= before


def test_the_command(path: Path, good: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, flip(5 * LEAF))
    assert main(["repair", "--dry-run", str(path)]) == 1
    assert "would heal as a whole; nothing was written" in capsys.readouterr().out
    assert main(["repair", str(path), "-o", str(path.with_name("out"))]) == 0
    assert path.with_name("out").read_bytes() == good
    assert main(["repair", "--in-place", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "healed: every byte as sealed" in shown
    assert "leaf 5 is not what was sealed" in shown
    assert not path.with_name("model.bin.damaged").exists()
    assert main(["repair", str(path)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    change(path, flip(1 * LEAF, 5 * LEAF, 9 * LEAF, 2 * LEAF))
    assert main(["repair", str(path)]) == 2
    assert "does not heal, though 1 of 4 lost leaves would" in capsys.readouterr().out
    assert main(["repair", str(path), "-o", str(path.with_name("part"))]) == 3
    assert "partly healed, 1 of 4 lost leaves" in capsys.readouterr().out


def test_who_may_not_read_a_file_reads_it_nowhere_else(tmp_path: Path) -> None:
    """The parity of a small file has all that is in it."""
    path, other = tmp_path / "secret", tmp_path / "other"
    path.write_bytes(bytes(9000))
    path.chmod(0o600)
    fastckpt.seal(path, parity="3%", durable=False)
    assert Path(sums_path(path)).stat().st_mode & 0o777 == 0o600
    path.write_bytes(bytes(9001))
    assert fastckpt.repair(path, other, durable=False).state == "healed"
    assert other.stat().st_mode & 0o777 == 0o600
    other.chmod(0o400)
    fastckpt.seal(other, durable=False)
    assert Path(sums_path(other)).stat().st_mode & 0o777 == 0o600  # It can be written anew.


def test_a_fckpt_that_was_written_anew_is_not_healed(tmp_path: Path) -> None:
    """Where its own digests do not match, no more is read to know it; where they all do, it is another."""
    path = tmp_path / "state.fckpt"
    fastckpt.save({"w": torch.zeros(500_000), "v": torch.ones(10)}, path, parity="3%")
    good = path.read_bytes()
    fastckpt.save({"w": torch.zeros(500_000).index_fill_(0, torch.tensor([7]), 1), "v": torch.ones(10)}, path)
    with pytest.raises(MismatchError, match="written anew"):
        fastckpt.repair(path, keep=False)
    for at in (len(good) // 2, 100, 4096 + 50, len(good) - 50):  # A payload, the superblock, the manifest, the footer.
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert fastckpt.repair(path, keep=False, durable=False).state == "healed"
        assert path.read_bytes() == good
