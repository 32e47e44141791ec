"""``whole``: all files of a step are there, none is damaged, and they are of one save.

Of nanochat's steps. What breaks a checkpoint of another program is in ``tests/sets/test_judge.py``.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from claim_steps import (
    FORMS,
    Fault,
    around,
    broken_number,
    change,
    cut,
    delete,
    delete_meta,
    delete_optimizer,
    flip,
    in_both,
    other_format,
    other_sizes,
    prefixed,
    replace,
    run_with,
    swap,
)
from claim_tables import Claim, Row, Tell, made
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.cli.main import main
from fastckpt.verdicts import Verdict


def by_salvage(tell: Tell, inputs: list[Path]) -> bool:
    return "newest whole step: step 8" in tell("salvage", *inputs).text


def by_salvage_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("salvage", *inputs, "--json").json["newest_whole"] == 8)


def by_doctor(tell: Tell, inputs: list[Path]) -> bool:
    (tag,) = tell("doctor", *inputs, "--deep", "--json").json["tags"]
    return bool(tag["newest_whole"] == 8)


def by_doctor_steps(tell: Tell, inputs: list[Path]) -> bool:
    (tag,) = tell("doctor", *inputs, "--deep", "--json").json["tags"]
    return any(step["whole"] for step in tag["examined"] if step["step"] == 8)


def by_doctor_text(tell: Tell, inputs: list[Path]) -> bool:
    text = " ".join(tell("doctor", *inputs, "--deep").text.split())
    return ": steps 4, 8, whole, " in text


def by_verify(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("verify", *inputs)
    return "; 2 of 2 checkpoints whole" in told.text or told.code == 0


def by_verify_json(tell: Tell, inputs: list[Path]) -> bool:
    return any(each["verdict"] == "whole" for each in _judged(tell("verify", *inputs, "--json").json, 8))


def _judged(document: Any, step: int) -> list[Any]:
    return [each for each in document["sets"] if each["step"] == step]


def by_backup(tell: Tell, inputs: list[Path]) -> bool:
    document = tell("backup", *inputs, inputs[0].parent / "copy", "--json").json
    return 8 in [step["step"] for step in document.get("steps", [])]


CLAIM = Claim(
    Verdict.WHOLE,
    {
        "salvage": by_salvage,
        "salvage, JSON": by_salvage_json,
        "doctor": by_doctor,
        "doctor, each step": by_doctor_steps,
        "doctor, text": by_doctor_text,
        "verify": by_verify,
        "verify, JSON": by_verify_json,
        "backup": by_backup,
    },
    {form: run_with(form) for form in FORMS},
    [
        Row(
            "all its files are there",
            {
                **in_both("no model", delete("model_000008")),
                **in_both("a rank less", delete("optim_000008_rank1")),
                **in_both("no meta", delete_meta),
            },
        ),
        Row(
            "none of them is damaged",
            {
                **in_both("a bit of the model", change("model_000008", flip)),
                **in_both("a bit of a rank", change("optim_000008_rank1", flip)),
                **in_both("the model is cut", change("model_000008", cut)),
                **in_both("a rank is empty", change("optim_000008_rank0", lambda raw: b"")),
                **in_both("a byte around the tensors", change("model_000008", around)),
                **in_both("a byte around those of a rank", change("optim_000008_rank1", around)),
            },
        ),
        Row(
            "they are of one save, each in its own place",
            {
                **in_both("two ranks are swapped", swap("optim_000008_rank0", "optim_000008_rank1")),
                **in_both("a rank of another step", replace("optim_000008_rank1", "optim_000004_rank1")),
                **in_both("a rank twice", replace("optim_000008_rank1", "optim_000008_rank0")),
            },
        ),
    ],
)


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_another_step_in_the_other_format(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either file can be the one that a program loads; a backup takes those that are of one save."""
    told = made(CLAIM, run_with(form, other_format("model_000008", "model_000004")), tmp_path, capsys)
    assert not any(said for way, said in told.items() if way != "backup"), told
    copied = {path.suffix for path in tmp_path.rglob("copy/model_000008.*")}
    assert copied == {f".{form}"}


def renamed(directory: Path, form: str) -> None:
    """Step 8 under the names of step 9."""
    for path in directory.glob("*_000008*"):
        path.rename(path.with_name(path.name.replace("8", "9")))


def salvaged(directory: Path, form: str) -> None:
    """What came back of a damaged file, in its place."""
    path = directory / f"optim_000008_rank1.{form}"
    raw = bytearray(path.read_bytes())
    flip(raw)
    path.write_bytes(raw)
    fastckpt.salvage(path, directory / f"rescued.{form}", durable=False)
    (directory / f"rescued.{form}").rename(path)


FAULTS: dict[str, Fault] = {
    "none": lambda directory, form: None,
    "a wrapper's prefix": prefixed,
    "a meta file of another model": other_sizes,
    "a NaN": broken_number,
    "no optimizer": delete_optimizer,
    "another number": renamed,
    "salvaged": salvaged,
    "a file that may not be read": lambda directory, form: (directory / f"model_000008.{form}").chmod(0),
    "the other format has another step": other_format("model_000008", "model_000004"),
    "a byte around the tensors": change("model_000008", around),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", FAULTS)
def test_every_command_means_the_same(
    what: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else speaks against a step, `salvage`, `doctor` and `verify` call the same ones whole."""
    opening = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if isinstance(path, str) and os.path.exists(path) and not os.stat(path).st_mode & 0o400:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opening(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    (directory,) = run_with(form, FAULTS[what])(tmp_path)
    answers = []
    for command in ("salvage", "doctor --deep"):
        capsys.readouterr()
        main([*command.split(), str(directory), "--json"])
        document = json.loads(capsys.readouterr().out)
        tag = document["tags"][0] if "tags" in document else document
        steps = tag.get("examined") or tag["steps"]
        whole = {step["step"]: step["whole"] if "whole" in step else step["state"] == "whole" for step in steps}
        unread = {step["step"] for step in steps if step.get("state") == "unread" or step.get("whole", 0) is None}
        answers.append((tag["newest_whole"], {number for number in whole if whole[number]}, unread))
    assert answers[0] == answers[1]
    code = main(["verify", str(directory), "--json"])
    judged = json.loads(capsys.readouterr().out)["sets"]
    assert {each["step"] for each in judged if each["verdict"] == "whole"} == answers[0][1]
    assert {each["step"] for each in judged if each["verdict"] == "not read"} == answers[0][2]
    assert (code == 0) == all(each["verdict"] == "whole" for each in judged)
    number = 9 if what == "another number" else 8
    expected = what in ("none", "a wrapper's prefix", "a meta file of another model", "a NaN", "another number")
    assert (number in answers[0][1]) == expected
    assert bool(answers[0][2]) == (what == "a file that may not be read")


VERIFIED: dict[str, tuple[Fault, str, str]] = {
    "swapped": (swap("optim_000008_rank0", "optim_000008_rank1"), "inconsistent", " was saved as optim_000008_rank1"),
    "another step": (replace("optim_000008_rank1", "optim_000004_rank1"), "inconsistent", "are of different steps"),
    "no rank": (delete("optim_000008_rank1"), "missing", "there is no optimizer of rank 1 of 2"),
    "no optimizer": (delete_optimizer, "missing", "there is no optimizer file"),
    "no model": (delete("model_000008"), "missing", "there is no model_000008"),
    "no meta": (delete_meta, "missing", "there is no meta_000008.json"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", VERIFIED)
def test_verify_names_what_is_wrong_with_a_step(
    what: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of its files is intact all the same."""
    fault, kind, message = VERIFIED[what]
    (directory,) = run_with(form, fault)(tmp_path)
    assert main(["verify", str(directory)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{kind}  d2, step 8: ") and message in line for line in lines)
    assert f"d2, step 8: not whole; next: fastckpt doctor {directory}" in lines
    assert lines[-1].endswith(" intact; 1 of 2 checkpoints whole")
    for words in ([str(directory)], ["-r", str(tmp_path)]):
        assert main(["verify", *words, "--json"]) == 2
        document = json.loads(capsys.readouterr().out)
        (judged,) = _judged(document, 8)
        assert (judged["verdict"], judged["exit_code"], judged["problems"][0]["kind"]) == ("not whole", 2, kind)
        assert all(file["verdict"] == "intact" for file in document["files"])
        (other,) = _judged(document, 4)
        assert (other["verdict"], other["exit_code"], other["problems"]) == ("whole", 0, [])


def delete_optimizers(directory: Path, form: str) -> None:
    for path in directory.glob("optim_*"):
        path.unlink()


def test_verify_of_files_speaks_of_these_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory,) = run_with("pt", delete_meta)(tmp_path)
    assert main(["verify", *map(str, directory.glob("*_000008*")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", [None, delete_optimizers, renamed], ids=["as saved", "models alone", "renamed"])
def test_verify_takes_what_can_be_meant(
    fault: Fault | None, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory,) = run_with(form, fault)(tmp_path)
    assert main(["verify", str(directory)]) == 0
    text = capsys.readouterr().out
    assert ("note  d2, step 9: all files of this step were saved as step 8" in text) == (fault is renamed)
