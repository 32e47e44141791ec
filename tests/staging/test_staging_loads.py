"""What comes through the pipeline is what `fastckpt.load` gives, bit for bit, whatever the ring and the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from delayed import DelayedDevice, delayed
from golden_states import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from states import assert_same, compressible, element_bytes, everything, of_dtype, pattern, states

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import TensorNotFoundError, UsageError
from fastckpt.loading.stream import load_through, stream_through
from fastckpt.staging.device import Device, HostDevice
from fastckpt.staging.stage import Verify, staging_for

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden" / "v1").glob("*.fckpt"))
FOREIGN_FILES = sorted((Path(__file__).parents[1] / "golden" / "v1").glob("foreign*"))
RINGS = [
    fastckpt.Ring(),
    fastckpt.Ring(1, LEAF_SIZE),
    fastckpt.Ring(2, 3 * LEAF_SIZE),
    fastckpt.Ring(3, 1 << 20),
    fastckpt.Ring(7, 5 << 20),
]


def through(
    path: Path, device: Device, ring: fastckpt.Ring, *, verify: Verify = True, keys: Sequence[str] | None = None
) -> Any:
    return load_through(path, staging_for(device, verify=verify, ring=ring, threads=2), keys)


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("path", [*GOLDEN_FILES, *FOREIGN_FILES], ids=lambda path: path.name)
def test_golden_files(path: Path, ring: fastckpt.Ring) -> None:
    golden = GOLDEN.get(path.stem)
    if golden and not all(hasattr(torch, name) for name in golden.needs):
        pytest.skip(f"this torch lacks {golden.needs}")
    assert_same(through(path, HostDevice(), ring), fastckpt.load(path))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One large state in every format."""
    directory = tmp_path_factory.mktemp("loads")
    state = {f"large.{i}": of_dtype(torch.bfloat16, 600_000 + i, i).view(-1, 1) for i in range(4)}
    state |= {f"soft.{i}": compressible(1_100_000 + i, i) for i in range(3)}
    state |= {f"small.{i}": torch.full((i % 90,), float(i)) for i in range(1000)}
    paths = {name: directory / name for name in ("raw.fckpt", "zstd.fckpt", "zip.pt", "legacy.pt", "m.safetensors")}
    fastckpt.save(state, paths["raw.fckpt"], durable=False)
    fastckpt.save(state, paths["zstd.fckpt"], codec="zstd", durable=False)
    torch.save(state, paths["zip.pt"])
    torch.save(state, paths["legacy.pt"], _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, paths["m.safetensors"])
    return paths


FORMATS = ["raw.fckpt", "zstd.fckpt", "zip.pt", "legacy.pt", "m.safetensors"]


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("ring", RINGS[1:4], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_delayed_copies(files: dict[str, Path], name: str, ring: fastckpt.Ring, verify: bool) -> None:
    delay = 0.002 if ring.slot_size > 100_000 else 0.0001
    with delayed(DelayedDevice(delay)) as device:
        assert_same(through(files[name], device, ring, verify=verify), fastckpt.load(files[name]))
        assert device.most_marks <= 2


@pytest.mark.parametrize("name", FORMATS)
def test_the_default_device_of_torch_does_not_matter(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    expected = fastckpt.load(files[name])
    with torch.device("meta"):
        state = through(files[name], HostDevice(), fastckpt.Ring(2, 1 << 20))
        assert {str(tensor.device) for tensor in state.values()} == {"cpu"}
        fastckpt.save(state, tmp_path / "again")
        fastckpt.load_into(state, tmp_path / "again")
        fastckpt.save_async(state, tmp_path / "again").result(60)
        assert fastckpt.verify_tensors(state, tmp_path / "again").ok
    assert_same(state, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_storage_is_allocated_once(files: dict[str, Path], name: str) -> None:
    with delayed() as device:
        state = through(files[name], device, fastckpt.Ring(2, 1 << 20))
        tensors = [tensor for tensor in state.values() if tensor.nbytes > 1 << 20]
        assert len(tensors) == 7
        for tensor in tensors:
            assert device.allocated.count(tensor.nbytes) == 1
        extra = sum(device.allocated) - sum(tensor.untyped_storage().nbytes() for tensor in state.values())
        assert extra < 1_000_000, "only the small ones come through memory of their own"


@pytest.mark.parametrize("name", FORMATS)
def test_neighbours_share_memory_and_not_their_storages(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Each has a storage of its own size, which lives on without the others, and saves as it was saved."""
    expected = fastckpt.load(files[name])
    fastckpt.save(expected, tmp_path / "host", durable=False)
    with delayed() as device:
        state = through(files[name], device, fastckpt.Ring(2, 1 << 20))
        assert len(device.allocated) < 50
    assert all(
        tensor.untyped_storage().nbytes() == expected[key].untyped_storage().nbytes() for key, tensor in state.items()
    )
    fastckpt.save(state, tmp_path / "device", durable=False)
    assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()
    kept = state["small.77"]
    del state
    assert element_bytes(kept) == element_bytes(expected["small.77"])


@given(state=states(), codec=st.sampled_from(["none", "zstd"]), ring=st.sampled_from(RINGS))
def test_any_state(tmp_path: Path, state: Any, codec: str, ring: fastckpt.Ring) -> None:
    fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
    assert_same(through(tmp_path / "s", HostDevice(), ring), state)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_everything_on_a_delayed_device(tmp_path: Path, codec: str) -> None:
    state = everything()
    fastckpt.save(state, tmp_path / "s", codec=codec)
    with delayed() as device:
        assert_same(through(tmp_path / "s", device, fastckpt.Ring(2, 4 * LEAF_SIZE)), state)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keys", [["small.1?"], ["large.2", "small.0", "small.999"], ["soft.*", "small.90"]])
def test_keys(files: dict[str, Path], name: str, keys: list[str]) -> None:
    expected = fastckpt.load(files[name], keys=keys)
    with delayed() as device:
        assert_same(through(files[name], device, fastckpt.Ring(3, 2 * LEAF_SIZE), keys=keys), expected)
    streamed = dict(fastckpt.stream(files[name], keys=keys))
    assert len(streamed) == len(expected)
    assert_same({key: streamed[key] for key in expected}, expected)


def test_keys_read_only_their_leaves(files: dict[str, Path]) -> None:
    with delayed() as device:
        through(files["raw.fckpt"], device, fastckpt.Ring(), keys=["small.10", "large.0"])
        assert sum(device.allocated) < 1_200_000 + 2 * LEAF_SIZE + 1000


def test_mixed_codecs(tmp_path: Path) -> None:
    """Of one file some chunks are encoded and others are not."""
    state = {"hard": pattern(3_000_000), "both": torch.cat([pattern(1_300_000), compressible(2_000_000)])}
    fastckpt.save(state, tmp_path / "s", codec="zstd")
    for ring in RINGS[1:]:
        with delayed(DelayedDevice(0.0005)) as device:
            assert_same(through(tmp_path / "s", device, ring), state)


def test_progress_and_arguments(files: dict[str, Path]) -> None:
    seen: list[int] = []
    how = staging_for(HostDevice(), ring=fastckpt.Ring(2, 1 << 20), progress=seen.append)
    state = load_through(files["raw.fckpt"], how, None)
    assert seen == sorted(seen)
    assert seen[-1] >= sum(tensor.nbytes for tensor in state.values())
    for wrong in ({"verify": "twice"}, {"engine": "fast"}, {"threads": 0}, {"ring": 4}, {"verify": 1}):
        with pytest.raises(UsageError):
            fastckpt.stream(files["raw.fckpt"], **wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            fastckpt.load(files["raw.fckpt"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(TensorNotFoundError):
        list(fastckpt.stream(files["raw.fckpt"], keys="nothing"))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            fastckpt.load(files["raw.fckpt"], device="cuda")


def test_another_device_of_torch(files: dict[str, Path]) -> None:
    """Without an implementation of its own a device gets plain copies; "meta" has no bytes, but all the rest."""
    expected = fastckpt.load(files["raw.fckpt"])
    state = fastckpt.load(files["raw.fckpt"], device="meta")
    assert {name: (t.shape, t.dtype, t.device.type) for name, t in state.items()} == {
        name: (t.shape, t.dtype, "meta") for name, t in expected.items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_stream_gives_the_same_tensors(files: dict[str, Path], name: str) -> None:
    expected = fastckpt.load(files[name])
    with delayed() as device:
        how = staging_for(device, ring=fastckpt.Ring(3, 1 << 20))
        got = list(stream_through(files[name], how, None))
    assert sorted(n for n, _ in got) == sorted(expected)
    assert_same({name: dict(got)[name] for name in expected}, expected)
