"""Whatever lies in a directory, doctor ends soon, says something, and never with a traceback."""

from __future__ import annotations

import math
import os
import pickle
import random
import time
import zipfile
from pathlib import Path

import pytest
import torch
from doctor_builds import cut, flip, model, optimizer, write_step
from doctor_types import Doctor, Shell
from slowness import within

from fastckpt.cli.main import main


class Evil:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def archive(path: Path, pickled: bytes, *records: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{path.stem}/data.pkl", pickled)
        file.writestr(f"{path.stem}/byteorder", "little")
        for number, record in enumerate(records):
            file.writestr(f"{path.stem}/data/{number}", record)
        file.writestr(f"{path.stem}/version", "3\n")


def bomb() -> bytes:
    value: list[object] = []
    for _ in range(40):
        value = [value] * 2
    return pickle.dumps(value, 2)


HOSTILE = {
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(100_000)),
    "zeros": lambda path: path.write_bytes(bytes(100_000)),
    "one byte": lambda path: path.write_bytes(b"P"),
    "evil": lambda path: archive(path, pickle.dumps(Evil(), 2)),
    "bomb": lambda path: archive(path, bomb()),
    "deep": lambda path: archive(path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "int": lambda path: archive(path, pickle.dumps(10**5000, 2)),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04" + random.Random(2).randbytes(5000)),
    "magic": lambda path: path.write_bytes(b"FCKPT" + bytes(9000)),
    "no optimizer": lambda path: torch.save({"state": 3, "param_groups": {}}, path),
    "odd optimizer": lambda path: torch.save(
        {"state": {0: 1, "x": {"step": "y"}}, "param_groups": [1, {"params": 3}]}, path
    ),
    "odd shapes": lambda path: torch.save(
        {
            "lm_head.weight": torch.ones(()),
            "transformer.wte.weight": torch.ones(0, 0),
            "transformer.h.0.attn.ve_gate.weight": torch.ones(0),
        },
        path,
    ),
    "many layers": lambda path: torch.save(
        {"transformer.h.99999999999.attn.c_q.weight": torch.ones(1), "transformer.wte.weight": torch.ones(2, 3)}, path
    ),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "odd counters": lambda path: torch.save(
        {"state": {0: {"step": math.nan, "exp_avg": torch.ones(4, 4)}, 1: {"step": math.inf}}, "param_groups": []},
        path,
    ),
    "a list": lambda path: torch.save([{"state": {0: {"momentum_buffer": 1}}, "param_groups": [{}]}], path),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("role", ["model_000004.pt", "optim_000004_rank0.pt", "model_000004.fckpt"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, role: str, run_of, doctor: Doctor):
    directory = run_of(4)
    HOSTILE[kind](directory / role)
    begin = time.process_time()
    doctor(".", "--deep")
    assert within(time.process_time() - begin, 20)
    assert not os.path.exists("executed")


@pytest.mark.thorough
def test_cut_and_flipped_anywhere(run_of, doctor: Doctor):
    """40 states of a step, each damaged somewhere else; every cut is seen, and every flip that reaches a tensor."""
    directory = run_of(4)
    names = ["model_000004.pt", "optim_000004_rank0.pt", "meta_000004.json"]
    whole = {name: (directory / name).read_bytes() for name in names}
    dice = random.Random(7)
    for turn in range(40):
        name = names[turn % 3]
        path = directory / name
        if turn % 2:
            cut(path, dice.random())
            assert doctor(".", "--deep").kinds, (turn, name)
        else:
            flip(path, dice.randrange(len(whole[name])))
            doctor(".", "--deep")
        path.write_bytes(whole[name])
    assert doctor(".", "--deep").kinds == []


def test_links_in_a_circle(run_of, doctor: Doctor):
    directory = run_of(2)
    (directory / "model_000009.pt").symlink_to("model_000009.pt")
    (directory / "loop").symlink_to(directory)
    (directory.parent / "d9").symlink_to("d9")
    (directory.parent.parent / "mid_checkpoints").symlink_to(".")
    doctor(".")
    doctor(directory / "model_000009.pt")


def test_a_link_to_itself_is_removed(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2)
    (directory / "model_000009.pt").symlink_to("model_000009.pt")
    for found in doctor(directory).facts["findings"]:
        assert shell(found["next"]).returncode == 0
    told = doctor(directory)
    assert (told.code, told.tag["newest_whole"]) == (0, 2)


def test_pipes_and_devices(run_of, doctor: Doctor):
    directory = run_of(2)
    os.mkfifo(directory / "model_000009.pt")
    os.mkfifo(directory / "meta_000009.json")
    (directory / "meta_000002.json").unlink()
    (directory / "meta_000002.json").symlink_to("/dev/zero")
    (directory / "optim_000002_rank1.pt").symlink_to("/dev/zero")
    doctor(".")
    doctor(directory / "model_000009.pt")


def test_what_may_not_be_read(run_of, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    run_of(2, 4)
    opened = os.open

    def refuse(path, *arguments, **named):
        if str(path).endswith("model_000004.pt"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    told = doctor(".")
    found = told.the("unreadable")
    assert found["next"] == "chmod u+r base_checkpoints/d2/model_000004.pt"
    assert told.tag["newest_whole"] == 2


def test_chmod_is_what_helps(run_of, doctor: Doctor, shell):
    directory = run_of(4)
    (directory / "model_000004.pt").chmod(0)
    if os.geteuid() == 0:
        assert doctor(".").kinds == [], "root may read everything"
        return
    assert shell(doctor(".").the("unreadable")["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_a_directory_that_cannot_be_listed(run_of, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    directory = run_of(4)
    scan = os.scandir

    def refuse(path="."):
        if str(path).endswith("d2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told = doctor(directory)
    assert told.code in (1, 4)
    assert "unreadable" in told.kinds


def test_two_thousand_files(tmp_path: Path, doctor: Doctor, text):
    directory = tmp_path / "base_checkpoints" / "d2"
    write_step(directory, 5)
    for step in range(10, 2_010):
        (directory / f"model_{step:06d}.pt").write_bytes(b"not a checkpoint")
    begin = time.process_time()
    told = doctor(".")
    assert within(time.process_time() - begin, 30)
    assert told.tag["newest_whole"] is None, "step 5 is beyond what is looked at"
    assert len(text(".").splitlines()) < 40
    begin = time.process_time()
    told = doctor(".", "--step", 5)
    assert told.tag["newest_whole"] == 5
    assert within(time.process_time() - begin, 30)


@pytest.mark.thorough
def test_a_thousand_ranks(tmp_path: Path, doctor: Doctor, text):
    directory = tmp_path / "base_checkpoints" / "d2"
    write_step(directory, 4)
    for rank in range(1, 1000):
        (directory / f"optim_000004_rank{rank}.pt").write_bytes(b"not a checkpoint")
    begin = time.process_time()
    doctor(".")
    assert within(time.process_time() - begin, 30)
    assert len(text(".").splitlines()) < 40


@pytest.mark.thorough
def test_a_thousand_tags(tmp_path: Path, doctor: Doctor, text):
    for tag in range(1000):
        directory = tmp_path / "base_checkpoints" / f"d{tag}"
        directory.mkdir(parents=True)
        (directory / "model_000004.pt").write_bytes(b"x")
    begin = time.process_time()
    doctor(".")
    assert within(time.process_time() - begin, 30)


def test_json_of_a_name_that_is_no_text(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]):
    directory = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(directory)
    torch.save(model(4), os.path.join(os.fsdecode(directory), "model_000004.pt"))
    torch.save(optimizer(4), os.path.join(os.fsdecode(directory), "optim_000004_rank0.pt"))
    assert main(["doctor", os.fsdecode(directory)]) == 2
    assert main(["doctor", os.fsdecode(directory), "--json"]) == 2
    assert b"Traceback" not in capsysbinary.readouterr().err
