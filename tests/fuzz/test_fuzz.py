"""Everything that reads files, fuzzed: a replay of the corpus, then a second of new inputs for each target.

``FASTCKPT_FUZZ_SECONDS=30 pytest tests/fuzz`` takes longer for each target, as many at a time as there are CPUs, and
fails where the targets of the native core cannot be built. ``FASTCKPT_FUZZ_SEED`` makes other inputs.
``python tests/fuzz/fuzz.py`` is the same without pytest, and keeps the inputs that fail. The targets for what the
native core parses are ``csrc/tests/fuzz_*.cc``: they are built with clang and libFuzzer where those are at hand, and
otherwise with g++, the address and undefined behaviour sanitizers and a driver of their own. They run where they are
built or where FASTCKPT_FUZZ_SECONDS asks for it, as CI does.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from fuzz import CORPUS, Result, fuzz
from targets import TARGETS, packed, resealed, run_blocks, run_fckpt, unpacked

import fastckpt

ASKED = "FASTCKPT_FUZZ_SECONDS" in os.environ
SECONDS = float(os.environ.get("FASTCKPT_FUZZ_SECONDS", "1"))
SEED = int(os.environ.get("FASTCKPT_FUZZ_SEED", "1"))
CORE_TESTS = Path(__file__).parents[2] / "csrc" / "tests"


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Future[Result]]]:
    """What comes of every target, each in a process of its own."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        yield {name: pool.submit(fuzz, name, SECONDS, SEED) for name in sorted(TARGETS)}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_target(target: str, results: dict[str, Future[Result]], capsys: pytest.CaptureFixture[str]) -> None:
    result = results[target].result()
    with capsys.disabled():
        print(f"\n{result}", end="")
    shown = [f"{base64.b64encode(data[:3000]).decode()}\n{text}" for data, text in result.failures]
    assert not result.failures, "\n".join(shown)
    assert result.replayed >= 3
    assert result.made


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300 * 1024
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_resealed_blocks_reach_the_parsers() -> None:
    """The targets get past the digests: without that, they would only ever test these."""
    said = [run_blocks(path.read_bytes()) for path in sorted((CORPUS / "blocks").iterdir())]
    assert all(text == "decoded" for text in said)
    changed = bytearray((CORPUS / "blocks" / "tiny header 0").read_bytes())
    changed[32] ^= 1  # raw_size
    assert "digest" not in run_blocks(bytes(changed))
    whole = unpacked((CORPUS / "fckpt" / "state 0").read_bytes()[1:])
    assert resealed(whole) == whole
    assert "loaded" in run_fckpt(b"\1" + packed(whole))


@pytest.mark.parametrize(("target", "kind"), [("safetensors", "safetensors"), ("legacy", "torch-")])
def test_damaged_beginnings_reach_salvage(target: str, kind: str) -> None:
    """Salvage goes by the suffix where a file's first bytes tell nothing: only what holds nothing is no checkpoint."""
    said = [TARGETS[target].run(b"\xff" * 8 + path.read_bytes()[8:]) for path in sorted((CORPUS / target).iterdir())]
    last = [text.rpartition(" | ")[2] for text in said]
    reached = [text for text in last if text.startswith(kind)]
    assert len(reached) >= len(last) // 2, said
    assert all(text.startswith((kind, "NotACheckpointError")) for text in last), said


def test_packed_files(tmp_path: Path) -> None:
    fastckpt.save({"a": [1, 2, 3]}, tmp_path / "file.fckpt", durable=False)
    raw = (tmp_path / "file.fckpt").read_bytes()
    assert unpacked(packed(raw)) == raw
    assert len(packed(raw)) < len(raw) / 8


def cannot(reason: str) -> NoReturn:
    """Skip; but fail where fuzzing was asked for, as in CI."""
    if ASKED:
        pytest.fail(f"asked to fuzz the core: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def core_targets() -> None:
    if not (CORE_TESTS / "Makefile").exists() or shutil.which("make") is None:
        cannot("needs the source tree and make")
    if shutil.which("clang++") is None and shutil.which("g++") is None:
        cannot("needs a C++ compiler")
    if not ASKED and not any((CORE_TESTS.parents[1] / "build").glob("fuzz*/fuzz_*")):
        # Half a minute on two cores; once they are built, the next runs take them.
        pytest.skip("the programs are not built yet; FASTCKPT_FUZZ_SECONDS=1 pytest tests/fuzz does it")
    jobs = f"-j{os.cpu_count() or 1}"
    built = subprocess.run(
        ["make", "-C", str(CORE_TESTS), jobs, "fuzz-build"], capture_output=True, text=True, check=False
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        cannot("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr


def test_core_targets(core_targets: None) -> None:
    """The core's targets, under the sanitizers."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        options = [f"FUZZ_TARGETS={name}", f"FUZZ_SECONDS={max(1, round(SECONDS))}", f"FUZZ_SEED={SEED}"]
        command = ["make", "-C", str(CORE_TESTS), "fuzz", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    names = [path.stem.removeprefix("fuzz_") for path in CORE_TESTS.glob("fuzz_*.cc") if path.stem != "fuzz_main"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(run, names):
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
