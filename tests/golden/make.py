"""Writes the golden files that are not there yet: ``python tests/golden/make.py``.

A golden file is written once and then stays as it is, for all later versions have to read it. This script never
replaces one. To add a file, add a state and run it. Version 1 is complete: nothing writes it any
more. The foreign files that are converted stand beside what was made of them first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import zstandard

TESTS = Path(__file__).parents[1]
V2 = TESTS / "golden" / "v2"
sys.path[:0] = [str(TESTS / "oracles"), str(TESTS.parent)]

from describe import Description, describe, digest  # noqa: E402
from golden_sets import SETS  # noqa: E402
from golden_states import CONVERTED, FOREIGN, GOLDEN  # noqa: E402
from in_turn import save_in_turn  # noqa: E402

import fastckpt  # noqa: E402

LIMIT = 100 * 1024


def write_expected(path: Path, state: Any, metadata: Any, names: list[str], codec: str) -> None:
    """The JSON beside a golden file: what it holds, from the state it was made of."""
    data = path.read_bytes()
    assert len(data) < LIMIT, f"{path} has {len(data)} bytes"
    root = fastckpt.open(path).root
    expected = {
        "size": len(data),
        "xxh3_128": digest(data),
        "root": root,
        "codec": codec,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)) if codec.startswith("zstd") else None,
        "metadata": Description(metadata).tree,
        "names": names,
        **describe(state),
    }
    write_json(path.with_suffix(".json"), expected)


def write_expected_of_set(directory: Path, state: Any) -> None:
    """The JSON beside a golden set: its files, and what it holds, from the state it was made of."""
    files = {path.name: [path.stat().st_size, digest(path.read_bytes())] for path in sorted(directory.iterdir())}
    assert all(size < LIMIT for size, _ in files.values())
    write_json(directory.with_suffix(".json"), {"files": files, **describe(state)})


def write_json(path: Path, expected: dict[str, Any]) -> None:
    """What is expected, a line for each tensor."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items() if key != "tensors"]
    tensors = ",\n  ".join(map(json.dumps, expected["tensors"]))
    text = ",\n ".join([*lines, f'"tensors": [\n  {tensors}\n ]'])
    path.write_text(f"{{\n {text}\n}}\n", encoding="ascii")


def main() -> None:
    """Write what is missing."""
    V2.mkdir(exist_ok=True)
    for name, golden in GOLDEN.items():
        path = V2 / f"{name}.fckpt"
        if path.exists():
            print(f"{path.name} is kept as it is")
            continue
        state = golden.make()
        fastckpt.save(
            state, path, codec=golden.codec, metadata=golden.metadata, parity=golden.parity, parity_at="inside"
        )
        write_expected(path, state, golden.metadata or {}, list(fastckpt.open(path)), golden.codec)
        print(f"{path.name} is new")
    for foreign, write in FOREIGN.items():
        if not (TESTS / "golden" / foreign).exists():
            write(TESTS / "golden" / foreign)
            print(f"{foreign} is new")
    for name, converted in CONVERTED.items():
        path = V2 / f"{name}.fckpt"
        if path.exists():
            print(f"{path.name} is kept as it is")
            continue
        fastckpt.convert(TESTS / "golden" / converted.source, path, codec=converted.codec)
        with fastckpt.open(path) as opened:
            names, metadata = list(opened), opened.metadata
        state = converted.state()
        if converted.source.endswith("safetensors"):
            state = {key: state[key] for key in names}
        write_expected(path, state, metadata, names, converted.codec)
        print(f"{path.name} is new")
    for name, golden_set in SETS.items():
        directory = TESTS / "golden" / "sets" / name
        if directory.exists():
            print(f"{directory.name} is kept as it is")
            continue
        save_in_turn(directory, golden_set.ranks())
        write_expected_of_set(directory, golden_set.whole())
        print(f"{directory.name} is new")


if __name__ == "__main__":
    main()
