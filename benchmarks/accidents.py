"""What accidents do to a state that is kept in one of seven ways: rows of README.md and docs/comparison.md.

    PYTHONPATH=. python benchmarks/accidents.py            # print them, and the rows of features.py
    PYTHONPATH=. python benchmarks/accidents.py --write    # and keep them in results/accidents.json

Nothing here measures time, so the outcome is the same on every machine. A format whose package is not installed is
left out. `strace` must be there: what is synced is seen in the calls of the process that saves.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import features
import torch
from peer_formats import FORMATS, State, files_of

import fastckpt
from fastckpt.errors import FastckptError

RESULT: Final = Path(__file__).parent / "results" / "accidents.json"
TENSORS, ELEMENTS = 16, 2**20
DAMAGED: Final = "layer.7"
_TIMEOUT: Final = 60


def make_state(seed: int) -> State:
    """16 tensors of 4 MiB, normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{index}": torch.randn(ELEMENTS, generator=generator) for index in range(TENSORS)}


def _loads(load: Callable[[Path], State], path: Path) -> State | Exception:
    try:
        return load(path)
    except Exception as error:  # whatever a library raises for a damaged file
        return error


def _equal(left: State | Exception, right: State) -> bool:
    if isinstance(left, Exception):
        return False
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def _largest(path: Path) -> Path:
    return max(files_of(path), key=lambda file: file.stat().st_size)


# --- what is on the disk changes --------------------------------------------------


def _with_a_flipped_bit(name: str, directory: Path) -> Path:
    """A checkpoint with one bit of a weight, or of what it was compressed to, flipped."""
    path = directory / f"flip{FORMATS[name].suffix}"
    state = make_state(1)
    FORMATS[name].save(state, path)
    weight = state[DAMAGED].numpy().tobytes()
    for file in files_of(path):
        content = bytearray(file.read_bytes())
        if weight in content:
            content[content.index(weight) + 2_000_000] ^= 0x40
            file.write_bytes(content)
            return path
    file = _largest(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
    return path


def flipped_bit(name: str, directory: Path) -> str:
    """One bit of a weight flips on the disk; it is loaded as one does."""
    return _what_is_said(_loads(FORMATS[name].load, _with_a_flipped_bit(name, directory)))


def flipped_bit_checked(name: str, directory: Path) -> str:
    """The same, loaded with the checking that there is."""
    check = FORMATS[name].check
    if check is None:
        return "no such check"
    outcome = _what_is_said(found := _loads(check, _with_a_flipped_bit(name, directory)))
    return f"{outcome}, the tensor named" if isinstance(found, Exception) and DAMAGED in str(found) else outcome


def _what_is_said(found: State | Exception) -> str:
    if isinstance(found, Exception):
        return "refused"
    return "no effect" if _equal(found, make_state(1)) else "loads, unnoticed"


def cut_file(name: str, directory: Path) -> str:
    """Only the first 60 percent of the largest file are there: what its own library gets back, and salvage."""
    path = directory / f"cut{FORMATS[name].suffix}"
    FORMATS[name].save(make_state(1), path)
    file = _largest(path)
    os.truncate(file, file.stat().st_size * 6 // 10)
    own = _loads(FORMATS[name].load, path)
    came_back = f"{0 if isinstance(own, Exception) else len(own)} of {TENSORS} tensors"
    try:
        proven = len(fastckpt.salvage(path).written)
        present = len(fastckpt.salvage(path, include=("unverified",)).written)
    except FastckptError:  # not a format that it knows
        return came_back
    if not present:
        return came_back
    return f"{came_back}; {proven or present} by `fastckpt salvage`{'' if proven else ', unproven'}"


def healed(name: str, directory: Path) -> str:
    """64 KiB of a file are overwritten that was sealed with parity before."""
    path = directory / f"heal{FORMATS[name].suffix}"
    FORMATS[name].save(make_state(1), path)
    file = _largest(path)
    fastckpt.seal(file, parity="3%")
    before = file.read_bytes()
    with open(file, "r+b") as there:
        there.seek(len(before) // 2)
        there.write(bytes(65536))
    fastckpt.repair(file)
    return "healed" if file.read_bytes() == before else "not healed"


# --- a save that does not end well ------------------------------------------------


def _saving(name: str, path: Path, *, limit: int = 0) -> list[str]:
    return [sys.executable, "-W", "ignore", __file__, "--save", name, str(path), "--limit", str(limit)]


def _save_here(name: str, path: Path, limit: int) -> None:
    """The second step, in this process, which may write no file longer than ``limit``."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    FORMATS[name].save(make_state(2), path)


def _with_an_old_one(name: str, directory: Path, what: str) -> Path:
    place = directory / what
    place.mkdir()
    path = place / f"latest{FORMATS[name].suffix}"
    FORMATS[name].save(make_state(1), path)
    return path


def _what_is_there(name: str, path: Path) -> str:
    found = _loads(FORMATS[name].load, path)
    if isinstance(found, Exception):
        return "old file lost"
    if _equal(found, make_state(1)):
        return "old file there"
    return "new file there" if _equal(found, make_state(2)) else "wrong weights"


def killed_save(name: str, directory: Path) -> str:
    """SIGKILL while a file is saved over the one of the step before."""
    path = _with_an_old_one(name, directory, "kill")
    before = _written(path.parent)
    child = subprocess.Popen(_saving(name, path), stderr=subprocess.DEVNULL)
    end = time.monotonic() + _TIMEOUT
    while child.poll() is None and not _half_done(path.parent, before):
        if time.monotonic() > end:
            raise TimeoutError(f"{name} wrote nothing")
        time.sleep(0.0002)
    child.kill()
    if child.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{name} ended before it was killed")
    return _what_is_there(name, path)


def _written(place: Path) -> dict[int, int]:
    """Bytes on the disk of each file, by its inode."""
    return {file.stat().st_ino: file.stat().st_size for file in files_of(place)}


def _half_done(place: Path, before: dict[int, int]) -> bool:
    """Whether a large file began to be written, anew or in place."""
    try:
        now = _written(place)
    except FileNotFoundError:  # removed between the list and the look
        return False
    return any(size != before.get(inode) and size > 2**20 for inode, size in now.items())


def full_disk(name: str, directory: Path) -> str:
    """A save over the last file in which no file may grow beyond half of it."""
    path = _with_an_old_one(name, directory, "full")
    ended = subprocess.run(
        _saving(name, path, limit=_largest(path).stat().st_size // 2), stderr=subprocess.DEVNULL, timeout=_TIMEOUT
    )
    said = "" if ended.returncode > 0 else ", no error" if ended.returncode == 0 else ", the process dies"
    return f"{_what_is_there(name, path)}{said}"


def synced(name: str, directory: Path) -> str:
    """What is on the disk when a save returns, by the calls that it makes."""
    place = directory / "sync"
    place.mkdir()
    trace = directory / "strace"
    calls = "trace=fsync,fdatasync,syncfs,sync_file_range,msync"
    saving = _saving(name, place / f"latest{FORMATS[name].suffix}")
    subprocess.run(["strace", "-f", "-y", "-e", calls, "-o", str(trace), *saving], check=True, timeout=_TIMEOUT)
    paths = [Path(found) for found in re.findall(r"(?:fsync|fdatasync)\(\d+<([^>]*)>", trace.read_text())]
    inside = [path for path in paths if path.is_relative_to(place)]
    data = any(not path.is_dir() for path in inside)
    names = any(path.is_dir() for path in inside)
    return "bytes and names" if data and names else "bytes" if data else "names" if names else "nothing"


# --- size -------------------------------------------------------------------------


def size(name: str, directory: Path) -> str:
    """Bytes of the file beyond those of the tensors, which are normally distributed bf16 numbers."""
    path = directory / f"size{FORMATS[name].suffix}"
    state = {key: value.bfloat16() for key, value in make_state(1).items()}
    saves = [functools.partial(FORMATS[name].save, state, path)]
    if name == "fastckpt":
        saves.append(functools.partial(fastckpt.save, state, path, codec="planes"))
    found = []
    for each in saves:
        each()
        total = sum(file.stat().st_size for file in files_of(path))
        found.append(f"{(total / (TENSORS * ELEMENTS * 2) - 1) * 100:+.2f} %")
    return "; ".join([found[0], *(f'{more} with `codec="planes"`' for more in found[1:])])


Row = Callable[[str, Path], str]

ROWS: Final[dict[str, Row]] = {
    "a bit of a weight flips": flipped_bit,
    "the same, with the check that there is": flipped_bit_checked,
    "the file is cut at 60 %": cut_file,
    "64 KiB are overwritten, sealed before by `fastckpt seal --parity 3%`": healed,
    "`kill -9` during a save over the last file": killed_save,
    "no space during a save over the last file": full_disk,
    "synced when a save returns": synced,
    **features.ROWS,
    "size of the file beside that of bf16 tensors": size,
}


def measure() -> dict[str, Any]:
    """The outcome of each row for each format, and the versions it was made with."""
    versions = {}
    for name, made in FORMATS.items():
        try:
            own = made.package == "fastckpt"  # which may be a tree that is not installed
            versions[name] = (fastckpt.__version__ if own else version(made.package)).split("+")[0]
        except PackageNotFoundError:
            print(f"{made.package} is not installed", file=sys.stderr)
    rows = {}
    for title, row in ROWS.items():
        rows[title] = {}
        for name in versions:
            with tempfile.TemporaryDirectory() as directory:
                rows[title][name] = row(name, Path(directory))
        print(title, rows[title], file=sys.stderr)
    return {"versions": versions, "rows": rows}


def main() -> None:
    """Print the outcome, and keep it if asked to; or be the process that saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--save", nargs=2, metavar=("FORMAT", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        _save_here(options.save[0], Path(options.save[1]), options.limit)
        return
    warnings.simplefilter("ignore")
    text = json.dumps(measure(), indent=2) + "\n"
    print(text, end="")
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
