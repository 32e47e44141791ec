"""How small and how fast the codec planes is, beside zstd, ZipNN and what a perfect code of the exponents would take.

    python benchmarks/codec.py [FILE ...] [--zipnn PYTHON]

It trains a small GPT on text (``--seconds``), and takes the checkpoints given. Each is saved with every codec. Speeds
are of one thread and its CPU time, GB/s of raw bytes, best of several rounds: of the first MiBs of a corpus in memory,
and of one chunk that stays in the cache. ``--zipnn`` names an interpreter that has ZipNN; besides, the figures that
were published for it are scaled by how fast this machine copies memory. The result goes to
``benchmarks/results/codec.json``.

    python benchmarks/codec.py --only disk [--dir DIRECTORY] [--megabytes N]

measures only durable saves and cold loads of a bfloat16 model (codec_disk.py); ``--only corpora`` all but these. What
is not measured stays in the result as it was, with the machine it was measured on.
"""

from __future__ import annotations

import argparse
import heapq
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from bench import machine
from codec_corpora import corpora
from codec_disk import disk

import fastckpt
from fastckpt import _core
from fastckpt.codec.numbers import BLOCK, KINDS
from fastckpt.constants import CHUNK_SIZE
from fastckpt.stored.inspection import inspect_file

PUBLISHED: Final = {"encode": 1.04, "decode": 2.66, "memcpy": 13.0}
"""ZipNN 0.5.4 on bfloat16, one thread, GB/s, and what that machine copied in the same time."""
SPAN: Final = 32 * CHUNK_SIZE
HUFFMAN_SPAN: Final = 256 * 1024
"""Raw bytes that share one code in the bound, as in ZipNN."""
TARGETS: Final = {
    "bound": 0.995,
    "adamw": 1.28,
    "avx512": {"encode": 3, "decode": 2.5},
    "avx2": {"encode": 1, "decode": 1},
}


def gb_per_s(work: Callable[[], object], nbytes: int, rounds: int) -> float:
    """The best of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return round(nbytes / best / 1e9, 2)


def raw_of(state: Any, dtype: torch.dtype) -> bytes:
    """The bytes of all tensors of one dtype."""
    found = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor) and t.dtype == dtype]
    return b"".join(t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in found if t.numel())


def huffman_bits(counts: list[int]) -> int:
    """Bits of all values in the best prefix code, without its table."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    bits = heap[0] if len(heap) == 1 else 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        bits += both
        heapq.heappush(heap, both)
    return bits


def huffman_bound(raw: bytes, dtype: torch.dtype) -> float:
    """The ratio if exponents took what Huffman's code takes for each 256 KiB, and all else were stored as it is."""
    width = dtype.itemsize
    words = np.frombuffer(raw, f"<u{width}")
    exponents = (words >> (7 if dtype == torch.bfloat16 else 23)) & 0xFF
    step = HUFFMAN_SPAN // width
    bits = sum(
        huffman_bits(np.bincount(exponents[at : at + step], minlength=256).tolist())
        for at in range(0, len(exponents), step)
    )
    return len(raw) / (bits / 8 + len(words) * (width - 1))


def speeds(raw: bytes, kind: int, rounds: int) -> dict[str, float]:
    """Encoding and decoding, at the current instruction set."""
    chunks = [memoryview(raw)[at : at + CHUNK_SIZE] for at in range(0, min(len(raw), SPAN), CHUNK_SIZE)]
    kinds = [bytes([kind]) * -(-len(chunk) // BLOCK) for chunk in chunks]
    stored = [_core.planes_encode(chunk, own) for chunk, own in zip(chunks, kinds, strict=True)]
    whole = [(s, c) for s, c in zip(stored, chunks, strict=True) if s is not None]
    out = np.zeros(sum(len(chunk) for _, chunk in whole), np.uint8)
    places = np.split(out, np.cumsum([len(chunk) for _, chunk in whole])[:-1])

    def encode() -> None:
        for chunk, own in zip(chunks, kinds, strict=True):
            _core.planes_encode(chunk, own)

    def decode() -> None:
        for (packed, _), place in zip(whole, places, strict=True):
            _core.planes_decode(packed, place)

    first, chunk = whole[0]
    times = 32

    def encode_again() -> None:
        for _ in range(times):
            _core.planes_encode(chunk, kinds[0])

    def decode_again() -> None:
        for _ in range(times):
            _core.planes_decode(first, places[0])

    nbytes = sum(map(len, chunks))
    found = {"encode": gb_per_s(encode, nbytes, rounds), "decode": gb_per_s(decode, len(out), rounds)}
    found["encode, cached"] = gb_per_s(encode_again, times * len(chunk), rounds)
    found["decode, cached"] = gb_per_s(decode_again, times * len(chunk), rounds)
    return found


def zipnn(python: str, raw: bytes, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """ZipNN on the same bytes, in this run."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw[:SPAN])
        file.flush()
        name = str(dtype).removeprefix("torch.")
        script = str(Path(__file__).with_name("codec_zipnn.py"))
        done = subprocess.run(
            [python, "-W", "ignore", script, name, file.name, str(rounds)], check=True, capture_output=True, text=True
        )
    return {key: round(value, 3) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def ratios(state: Any) -> dict[str, dict[str, float]]:
    """With each codec, raw over stored bytes: of the tensors alone, and of whole files."""
    found = {}
    whole = 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "state.fckpt"
        for codec in ("none", "zstd", "planes"):
            fastckpt.save(state, path, codec=codec, durable=False)
            size = path.stat().st_size
            whole = whole or size
            raw, stored = (sum(column) for column in zip(*inspect_file(path).codecs.values(), strict=True))
            found[codec] = {"tensors": round(raw / stored, 4), "file": round(whole / size, 4)}
    del found["none"]
    return found


def measure(name: str, state: Any, rounds: int, python: str | None) -> dict[str, Any]:
    """All that is measured of one corpus."""
    row: dict[str, Any] = {"ratio": ratios(state)}
    dtypes = {t.dtype for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)}
    if len(dtypes) == 1 and (dtype := dtypes.pop()) in (torch.bfloat16, torch.float32):
        raw = raw_of(state, dtype)
        row["exponent-Huffman bound"] = round(huffman_bound(raw, dtype), 4)
        row["planes / bound"] = round(row["ratio"]["planes"]["tensors"] / row["exponent-Huffman bound"], 4)
        best = _core.simd_level()
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            row.setdefault("planes", {})[level] = speeds(raw, KINDS[str(dtype).removeprefix("torch.")], rounds)
        _core.set_simd_level(best)
        if python is not None:
            row["ZipNN"] = zipnn(python, raw, dtype, rounds)
    print(name, json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="of training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zipnn", metavar="PYTHON", help="an interpreter that has ZipNN")
    parser.add_argument("--only", choices=("corpora", "disk"), help="measure only this")
    parser.add_argument("--dir", help="where the files of the disk rows are; they must be on a real disk")
    parser.add_argument("--megabytes", type=int, default=1000, help="of the model of the disk rows")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "codec.json")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.only and options.output.exists() else {}
    if options.only != "disk":
        found |= compare_codecs(options)
    if options.only != "corpora":
        where = options.dir or tempfile.gettempdir()
        found["disk"] = {"machine": machine(where), **disk(where, options.megabytes, options.rounds)}
        print(json.dumps(found["disk"]["ratios"]), flush=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


def compare_codecs(options: argparse.Namespace) -> dict[str, Any]:
    """All that needs no disk."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source, sink = np.ones(SPAN, np.uint8), np.zeros(SPAN, np.uint8)
    memcpy = gb_per_s(lambda: np.copyto(sink, source), SPAN, options.rounds)
    scaled = {key: round(PUBLISHED[key] * memcpy / PUBLISHED["memcpy"], 3) for key in ("encode", "decode")}
    found: dict[str, Any] = {
        "machine": machine(tempfile.gettempdir()),
        "memcpy": memcpy,
        "ZipNN on bfloat16, published, scaled by memcpy": scaled,
        "targets": TARGETS,
    }
    found["corpora"] = {
        name: measure(name, state, options.rounds, options.zipnn)
        for name, state in corpora(options.seconds, options.files)
    }
    torch.set_num_threads(threads)
    return found


if __name__ == "__main__":
    main()
