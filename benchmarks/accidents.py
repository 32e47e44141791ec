"""What a flipped bit, a cut file and a killed save do to three formats: three columns of the README's table.

    PYTHONPATH=. python benchmarks/accidents.py            # print it
    PYTHONPATH=. python benchmarks/accidents.py --write    # and keep it in results/accidents.json

Nothing here measures time, so the outcome is the same on every machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import fastckpt

RESULT = Path(__file__).parent / "results" / "accidents.json"
TENSORS, ELEMENTS = 16, 2**20

State = dict[str, torch.Tensor]
FORMATS: dict[str, tuple[str, Callable[[State, Path], Any], Callable[[Path], State]]] = {
    "torch": (".pt", torch.save, torch.load),
    "safetensors": (".safetensors", safetensors.torch.save_file, safetensors.torch.load_file),
    "fastckpt": (".fckpt", fastckpt.save, fastckpt.load),
}


def _state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{index}": torch.randn(ELEMENTS, generator=generator) for index in range(TENSORS)}


def _loads(load: Callable[[Path], State], path: Path) -> State | None:
    try:
        return load(path)
    except Exception:  # whatever a library raises for a damaged file
        return None


def _equal(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def flipped_bit(name: str, directory: Path) -> str:
    """One bit of a weight flips on the disk."""
    suffix, save, load = FORMATS[name]
    state, path = _state(1), directory / f"flip{suffix}"
    save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["layer.7"].numpy().tobytes()) + 2_000_000] ^= 0x40
    path.write_bytes(content)
    loaded = _loads(load, path)
    if loaded is None:
        return "refused"
    return "loads, unnoticed" if not _equal(loaded, state) else "no effect"


def cut_file(name: str, directory: Path) -> str:
    """Only the first 60 percent of the file are there: what its own library gets back, and what salvage does."""
    suffix, save, load = FORMATS[name]
    path = directory / f"cut{suffix}"
    save(_state(1), path)
    os.truncate(path, path.stat().st_size * 6 // 10)
    own = _loads(load, path)
    proven = len(fastckpt.salvage(path).written)
    present = len(fastckpt.salvage(path, include=("unverified",)).written)
    rescued = f"{proven} by `fastckpt salvage`" if proven else f"{present} by `fastckpt salvage`, unproven"
    return f"{0 if own is None else len(own)} of {TENSORS} tensors; {rescued}"


def killed_save(name: str, directory: Path) -> str:
    """SIGKILL while a file is saved over the one of the step before."""
    suffix, save, load = FORMATS[name]
    place = directory / f"kill-{name}"
    place.mkdir()
    path, old, new = place / f"latest{suffix}", _state(1), _state(2)
    save(old, path)
    child = multiprocessing.get_context("fork").Process(target=save, args=(new, path))
    before = _written(place)
    child.start()
    while child.is_alive() and not _half_done(place, before):
        time.sleep(0.0002)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    found = _loads(load, path)
    if found is None:
        return "old file lost"
    return "old file there" if _equal(found, old) else "new file there" if _equal(found, new) else "wrong weights"


def _written(place: Path) -> dict[int, int]:
    """Bytes on the disk of each file, by its inode."""
    return {file.stat().st_ino: file.stat().st_size for file in place.iterdir()}


def _half_done(place: Path, before: dict[int, int]) -> bool:
    """Whether a file began to be written, anew or in place, and is not yet all there."""
    return any(size != before.get(inode) and size > 0 for inode, size in _written(place).items())


def size(name: str, directory: Path) -> str:
    """Bytes of the file beyond those of the tensors, which are normally distributed bf16 numbers."""
    suffix, save, _ = FORMATS[name]
    path, state = directory / f"size{suffix}", {key: value.bfloat16() for key, value in _state(1).items()}
    saves = [functools.partial(save, state, path)]
    if name == "fastckpt":
        saves.append(functools.partial(save, state, path, codec="planes"))
    found = []
    for each in saves:
        each()
        found.append(f"{(path.stat().st_size / (TENSORS * ELEMENTS * 2) - 1) * 100:+.2f} %")
    return "; ".join([found[0], *(f'{more} with `codec="planes"`' for more in found[1:])])


ROWS = {
    "a bit of a weight flips": flipped_bit,
    "the file is cut at 60 %": cut_file,
    "`kill -9` during a save over the last file": killed_save,
    "size of the file beside that of bf16 tensors": size,
}


def measure() -> dict[str, Any]:
    """The outcome of each row for each format, and the versions it was made with."""
    with tempfile.TemporaryDirectory() as directory:
        rows = {title: {name: row(name, Path(directory)) for name in FORMATS} for title, row in ROWS.items()}
    return {"versions": {name: version(name).split("+")[0] for name in FORMATS}, "rows": rows}


def main() -> None:
    """Print the outcome, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = json.dumps(measure(), indent=2) + "\n"
    print(text, end="")
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
