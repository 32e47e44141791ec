"""Meta files that are cut, missing, of another step, or not quite JSON."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from doctor_builds import CONFIG, cut, meta, model, optimizer, write_meta
from doctor_types import Doctor, Shell, Told

import fastckpt.nanochat


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_bare_infinity_is_a_note(run_of, doctor: Doctor):
    directory = run_of(4)
    values = meta(4)
    values["loop_state"]["min_val_bpb"] = math.inf
    write_meta(directory, 4, values)
    told = doctor(".")
    assert (told.code, told.kinds, told.notes) == (0, [], ["meta-infinity"])
    found = told.the("meta-infinity")
    assert "loop_state.min_val_bpb is a bare Infinity" in found["what"]
    assert found["next"] is None


def sets_aside(told: Told, kind: str, doctor: Doctor, shell: Shell) -> str:
    """The cause that is told, after the command told with it put the step out of the way of the whole one."""
    found = told.the(kind)
    assert (found["mends"], found["loss"], told.tag["resume_step"]) == (False, False, 2)
    assert "step 2 is whole" in found["cause"]
    assert shell(found["next"]).returncode == 0
    after = doctor(".")
    assert (after.kinds, after.tag["steps"]) == ([], [2])
    return found["cause"]


def test_cut_beside_another_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    cut(directory / "meta_000004.json")
    sets_aside(doctor("."), "meta-torn", doctor, shell)
    assert (directory / "damaged" / "meta_000004.json").exists()


def test_missing_beside_another_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    (directory / "meta_000004.json").unlink()
    sets_aside(doctor("."), "meta-missing", doctor, shell)


def test_only_the_last_brace_is_cut(run_of, doctor: Doctor, shell: Shell):
    """All that was saved is there: what is written is what was."""
    directory = run_of(2, 4)
    path = directory / "meta_000004.json"
    path.write_bytes(path.read_bytes()[:-2])
    told = doctor(".")
    assert (told.the("meta-torn")["mends"], told.tag["resume_step"]) == (True, 4)
    assert shell(told.the("meta-torn")["next"]).returncode == 0
    assert doctor(".").kinds == []
    assert read(path) == meta(4)
    assert shell(told.tag["resume"]).stdout == "resumed 'a run' at step 4 on 1\n"


@pytest.mark.parametrize("keep", [0.6, 0.9, 0.97])
def test_cut_and_no_other_step(keep: float, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    cut(directory / "meta_000004.json", keep)
    told = doctor(".")
    found = told.the("meta-torn")
    assert (told.code, found["mends"]) == (2, False)
    assert "loop_state: not known, begun anew" in found["cause"]
    done = shell(found["next"])
    assert done.returncode == 0, done.stderr
    values = read(directory / "meta_000004.json")
    assert values["step"] == 4
    assert values["model_config"] == CONFIG
    assert values["made_anew"][-1] == "loop_state"
    after = doctor(".")
    assert (after.code, after.kinds) == (1, ["meta-made"])
    assert "loop_state" in after.the("meta-made")["what"]
    assert shell(after.tag["resume"]).stdout.endswith("at step 4 on 1\n")


def test_cut_before_the_config(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    cut(directory / "meta_000004.json", 0.05)
    found = doctor(".").the("meta-torn")
    assert "its sizes follow from the model" in found["cause"]
    assert "dataloader_state_dict and loop_state: not known" in found["cause"]
    assert shell(found["next"]).returncode == 0
    assert doctor(".").kinds == ["meta-made"]
    config = read(directory / "meta_000004.json")["model_config"]
    assert config == CONFIG | {"sequence_len": 2048, "vocab_size": 64, "window_pattern": "SSSL"}
    assert shell("python -m scripts.base_train --depth=2 --resume-from-step=4").returncode == 0


def test_made_anew_beside_a_whole_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    write_meta(directory, 4, meta(4) | {"made_anew": ["loop_state"]})
    told = doctor(".")
    found = told.the("meta-made")
    assert (told.code, told.tag["newest_sound"], told.tag["resume_step"]) == (1, 2, 2)
    assert "step 2 is whole" in found["cause"]
    assert shell(found["next"]).returncode == 0
    assert doctor(".").kinds == []


def test_cut_and_of_another_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    shutil.copy(directory / "meta_000002.json", directory / "meta_000004.json")
    path = directory / "meta_000004.json"
    path.write_bytes(path.read_bytes()[:-2])
    sets_aside(doctor("."), "meta-torn", doctor, shell)


@pytest.mark.parametrize("value", [None, 1, "x", {"a": 1}, [], [1, None, []]])
def test_made_anew_names_entries_or_nothing(value: object, run_of, doctor: Doctor):
    write_meta(run_of(4), 4, meta(4) | {"made_anew": value})
    assert doctor(".").kinds == []


def test_of_another_step(run_of, doctor: Doctor, shell: Shell):
    """Its number can be corrected, its place in the data cannot: no command may hide that."""
    directory = run_of(2, 4)
    shutil.copy(directory / "meta_000002.json", directory / "meta_000004.json")
    told = doctor(".")
    assert told.tag["newest_whole"] == 2
    cause = sets_aside(told, "meta-step", doctor, shell)
    assert "its place in the data and its loop state are those of step 2" in cause
    assert read(directory / "damaged" / "meta_000004.json") == meta(2)


def test_of_another_step_and_no_whole_one(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4)
    write_meta(directory, 4, meta(2))
    told = doctor(".")
    assert (told.code, told.tag["resume"]) == (2, None)
    assert shell(told.the("meta-step")["next"]).returncode == 0
    assert doctor(".").code == 4


def test_of_another_model(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    wrong = {"n_layer": 12, "n_embd": 768, "n_head": 6, "n_kv_head": 6, "vocab_size": 32768}
    write_meta(directory, 4, meta(4, **wrong))
    told = doctor(".")
    found = told.the("config")
    assert "depth 12, n_embd 768, 6 heads, vocab 32768" in found["what"]
    assert "depth 2, n_embd 16, 2 heads, vocab 64" in found["what"]
    cause = sets_aside(told, "config", doctor, shell)
    assert "transformer.wte.weight is 64x16, not 32768x768" in cause
    assert "its place in the data" in cause


def test_own_format_names_its_meta_by_digest(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    for step in (2, 4):
        fastckpt.nanochat.save_checkpoint(directory, step, model(step), optimizer(step), meta(step))
    cut(directory / "meta_000004.json")
    told = doctor(".")
    assert told.kinds == ["meta-torn"]
    assert shell(told.the("meta-torn")["next"]).returncode == 0, "a meta of another step would not be taken"
    assert doctor(".").tag["newest_whole"] == 2


def test_own_format_and_no_other_step(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    fastckpt.nanochat.save_checkpoint(directory, 4, model(4), optimizer(4), meta(4))
    cut(directory / "meta_000004.json", 0.9)
    told = doctor(".")
    found = told.the("meta-torn")
    assert (told.code, found["mends"]) == (2, False), "the marks say that it is not the meta of this save"
    assert shell(found["next"]).returncode == 0
    assert doctor(".").kinds == ["incomplete", "meta-made"]
    assert fastckpt.nanochat.load_checkpoint(directory, 4, "cpu", load_optimizer=True)[2]["model_config"] == CONFIG


@pytest.mark.parametrize("data", [b"[1, 2]", b"\xff\xfe{", b"", b"[" * 100_000, b"{" + b'"a":' * 50_000, b"null"])
def test_hostile(data: bytes, run_of, doctor: Doctor):
    directory = run_of(2, 4)
    (directory / "meta_000004.json").write_bytes(data)
    assert doctor(".").kinds == ["meta-torn"]
