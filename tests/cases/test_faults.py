"""The scripts of ``shared/cases/faults``: each makes a fault of its own and prints what came of it.

They are run as they are, only shorter: where they try something for a long
time, fewer tries are made, and their files go to the directory of the test.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import forked
import pytest
from slowness import within
from test_cases import CASES

FAULTS = CASES / "faults"

pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="the folder shared/cases is not here")


def run(name: str, directory: Path, shorter: tuple[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in an empty directory; ``shorter`` is a part of it, and what stands there instead."""
    for helper in ("craft.py", "adv2_min.py", "numel_huge.pt", name):
        text = (FAULTS / helper).read_bytes()
        (directory / helper).write_bytes(text.replace(b"/dev/shm/", f"{directory}/".encode()))
    script = directory / name
    text = script.read_text()
    if shorter is not None:
        assert shorter[0] in text
        script.write_text(text.replace(*shorter))
    return forked.run("-u", str(script), cwd=directory)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_mixed_saves(tmp_path: Path) -> None:
    lines = said(run("mixed_saves.py", tmp_path))
    assert len(lines) == 4
    for line in lines:
        assert "load LOADED" not in line
        one, two = (int(re.search(rf"of save {n} (\d+)", line)[1]) for n in (1, 2))  # type: ignore[index]
        assert not (one and two and "complete True" in line), line
        # Tensors of both are never intact without a word that there are two.
        assert not (one and two) or "save" in line.partition("notes ")[2], line


def test_zip_misdirected(tmp_path: Path) -> None:
    lines = said(run("zip_misdirected.py", tmp_path))
    salvaged = [line for line in lines if "intact but wrong:" in line]
    assert len(salvaged) == 2
    assert all("intact but wrong: []" in line for line in salvaged)
    assert all("complete False" in line or "exit 1" in line for line in salvaged)
    assert lines.count("verify ok: False") == 2
    assert "load ok!?" not in lines


def test_hammer(tmp_path: Path) -> None:
    """A file that is replaced all the time: the old state, the new one, or an error."""
    (line,) = said(run("hammer.py", tmp_path, ("time.time()+25", "time.time()+2")))
    loads, wrong = (int(re.search(pattern, line)[1]) for pattern in (r"(\d+) loads", r"(\d+) silently wrong"))  # type: ignore[index]
    assert loads > 5
    assert wrong == 0


def test_mutate(tmp_path: Path) -> None:
    """A tensor that changes while it is saved: the file loads."""
    lines = said(run("mutate.py", tmp_path, ("range(25)", "range(4)")))
    assert len(lines) == 2
    assert all(line.endswith("unloadable: 0") for line in lines)


def test_prune_deletes_good_step(tmp_path: Path) -> None:
    lines = said(run("prune_deletes_good_step.py", tmp_path))
    assert len(lines) == 9
    for line in lines:
        left = re.search(r"steps left \[([^]]*)\]", line)
        assert left is not None
        assert {"2", "3"} <= set(left[1].split(", ")), line


def test_prune_best(tmp_path: Path) -> None:
    first, *lines = said(run("prune_best.py", tmp_path))
    assert "(1, True" in first
    for line in lines:
        assert "(1, False" not in line, line


def test_source_bomb(tmp_path: Path) -> None:
    done = run("source_bomb.py", tmp_path)
    assert done.returncode != 0
    assert "fastckpt.errors." in done.stderr.splitlines()[-1]
    assert not (tmp_path / "sb.pt").exists()


def test_fd_leak(tmp_path: Path) -> None:
    (line,) = said(run("fd_leak.py", tmp_path, ("range(2000)", "range(200)")))
    assert int(line.rpartition(" ")[2]) < 20


def test_hash_flood(tmp_path: Path) -> None:
    """Each of the files is read quickly or refused; the script ends at the first .fckpt that is."""
    done = run("hash_flood.py", tmp_path)
    times = [float(seconds) for seconds in re.findall(r"load ([\d.]+) s CPU", done.stdout)]
    assert len(times) >= 4
    assert all(within(seconds, 3) for seconds in times), done.stdout
    assert done.returncode == 0 or "fastckpt.errors.DamagedError" in done.stderr.splitlines()[-1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["numel_huge.pt", "storage_2e62.fckpt", "adv_zero_huge.safetensors"])
@pytest.mark.parametrize("command", [["verify"], ["inspect"], ["salvage"], ["plot", "--text"], ["diff", "FILE"]])
def test_hostile_files(name: str, command: list[str], tmp_path: Path) -> None:
    path = str(FAULTS / name)
    words = [path if word == "FILE" else word for word in command]
    done = forked.run("-m", "fastckpt", words[0], path, *words[1:], cwd=tmp_path, timeout=60)
    assert done.returncode in (0, 1, 2, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert not (words[0] == "verify" and "intact: " in done.stdout and done.returncode)
