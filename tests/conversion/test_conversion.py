"""convert: foreign files to .fckpt and back byte for byte, or a refusal that leaves everything as it was."""

from __future__ import annotations

import io
import pickletools
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from repacking import repacked
from states import (
    DTYPES,
    assert_same,
    assert_same_elements,
    compressible,
    everything,
    module,
    of_dtype,
    pattern,
)
from zip64 import write_zip64

import fastckpt
from fastckpt.conversion.same_content import match
from fastckpt.errors import (
    DamagedError,
)
from fastckpt.seals.names import sums_path

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
REAL_FILES = sorted(CHECKPOINTS.rglob("*.pt"))
CODECS = ["none", "zstd", "planes"]
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def round_trip(path: Path, codec: str = "none", suffix: str | None = None) -> Path:
    """Convert to .fckpt and back and compare; returns the .fckpt."""
    middle, back = path.with_name("middle.fckpt"), path.with_name("back" + (suffix or path.suffix))
    (there,) = fastckpt.convert(path, middle, codec=codec)
    assert (there.source, there.destination, there.format) == (str(path), str(middle), "fckpt")
    assert there.exact
    assert fastckpt.verify(middle).ok
    (again,) = fastckpt.convert(middle, back)
    assert again.exact
    assert again.source_verified
    assert again.format == fastckpt.verify(path).format
    assert (again.tensors, again.nbytes) == (there.tensors, there.nbytes)
    assert back.read_bytes() == path.read_bytes()
    return middle


def rich_state() -> dict[str, Any]:
    shared = of_dtype(torch.float32, 80_000)
    return {
        "model": OrderedDict(
            [
                ("_orig_mod.w", torch.nn.Parameter(shared)),
                ("_orig_mod.tied", shared[5:50]),
                ("b", of_dtype(torch.bfloat16, 33)),
            ]
        ),
        "empty": [torch.empty(0), torch.zeros(3, 4)[3:, 2:], torch.empty(0, 5, dtype=torch.int64)],
        "scalar": torch.tensor(1.5),
        "conj": torch.ones(3, dtype=torch.complex64).conj(),
        "compressible": compressible(1_200_000),
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "nan": float("nan"), "big": 2**80}],
        "torch": [torch.float16, torch.Size([2, 3]), torch.device("cuda:1")],
        "bytes": b"\x00\xff",
        7: None,
    }


@pytest.mark.sampled(4)
@pytest.mark.skipif(not REAL_FILES, reason="the folder with real checkpoints is not there")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("path", REAL_FILES, ids=[f"{p.parent.name}/{p.name}" for p in REAL_FILES])
def test_real_files(tmp_path: Path, path: Path, codec: str) -> None:
    source = tmp_path / "source.pt"
    source.symlink_to(path)
    middle = round_trip(source, codec)
    assert_same(fastckpt.load(middle), torch.load(path, weights_only=False))
    assert_same(fastckpt.load(middle, mmap=True), torch.load(path, weights_only=False))


OTHER_NAMES = ["archive.pt", "\u4e16.pt", "a b.pt", "x", ".hidden.pt"]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("model_000500.pt", codec) for codec in CODECS),
        *((name, CODECS[0]) for name in OTHER_NAMES),
        *(pytest.param(name, codec, marks=pytest.mark.thorough) for name in OTHER_NAMES for codec in CODECS[1:]),
    ],
)
def test_torch_zip(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    torch.save(rich_state(), path)
    middle = round_trip(path, codec, ".pt")
    assert_same(fastckpt.load(middle), torch.load(path, weights_only=False))
    renamed = tmp_path / "renamed.pt"
    path.rename(renamed)
    round_trip(renamed, codec)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["everything", "tensor", "parameter", "plain", "empty", "module", "optimizer", "list"])
def test_states(tmp_path: Path, kind: str, legacy: bool, codec: str) -> None:
    def optimizer() -> Any:
        model = module()
        adam = torch.optim.AdamW(model.parameters())
        sum(p.sum() for p in model.parameters()).backward()
        adam.step()
        return adam.state_dict()

    def all_things() -> Any:
        state = everything()
        state["views"].pop()  # torch saves no storage under two element types.
        if legacy:
            del state["dtypes"]  # Newer ones torch cannot read back from the older format.
        return state

    state = {
        "everything": all_things,
        "tensor": lambda: pattern(5000),
        "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
        "plain": lambda: {"step": 3, "name": "x"},
        "empty": dict,
        "module": lambda: module().state_dict(),
        "optimizer": optimizer,
        "list": lambda: [torch.ones(2), (torch.zeros(1),)],
    }[kind]()
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    middle = round_trip(path, codec)
    assert_same(fastckpt.load(middle), torch.load(path, weights_only=False))
    (result,) = fastckpt.convert(path, tmp_path / "again.fckpt")
    assert result.source_verified == (not legacy or result.nbytes == 0)


def test_buffer_is_called_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(rich_state(), buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert archive.namelist()[0].startswith("archive/")
    round_trip(tmp_path / "m.pt")


def without_crcs(state: Any, path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)


def test_without_crcs(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    without_crcs(rich_state(), path)
    round_trip(path)
    (result,) = fastckpt.convert(path, tmp_path / "again.fckpt")
    assert not result.source_verified
    torch.save(rich_state(), path)
    (result,) = fastckpt.convert(path, tmp_path / "again.fckpt")
    assert result.source_verified


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_from_gpus(tmp_path: Path, legacy: bool) -> None:
    """The location tag in the persistent ids of a file that was saved from CUDA devices."""
    path = tmp_path / "m.pt"
    torch.save(rich_state(), path, _use_new_zipfile_serialization=not legacy)
    tag, gpu = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3"
    if legacy:
        raw = path.read_bytes()
        assert tag in raw
        path.write_bytes(raw.replace(tag, gpu))
    else:

        def change(records: dict[str, bytes]) -> None:
            assert tag in records["m/data.pkl"]
            records["m/data.pkl"] = records["m/data.pkl"].replace(tag, gpu)
            pickletools.dis(records["m/data.pkl"], out=io.StringIO())

        repacked(path, change)
    middle = round_trip(path)
    assert_same(fastckpt.load(middle), torch.load(path, map_location="cpu", weights_only=False))


@pytest.mark.parametrize("codec", CODECS)
def test_safetensors(tmp_path: Path, codec: str) -> None:
    state = {
        str(dtype): of_dtype(dtype, 24) for dtype in DTYPES if dtype.itemsize < 16 and "complex32" not in str(dtype)
    }
    state |= {"large": of_dtype(torch.float32, 400_000), "empty": torch.empty(0, 3), "0d": torch.tensor(2.5)}
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt", "\u4e16": "x\ny"})
    middle = round_trip(path, codec)
    with fastckpt.open(middle) as ck:
        assert ck.metadata == {"format": "pt", "\u4e16": "x\ny"}
    loaded = fastckpt.load(middle)
    for name, tensor in safetensors.torch.load_file(path).items():
        assert_same_elements(loaded[name], tensor)
    (result,) = fastckpt.convert(path, tmp_path / "again.fckpt")
    assert not result.source_verified


# States saved by fastckpt, to other formats


@pytest.mark.parametrize("codec", CODECS)
def test_saved_state_to_torch(tmp_path: Path, codec: str) -> None:
    state = {
        "model": module().state_dict(),
        "list": [torch.arange(5), (torch.ones(2, dtype=torch.bfloat16),)],
        "step": 3,
        "lr": 0.1,
        "name": "x",
    }
    fastckpt.save(state, tmp_path / "s.fckpt", codec=codec)
    (result,) = fastckpt.convert(tmp_path / "s.fckpt")
    assert (result.destination, result.format, result.exact) == (str(tmp_path / "s.pt"), "torch-zip", False)
    assert_same(torch.load(tmp_path / "s.pt", weights_only=True), state)
    assert fastckpt.verify(tmp_path / "s.pt").ok


@pytest.mark.parametrize("codec", CODECS)
def test_saved_state_to_safetensors(tmp_path: Path, codec: str) -> None:
    state = {
        "layer.0.w": of_dtype(torch.float32, 90_000).view(300, 300),
        "layer.1.w": of_dtype(torch.bfloat16, 30).view(5, 6),
        "b": of_dtype(torch.int64, 7),
        "a": of_dtype(torch.float32, 70),
        "c": of_dtype(torch.uint8, 5),
        "empty": torch.empty(0, 2),
    }
    fastckpt.save(state, tmp_path / "s.fckpt", codec=codec, metadata={"format": "pt"})
    (result,) = fastckpt.convert(tmp_path / "s.fckpt", to="safetensors")
    assert result.format == "safetensors"
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_across_formats(tmp_path: Path) -> None:
    state = {"w": of_dtype(torch.float32, 70_000), "b": torch.arange(5)}
    torch.save(state, tmp_path / "m.pt")
    fastckpt.convert(tmp_path / "m.pt", tmp_path / "m.fckpt")
    (result,) = fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "m.safetensors")
    assert not result.exact
    loaded = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert sorted(loaded) == ["b", "w"]
    assert torch.equal(loaded["b"], state["b"])
    assert_same_elements(loaded["w"], state["w"])
    fastckpt.convert(tmp_path / "m.safetensors", tmp_path / "n.fckpt")
    fastckpt.convert(tmp_path / "n.fckpt", tmp_path / "n.pt")
    for name, tensor in torch.load(tmp_path / "n.pt").items():
        assert_same_elements(tensor, state[name])


@pytest.mark.parametrize("codec", CODECS)
def test_not_exact(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "m.pt"
    torch.save(rich_state(), path)
    (result,) = fastckpt.convert(path, tmp_path / "m.fckpt", exact=False, codec=codec)
    assert not result.exact
    assert_same(fastckpt.load(tmp_path / "m.fckpt"), torch.load(path, weights_only=False))
    (result,) = fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "back.pt")
    assert not result.exact
    assert_same(torch.load(tmp_path / "back.pt", weights_only=False), torch.load(path, weights_only=False))


def test_deterministic(tmp_path: Path) -> None:
    torch.save(rich_state(), tmp_path / "m.pt")
    for codec in CODECS:
        fastckpt.convert(tmp_path / "m.pt", tmp_path / "1.fckpt", codec=codec, threads=1)
        fastckpt.convert(tmp_path / "m.pt", tmp_path / "2.fckpt", codec=codec, threads=3, durable=False)
        assert (tmp_path / "1.fckpt").read_bytes() == (tmp_path / "2.fckpt").read_bytes()


def test_destination_is_named_after_the_source(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "model.v1.pt")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "t.safetensors")
    (tmp_path / "out").mkdir()
    assert fastckpt.convert(tmp_path / "model.v1.pt")[0].destination == str(tmp_path / "model.v1.fckpt")
    assert fastckpt.convert(tmp_path / "t.safetensors", tmp_path / "out")[0].destination == str(
        tmp_path / "out" / "t.fckpt"
    )
    (tmp_path / "model.v1.pt").unlink()
    assert fastckpt.convert(tmp_path / "model.v1.fckpt")[0].format == "torch-zip"
    assert fastckpt.convert(tmp_path / "out" / "t.fckpt")[0].format == "safetensors"


# replace=True


@pytest.mark.parametrize("codec", CODECS)
def test_replace(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "m.pt"
    torch.save(rich_state(), path)
    raw = path.read_bytes()
    fastckpt.convert(path, codec=codec, replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.fckpt"]
    fastckpt.convert(tmp_path / "m.fckpt", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    assert path.read_bytes() == raw


@pytest.mark.parametrize("name", ["m.pt", "l.pt", "m.safetensors", "s.fckpt"])
def test_replace_keeps_the_source_unless_the_copy_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The written file is spoiled between the commit and the reading back, as by a lying disk."""
    from fastckpt.io.commit import Commit

    state = {"a": pattern(5000, 1), "b": pattern(600_000, 2)}
    path = tmp_path / name
    if name == "m.safetensors":
        safetensors.torch.save_file(state, path)
    elif name == "s.fckpt":
        fastckpt.save(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "m.pt")
    fastckpt.convert(path, tmp_path / "there.fckpt") if name != "s.fckpt" else shutil.copy(
        path, tmp_path / "there.fckpt"
    )
    publish = Commit._publish
    where = [0]

    def spoiled(self: Commit) -> None:
        publish(self)
        with open(self.path, "r+b") as file:
            size = file.seek(0, 2)
            at = min(where[0], size - 1)
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(Commit, "_publish", spoiled)
    jobs = [(tmp_path / "there.fckpt", tmp_path / "back.pt", {})]
    if name == "m.safetensors":
        jobs = [(tmp_path / "there.fckpt", tmp_path / "back.safetensors", {})]
    if name != "s.fckpt":
        jobs.append((path, tmp_path / "new.fckpt", {}))
    for source, destination, options in jobs:
        for where[0] in (100_000, 300_000):
            with pytest.raises(DamagedError):
                fastckpt.convert(source, destination, replace=True, **options)
            assert source.exists()
    monkeypatch.undo()
    for source, destination, options in jobs:
        fastckpt.convert(source, destination, replace=True, **options)
        assert not source.exists()


# Large files


def zip64_file(path: Path, numel: int) -> None:
    """A torch file whose first storage is a hole of more than 4 GiB."""
    torch.save({"small": torch.tensor([1.5, 2.5]), "big": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read(f"{path.stem}/data.pkl")
    count = b"\x8a\x08" + numel.to_bytes(8, "little")
    # Numbers of elements: in the persistent id (before the tuple ends) and in the shape.
    assert data.count(b"K\x03t") == data.count(b"K\x03\x85") == 1
    data = data.replace(b"K\x03t", count + b"t").replace(b"K\x03\x85", count + b"\x85")
    stem = path.stem
    write_zip64(
        path,
        [
            (f"{stem}/data.pkl", data),
            (f"{stem}/byteorder", b"little"),
            (f"{stem}/data/1", 4 * numel),
            (f"{stem}/data/0", torch.tensor([1.5, 2.5]).numpy().tobytes()),
            (f"{stem}/version", b"3\n"),
        ],
    )


def test_zip64_structure(tmp_path: Path) -> None:
    """Only the part that does not lie in the hole is read."""
    path = tmp_path / "big.pt"
    zip64_file(path, 2**30 + 1)
    loaded = fastckpt.load(path, keys="small")
    assert loaded["small"].tolist() == [1.5, 2.5]


@pytest.mark.slow
def test_zip64(tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    zip64_file(path, 2**30 + 1)
    if shutil.disk_usage(tmp_path).free < 12 * 2**30:
        pytest.skip("needs 12 GiB of disk")
    fastckpt.convert(path, tmp_path / "big.fckpt", codec="zstd:1", durable=False)
    fastckpt.convert(tmp_path / "big.fckpt", tmp_path / "back.pt", durable=False)
    with open(path, "rb") as a, open(tmp_path / "back.pt", "rb") as b:
        while block := a.read(2**24):
            assert block == b.read(2**24)
        assert not b.read(1)
    with fastckpt.open(tmp_path / "big.fckpt") as ck:
        assert ck.info("big").shape == (2**30 + 1,)
        assert ck.rows("big", -3, 2**31).tolist() == [0, 0, 0]


def test_crcs_of_every_size(tmp_path: Path) -> None:
    """The CRC is computed while the bytes are moved, in pieces: at every border it must be the same."""
    sizes = [1, 100, 2**18 - 1, 2**18, 2**20, 2**20 + 1, 5_000_001]
    state = {str(n): pattern(n, n) for n in sizes}
    torch.save(state, tmp_path / "m.pt")
    for codec in CODECS:
        (result,) = fastckpt.convert(tmp_path / "m.pt", tmp_path / "m.fckpt", codec=codec)
        assert result.source_verified


def test_a_seal_verifies_the_source_of_what_is_there_already(tmp_path: Path) -> None:
    path, made = tmp_path / "w.safetensors", tmp_path / "w.fckpt"
    safetensors.torch.save_file({"w": torch.randn(50_000)}, path)
    (done,) = fastckpt.convert(path, made, durable=False)
    assert not done.source_verified
    found = match(str(made), str(path))
    assert found is not None
    assert not found.verified
    fastckpt.seal(path, durable=False)
    found = match(str(made), str(path))
    assert found is not None
    assert found.verified
    with open(sums_path(path), "r+b") as sums:  # A seal that proves nothing.
        sums.seek(5000)
        sums.write(bytes(30_000))
    found = match(str(made), str(path))
    assert found is not None
    assert not found.verified
