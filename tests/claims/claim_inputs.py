"""Small files of every format, and faults to put into them."""

from __future__ import annotations

import argparse
import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from claim_tables import Make

import fastckpt

SUFFIX = {
    "pt": "pt",
    "legacy": "pt",
    "no CRC": "pt",
    "safetensors": "safetensors",
    "fckpt": "fckpt",
    "zstd": "fckpt",
    "planes": "fckpt",
}
PROVEN = ("pt", "fckpt", "zstd", "planes")
"""Formats with a checksum for every byte."""
UNPROVEN = ("legacy", "no CRC", "safetensors")

Change = Callable[[bytearray], bytes | bytearray | None]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two tensors of one size, more than one leaf each, and a small one."""
    generator = torch.Generator().manual_seed(seed)
    # Small numbers of few kinds, so that zstd and planes have something to do.
    large = {name: torch.randint(0, 40, (6000,), generator=generator).float() for name in ("v", "w")}
    return {**large, "small": torch.arange(50.0) + seed}


def write(state: Any, form: str, directory: Path, stem: str = "state") -> Path:
    """A state in a format."""
    path = directory / f"{stem}.{SUFFIX[form]}"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form in ("fckpt", "zstd", "planes"):
        fastckpt.save(state, path, codec="none" if form == "fckpt" else form, durable=False)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.serialization.set_crc32_options(form == "pt")
        try:
            torch.save(state, path)
        finally:
            torch.serialization.set_crc32_options(True)
    return path


def good(form: str, state: Callable[[], Any] = tensors) -> Make:
    """A whole file."""
    return lambda directory: [write(state(), form, directory)]


def changed(form: str, change: Change, state: Callable[[], Any] = tensors) -> Make:
    """A file whose bytes were changed."""

    def make(directory: Path) -> list[Path]:
        path = write(state(), form, directory)
        raw = bytearray(path.read_bytes())
        result = change(raw)
        path.write_bytes(raw if result is None else result)
        return [path]

    return make


def each(forms: tuple[str, ...], what: str, change: Change) -> dict[str, Make]:
    """The same fault in several formats."""
    return {f"{form}: {what}": changed(form, change) for form in forms}


def flip_at(raw: bytearray, at: int) -> None:
    raw[at] ^= 0x10


def payload_of(raw: bytes, name: str = "w") -> int:
    """Where the bytes of a tensor begin; in a .fckpt with a codec, where the first record's do."""
    at = raw.find(tensors()[name].numpy().tobytes())
    if at >= 0:
        return at
    header = raw.find(b"FCKPTREC")
    return header + int.from_bytes(raw[header + 8 : header + 16], "little")


def flip_tensor(raw: bytearray) -> None:
    """A bit of a tensor."""
    flip_at(raw, payload_of(raw) + 200)


def flip_near(needle: bytes, after: int = 0) -> Change:
    """A bit of something that can be found by its text."""

    def change(raw: bytearray) -> None:
        at = raw.find(needle)
        assert at >= 0, needle
        flip_at(raw, at + after)

    return change


def zeros_near(needle: bytes) -> Change:
    """Zeros in place of something that can be found by its text."""

    def change(raw: bytearray) -> None:
        at = raw.find(needle)
        raw[at : at + len(needle)] = bytes(len(needle))

    return change


def zero_tensor(raw: bytearray) -> None:
    at = payload_of(raw)
    raw[at : at + 4096] = bytes(4096)


def cut_half(raw: bytearray) -> bytes:
    return raw[: len(raw) // 2]


def cut_tensor(raw: bytearray) -> bytes:
    """So that the last bytes of the tensors are gone, whatever follows them."""
    ends = [raw.find(tensor.numpy().tobytes()) + tensor.numel() * 4 for tensor in tensors().values()]
    return raw[: max(ends) - 20]


def cut_end(raw: bytearray) -> bytes:
    return raw[:-1]


def append(raw: bytearray) -> bytes:
    return raw + b"more than the file"


def prepend(raw: bytearray) -> bytes:
    return b"in front" * 512 + raw


def swap_tensors(raw: bytearray) -> None:
    """The bytes of two tensors in each other's place; of a .pt with their CRCs."""
    size = tensors()["w"].numel() * 4
    descriptor = 16 if raw[:2] == b"PK" else 0
    a, b = (payload_of(raw, name) for name in ("v", "w"))
    raw[a : a + size + descriptor], raw[b : b + size + descriptor] = (
        raw[b : b + size + descriptor],
        raw[a : a + size + descriptor],
    )


def consistently(change: Callable[[bytearray, str, str], None]) -> Make:
    """A .pt of which a program exchanged something of two records, so that all checksums in it are right again."""
    return changed("pt", lambda raw: change(raw, "data/0", "data/1"))


def torn_mix(form: str) -> Make:
    """The first part of one save, and the rest of another one of the same build."""

    def make(directory: Path) -> list[Path]:
        paths = [write(tensors(seed), form, directory, f"state{seed}") for seed in (0, 1)]
        old, new = (path.read_bytes() for path in paths)
        assert len(old) == len(new)
        paths[1].unlink()
        at = payload_of(old, "w") - 8 if form == "pt" else old.find(tensors()["w"].numpy().tobytes()) // 4096 * 4096
        paths[0].write_bytes(new[:at] + old[at:])
        return [paths[0]]

    return make


def copied_record(form: str) -> Make:
    """The bytes of one tensor, and all that stands around them, copied over those of another one."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        raw = bytearray(path.read_bytes())
        size = tensors()["w"].numel() * 4
        a, b = payload_of(raw, "v"), payload_of(raw, "w")
        raw[b : b + size + 16] = raw[a : a + size + 16]
        path.write_bytes(raw)
        return [path]

    return make


def with_objects() -> dict[str, Any]:
    """What only a pickle can hold, with a tensor in it."""
    return {**tensors(), "args": argparse.Namespace(lr=0.1, mask=torch.arange(900.0) + 7)}


def flip_object(raw: bytearray) -> None:
    flip_at(raw, raw.find((torch.arange(900.0) + 7).numpy().tobytes()) + 100)


def module_state() -> Any:
    state = OrderedDict(tensors())
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def safetensors_with(header: Callable[[dict[str, Any]], object], body: Callable[[bytes], bytes] = bytes) -> Make:
    """A .safetensors whose header was changed."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), "safetensors", directory)
        raw = path.read_bytes()
        (size,) = struct.unpack_from("<Q", raw)
        fields = json.loads(raw[8 : 8 + size])
        header(fields)
        text = json.dumps(fields).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body(raw[8 + size :]))
        return [path]

    return make


def without_record(form: str, name: str) -> Make:
    """A .pt packed anew without one of its records."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        buffer = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
            for item in old.infolist():
                if not item.filename.endswith(name):
                    new.writestr(item.filename, old.read(item))
        path.write_bytes(buffer.getvalue())
        return [path]

    return make


def sealed(form: str, change: Change | None = None, *, also: Callable[[Path], None] | None = None) -> Make:
    """A file that is sealed, and then changed."""

    def make(directory: Path) -> list[Path]:
        path = write(tensors(), form, directory)
        fastckpt.seal(path, durable=False)
        if change is not None:
            raw = bytearray(path.read_bytes())
            result = change(raw)
            path.write_bytes(raw if result is None else result)
        if also is not None:
            also(path)
        return [path]

    return make


def beside(path: Path) -> Path:
    return Path(f"{path}.fckpt-sums")
