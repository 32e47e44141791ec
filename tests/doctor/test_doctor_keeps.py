"""No command of doctor loses a file: what it replaces is kept, and no two of them undo each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from doctor_builds import cut, flip, optimizer, write_meta
from doctor_types import Doctor, Shell, Told, contents


def every_file(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def commands(told: Told) -> list[str]:
    return [one["next"] for one in told.facts["findings"] if one["next"] and one["severity"] != "note"]


def test_commands_that_want_the_same_place(run_of, doctor: Doctor, shell: Shell):
    """Two steps that are copies of a third, which is gone: both want its name, and only one can have it."""
    directory = run_of(4)
    for copy in (6, 8):
        for path in list(directory.glob("*_000004*")):
            shutil.copy(path, directory / path.name.replace("000004", f"{copy:06d}"))
        values = json.loads((directory / f"meta_{copy:06d}.json").read_text())
        write_meta(directory, copy, values | {"step": copy})
    for path in directory.glob("*_000004*"):
        path.unlink()
    before = every_file(directory)
    told = doctor(".")
    assert told.kinds == ["mixed-steps", "mixed-steps"]
    for command in commands(told):
        assert shell(command).returncode == 0
    assert every_file(directory) == before


def test_a_step_is_set_aside_twice(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    cut(directory / "model_000004.pt")
    first = contents(directory)
    assert shell(doctor(".").the("torn")["next"]).returncode == 0
    run_of(4)
    cut(directory / "model_000004.pt", 0.25)
    second = contents(directory)
    assert shell(doctor(".").the("torn")["next"]).returncode == 0
    told = doctor(".")
    assert (told.kinds, told.tag["steps"]) == ([], [2])
    assert contents(directory / "damaged") == {name: raw for name, raw in first.items() if "000004" in name}
    assert contents(directory / "damaged2") == {name: raw for name, raw in second.items() if "000004" in name}


def test_a_file_is_salvaged_twice(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    whole = (directory / "model_000004.pt").read_bytes()
    for keep in (len(whole) - 1, len(whole) - 30):
        (directory / "model_000004.pt").write_bytes(whole[:keep])
        assert shell(doctor(".").the("torn")["next"]).returncode == 0
        assert doctor(".").kinds == []
    assert (directory / "model_000004.pt.damaged").read_bytes() == whole[:-1]
    assert (directory / "model_000004.pt.damaged2").read_bytes() == whole[:-30]


def test_a_meta_file_is_closed_twice(run_of, doctor: Doctor, shell: Shell):
    path = run_of(4) / "meta_000004.json"
    whole = path.read_bytes()
    for less in (2, 3):
        path.write_bytes(whole[:-less])
        assert shell(doctor(".").the("meta-torn")["next"]).returncode == 0
    kept = [path.with_name(f"meta_000004.json.cut{n}").read_bytes() for n in ("", "2")]
    assert kept == [whole[:-2], whole[:-3]]


def test_moments_are_kept_when_they_are_begun_anew(run_of, doctor: Doctor, shell: Shell):
    """The rank that is missing may turn up: then those of the others are still there."""
    directory = run_of(4, world=4)
    (directory / "optim_000004_rank2.pt").unlink()
    before = contents(directory)
    assert shell(doctor(".").the("ranks-missing")["next"]).returncode == 0
    assert doctor(".").kinds == []
    assert contents(directory / "damaged") == {name: raw for name, raw in before.items() if "optim" in name}
    assert not (directory / "fresh").exists()


def test_nothing_goes_when_new_files_cannot_be_made(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=2)
    (directory / "optim_000004_rank1.pt").unlink()
    command = doctor(".").the("ranks-missing")["next"]
    flip(directory / "optim_000004_rank0.pt", 5)
    (directory / "optim_000004_rank0.pt").write_bytes(b"not a checkpoint any more")
    before = contents(directory)
    assert shell(command).returncode != 0
    assert contents(directory) == before


def test_the_moments_of_a_list_of_optimizers(run_of, doctor: Doctor, shell: Shell):
    """As until January 2026: each optimizer of the list begins anew."""
    directory = run_of(4, world=2)
    torch.save([optimizer(4, 0, 2), optimizer(4, 0, 2)], directory / "optim_000004_rank0.pt")
    (directory / "optim_000004_rank1.pt").unlink()
    told = doctor(".")
    assert "ranks-missing" in told.kinds
    assert shell(told.the("ranks-missing")["next"]).returncode == 0
    for rank in range(2):
        state = torch.load(directory / f"optim_000004_rank{rank}.pt")
        assert state == [{"state": {}, "param_groups": optimizer(4)["param_groups"]}] * 2
