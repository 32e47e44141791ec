"""Makes the seed corpus. Run by hand when a format or a target changes: ``python tests/fuzz/make_corpus.py``."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from fuzz import CORPUS
from targets import packed

import fastckpt


def state() -> Any:
    """One of each thing."""
    model = OrderedDict(w=torch.nn.Parameter(torch.ones(4, 3)), b=torch.zeros(3, dtype=torch.bfloat16))
    model._metadata = OrderedDict({"": {"version": 1}})
    shared = torch.arange(20)
    return {
        "model": model,
        "views": [shared[:5], shared[5:].view(3, 5).t(), torch.empty(0)],
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "big": 10**30, "none": None, "on": True}],
        "bytes": b"\x00\xff",
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "dtype": torch.uint16,
        "complex": 1 + 2j,
        7: torch.ones(2, dtype=torch.float8_e4m3fn),
    }


def put(target: str, name: str, data: bytes) -> None:
    """Write one input."""
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def torch_inputs() -> None:
    """Pickles, zip archives, legacy files."""
    for protocol in (2, 4, 5):
        raw = saved(state(), pickle_protocol=protocol)
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            put("pickle", f"state protocol {protocol}", archive.read("archive/data.pkl"))
    for protocol in range(6):
        put(
            "pickle",
            f"plain protocol {protocol}",
            pickle.dumps({"a": [1, -5, 2.5, None, True, "x", b"y", (1, 2)]}, protocol),
        )
    put("pickle", "itself", b"\x80\x02]q\x00h\x00a.")
    put("pickle", "deep", b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".")
    put("pickle", "repeated", b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 40 + b".")
    put("pickle", "other global", b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00echoq\x01\x85q\x02Rq\x03.")
    put("pickle", "empty", b"")

    small = {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64), "c": torch.empty(0)}
    whole = saved(small)
    put("zip", "whole", whole)
    put("zip", "protocol 5", saved(small, pickle_protocol=5))
    torch.serialization.set_crc32_options(False)
    put("zip", "without crc", saved(small))
    torch.serialization.set_crc32_options(True)
    put("zip", "cut", whole[: whole.index(b"archive/data/1") + 40])
    put("zip", "no directory", whole[: whole.index(b"PK\x01\x02")])
    put("zip", "garbage behind", whole + b"garbage" * 30)
    put("zip", "no beginning", bytes(512) + whole[512:])
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/data/0", b"12345678")
        archive.writestr("archive/version", b"3\n")
    put("zip", "by zipfile", stored.getvalue())
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        archive.writestr("archive/data/0", bytes(100_000))
    put("zip", "deflate bomb", deflated.getvalue())
    put("zip", "only an end", b"PK\x05\x06" + bytes(18))

    for protocol in (2, 4):
        raw = saved(small, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        put("legacy", f"protocol {protocol}", raw)
    put("legacy", "views", saved(state()["views"], _use_new_zipfile_serialization=False))
    put("legacy", "cut", raw[:-7])


def safetensors_inputs() -> None:
    """Whole files, and headers by themselves."""
    tensors = {"a": torch.ones(3), "b.c": torch.zeros(2, 2, dtype=torch.bfloat16), "e": torch.empty(0)}
    raw = safetensors.torch.save(tensors, metadata={"format": "pt"})
    put("safetensors", "whole", raw)
    put("safetensors", "cut", raw[:-5])
    put("safetensors", "length bomb", struct.pack("<Q", 2**63) + raw[8:])

    def header(value: Any, data: bytes = b"12345678") -> bytes:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + data

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    put("safetensors", "one", header({"x": tensor}))
    put("safetensors", "overlap", header({"x": tensor, "y": tensor}))
    put("safetensors", "twice", header(b'{"x":1,"x":2}'))
    put("safetensors", "no dict", header(b" 17     "))
    put("safetensors", "deep", header(b'{"x":' + b"[" * 500))
    put("safetensors", "large shape", header({"x": {**tensor, "shape": [2**40, 2**40]}}))
    put("safetensors", "half a header", header({"x": tensor, "y": {**tensor, "shape": [1, 1]}})[:50])


def own_inputs() -> None:
    """Whole files, the blocks in them, and trees."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file.fckpt"
        states: dict[str, Any] = {
            "tiny": {"w": torch.arange(4.0)},
            "state": state(),
            "zstd": {"soft": torch.zeros(60_000, dtype=torch.uint8), "b": torch.ones(3)},
        }
        for key, value in states.items():
            fastckpt.save(value, path, codec="zstd" if key == "zstd" else "none", metadata={"k": 1}, durable=False)
            raw = path.read_bytes()
            for flags in (0, 1):
                put("fckpt", f"{key} {flags}", bytes((flags,)) + packed(raw))
            if key != "state":
                put("fckpt", f"{key} cut", b"\0" + packed(raw[: len(raw) // 2]))
                put("fckpt", f"{key} without footer", b"\0" + packed(raw[:-4096] + bytes(4096)))
            with fastckpt.open(path) as ck:
                file = ck._file
                put("tree", key, bytes(file.manifest.tree))
                places = {"superblock": (0, 4096), "footer": (len(raw) - 4096, len(raw))}
                places |= {f"section {s.kind}": (s.extent.offset, s.extent.end) for s in file.footer.sections}
                places |= {f"header {r.number}": (r.header.offset, r.header.end) for r in file.records}
            for part, (start, end) in places.items():
                if part != "section 3":
                    put("blocks", f"{key} {part}", raw[start : end - 16].rstrip(b"\0").ljust(16, b"\0"))
        torch.save({"w": torch.arange(4.0)}, path.with_suffix(".pt"))
        fastckpt.convert(path.with_suffix(".pt"), path, durable=False)
        put("fckpt", "source 1", b"\1" + packed(path.read_bytes()))
    put("tree", "deep", b"\x08\x01" * 127 + b"\x00")
    put("tree", "many", b"\x08\x90\x01" + b"\x00" * 144)
    put("tree", "long int", b"\x03\xff\x01" + b"\x55" * 255)


if __name__ == "__main__":
    shutil.rmtree(CORPUS, ignore_errors=True)
    torch_inputs()
    safetensors_inputs()
    own_inputs()
    total = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    print(f"{total} bytes")
