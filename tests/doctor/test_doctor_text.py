"""What is printed: one screen, 100 columns, commands that can be pasted; and that it costs no torch."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

from doctor_builds import cut, flip, meta, write_meta
from doctor_types import Doctor
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.cli.doctor import shell_lines


def test_a_healthy_directory_is_calm(run_of, text):
    run_of(2, 4)
    shown = text(".").splitlines()
    assert shown[0] == "."
    assert re.fullmatch(
        r"  base_checkpoints/d2: steps 2, 4, whole, 104 kB \.pt, 1 rank, room for [\d,]+ more", shown[1]
    )
    assert shown[2] == "    depth 2, n_embd 16, 2 heads, vocab 64; nanochat of 2026-03-14 (a825e63) or later"
    assert shown[3:] == [
        "nothing wrong; no NaN or infinity in the first 16.4 kB of each tensor; --deep would read every byte"
    ]
    last = "nothing wrong; no NaN or infinity in any tensor; every byte is as it was written"
    assert text(".", "--deep").splitlines()[-1] == last


def everything_wrong(run_of) -> Path:
    directory = run_of(*range(2, 22, 2), world=2)
    for step in (16, 18, 20):
        cut(directory / f"model_{step:06d}.pt")
    (directory / "optim_000014_rank0.pt").rename(directory / "x")
    (directory / "optim_000014_rank1.pt").rename(directory / "optim_000014_rank0.pt")
    (directory / "x").rename(directory / "optim_000014_rank1.pt")
    cut(directory / "meta_000012.json")
    (directory / "optim_000010_rank1.pt").unlink()
    values = meta(8)
    values["loop_state"]["min_val_bpb"] = math.inf
    write_meta(directory, 8, values)
    flip(directory / "model_000006.pt")
    (directory / ".model_000022.fckpt.0123456789ab.fckpt-tmp").write_bytes(b"x")
    (directory.parent / "d99").mkdir()
    return directory


def test_one_screen_of_a_hundred_columns(run_of, text, doctor: Doctor):
    everything_wrong(run_of)
    shown = text(".")
    assert len(shown.splitlines()) <= 50
    assert max(map(len, shown.splitlines())) <= 100
    severities = re.findall(r"^(bad|warn|note) ", shown, re.MULTILINE)
    assert severities == sorted(severities, key=["bad", "warn", "note"].index)
    assert "then go on from step 14 of base_checkpoints/d2, which this makes whole:" in shown
    told = doctor(".")
    assert set(told.kinds) >= {"torn", "swapped", "meta-torn", "ranks-missing", "orphans", "taken-for-model"}
    assert [one["severity"] for one in told.facts["findings"]] == sorted(
        (one["severity"] for one in told.facts["findings"]), key=["bad", "warn", "note"].index
    )


def test_all_commands_of_the_text_are_those_of_the_json(run_of, text, doctor: Doctor):
    everything_wrong(run_of)
    shown = text(".", "--all").replace("\\\n", "")
    commands = [shlex.split(line[7:]) for line in shown.splitlines() if line.startswith("next   ")]
    expected = [shlex.split(one["next"]) for one in doctor(".", "--all").facts["findings"] if one["next"]]
    assert commands == expected


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1), min_size=1, max_size=30))
def test_continued_lines_are_the_same_command(words):
    command = shlex.join(words)
    lines = list(shell_lines(command, label="next   "))
    joined = "\n".join(lines)[7:].replace("\\\n", "")
    assert shlex.split(joined) == words
    assert all(line.endswith(" \\") for line in lines[:-1])


def test_json_is_strict_and_complete(run_of, doctor: Doctor):
    everything_wrong(run_of)
    told = doctor(".", "--deep")
    for one in told.facts["findings"]:
        assert set(one) == {"kind", "severity", "path", "step", "what", "cause", "next", "loss", "mends"}
    assert "rotted" in told.kinds
    assert set(told.facts) == {"path", "deep", "looked", "tags", "findings", "free", "exit_code"}


def test_torch_is_not_imported_unless_numbers_are_looked_at(run_of):
    directory = run_of(2, 4)
    cut(directory / "model_000004.pt")
    program = (
        "import sys; from fastckpt.cli.main import main; code = main(['doctor', sys.argv[1], '--json']); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 1


def test_usage(run_of, text, capsys):
    from fastckpt.cli.main import main

    run_of(2)
    for arguments in (["--step", "-1"], ["--world-size", "0"], ["--depth", "x"], ["a", "b"]):
        assert main(["doctor", ".", *arguments]) == 64
    capsys.readouterr()
