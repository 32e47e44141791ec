"""Files written once are read the same forever, and by a second reader that knows only the text of the format.

The reference reader shares no code with the package. Where both agree on a file, with what was saved, and with the
JSON beside it, the format is what ``SPEC.md`` says.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
GOLDEN_FILES = Path(__file__).parent
V1, V2 = (GOLDEN_FILES / name for name in ("v1", "v2"))

from describe import Description, describe, digest, reference_tensor, torch_tensor  # noqa: E402
from golden_states import CONVERTED, GOLDEN, NEW_DTYPES, OLD_DTYPES, noise, of_bytes  # noqa: E402
from reference_names import flat_names  # noqa: E402
from reference_reader import File, read  # noqa: E402
from reference_recovery import recover  # noqa: E402
from reference_source import restored  # noqa: E402
from reference_tree import Damaged, Named, NotACheckpoint, Plain  # noqa: E402

import fastckpt  # noqa: E402

FILES = sorted([*V1.glob("*.fckpt"), *V2.glob("*.fckpt")])
ZSTD = ".".join(map(str, zstandard.ZSTD_VERSION))
DTYPES = [getattr(torch, name) for name in (*OLD_DTYPES, *NEW_DTYPES) if hasattr(torch, name)]


@pytest.fixture(params=FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES])
def path(request: pytest.FixtureRequest) -> Path:
    """Each golden file in turn."""
    found: Path = request.param
    golden = GOLDEN.get(found.stem)
    if golden and not all(hasattr(torch, name) for name in golden.needs):
        pytest.skip(f"this torch lacks {golden.needs}")
    return found


@pytest.fixture
def expected(path: Path) -> dict[str, Any]:
    """What the JSON beside it states."""
    loaded: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
    return loaded


def in_fresh_memory(described: dict[str, Any]) -> dict[str, Any]:
    """A description of a tensor by itself: what ``open`` keeps of it."""
    kept = ("dtype", "shape", "stride", "flags", "values")
    return {key: described[key] for key in kept}


def test_there_is_a_file_for_every_state_and_the_other_way_round() -> None:
    for version, directory in ((1, V1), (2, V2)):
        states = {name for name, golden in GOLDEN.items() if golden.since <= version}
        converted = {name for name, made in CONVERTED.items() if made.since <= version}
        assert {path.stem for path in directory.glob("*.fckpt")} == states | converted
    assert all(path.stat().st_size < 100 * 1024 for path in FILES)


def test_golden_file_is_unchanged(path: Path, expected: dict[str, Any]) -> None:
    data = path.read_bytes()
    assert (len(data), digest(data)) == (expected["size"], expected["xxh3_128"])


def with_bytes(value: Any) -> Any:
    """A value as a converted file has it: a small array has its bytes in place."""
    if not isinstance(value, numpy.ndarray):
        return value
    by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
    return Named("array", (value.tobytes("A"), value.dtype.str, Plain("size", value.shape), by_columns))


def loaded(name: str, path: Path, **options: Any) -> Any:
    """The state in a golden file, or in a damaged copy of it."""
    state = fastckpt.load(path, opaque="keep", **options)
    return {key: with_bytes(item) for key, item in state.items()} if name == "from_objects" else state


@pytest.mark.parametrize("mmap", [False, True])
def test_load_returns_what_was_saved(path: Path, expected: dict[str, Any], mmap: bool) -> None:
    got = describe(loaded(path.stem, path, mmap=mmap))
    assert got["tree"] == expected["tree"]
    assert got["tensors"] == expected["tensors"]


def test_reference_reader_returns_what_was_saved(path: Path, expected: dict[str, Any]) -> None:
    for file in (read(path), read(path, strict=False), recover(path)):
        assert describe(file.state) == {"tree": expected["tree"], "tensors": expected["tensors"]}
        assert Description(file.metadata).tree == expected["metadata"]
        assert list(file.tensors) == expected["names"]
        assert not file.lost


def test_names_follow_the_rule(path: Path, expected: dict[str, Any]) -> None:
    assert flat_names(read(path).state) == expected["names"]


def test_open_returns_what_was_saved(path: Path, expected: dict[str, Any]) -> None:
    with fastckpt.open(path) as opened:
        assert list(opened) == expected["names"]
        assert Description(opened.metadata).tree == expected["metadata"]
        for name, tensor in zip(opened, expected["tensors"], strict=True):
            assert in_fresh_memory(torch_tensor(opened[name])) == in_fresh_memory(tensor)


def test_root_digest_is_the_same(path: Path, expected: dict[str, Any]) -> None:
    root = read(path).root
    assert root is not None
    with fastckpt.open(path) as opened:
        assert root.hex() == opened.root == expected["root"] == fastckpt.verify(path).root


def test_verify_finds_nothing(path: Path, expected: dict[str, Any]) -> None:
    report = fastckpt.verify(path)
    assert report.ok, report.findings
    assert report.verified == report.size == expected["size"]


def codec_then(codec: str, path: Path) -> str:
    """What a codec meant when a file was made: all that version 1 had were made when zstd was level 3."""
    return "zstd:3" if codec == "zstd" and (V1 / path.name).exists() else codec


@pytest.mark.sampled(3)
def test_saving_again_gives_the_same_bytes(path: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    if expected["zstd"] not in (None, ZSTD):
        pytest.skip(f"made with zstd {expected['zstd']}")
    again, of_now = tmp_path / path.name, V2 / path.name
    if path.stem in CONVERTED:
        source = GOLDEN_FILES / CONVERTED[path.stem].source
        fastckpt.convert(source, again, codec=codec_then(expected["codec"], path))
        assert again.read_bytes() == of_now.read_bytes()
        return
    golden = GOLDEN[path.stem]
    with fastckpt.open(path) as opened:
        metadata = opened.metadata
    loaded = (fastckpt.load(path, mmap=mmap, opaque="keep") for mmap in (False, True))
    for state in (golden.make(), *loaded):
        codec = codec_then(golden.codec, path)
        fastckpt.save(state, again, codec=codec, metadata=metadata, parity=golden.parity, parity_at="inside")
        assert again.read_bytes() == of_now.read_bytes()


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_converted_file_gives_the_foreign_file_back(name: str, tmp_path: Path) -> None:
    source = GOLDEN_FILES / CONVERTED[name].source
    back = tmp_path / source.name
    for version in (V1, V2)[CONVERTED[name].since - 1 :]:
        fastckpt.convert(version / f"{name}.fckpt", back)
        assert back.read_bytes() == source.read_bytes()
        assert restored(version / f"{name}.fckpt") == source.read_bytes()
        back.unlink()


# --- states made up at test time ---------------------------------------------------------------------------------


def agree(state: Any, path: Path, **options: Any) -> File:
    """Saves a state and checks that both readers return it."""
    fastckpt.save(state, path, durable=False, **options)
    expected = describe(state)
    file = read(path)
    assert describe(file.state) == expected
    assert describe(fastckpt.load(path)) == expected
    assert describe(fastckpt.load(path, mmap=True)) == expected
    with fastckpt.open(path) as opened:
        assert list(opened) == list(file.tensors) == flat_names(file.state)
        assert Description(opened.metadata).tree == Description(file.metadata).tree
        for name, tensor in file.tensors.items():
            assert in_fresh_memory(torch_tensor(opened[name])) == in_fresh_memory(
                {**reference_tensor(tensor), "storage": 0}
            )
    assert fastckpt.verify(path).ok
    assert describe(recover(path).state) == expected
    return file


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize(
    "size", [0, 1, 16383, 16384, 16385, 262143, 262144, 1048575, 1048576, 1048577, 3 * 1048576 + 5]
)
def test_readers_agree_at_every_boundary(size: int, codec: str, tmp_path: Path) -> None:
    raw = noise(min(size, 50000), size) * (size // 50000 + 1)
    file = agree({"t": of_bytes(raw[:size], torch.uint8) if size else torch.empty(0)}, tmp_path / "f", codec=codec)
    assert len(file.records) == 1
    assert file.records[0].raw_size == size


def test_readers_agree_on_several_packs(tmp_path: Path) -> None:
    sizes = [200_000 + 7 * n for n in range(45)] + [262_144, 3, 300_000] + [1000] * 10
    state = [torch.full((size,), n % 256, dtype=torch.uint8) for n, size in enumerate(sizes)]
    assert len(agree(state, tmp_path / "f").records) == 4


@pytest.mark.thorough
def test_readers_agree_on_a_pack_of_too_many_storages(tmp_path: Path) -> None:
    state = [torch.full((1,), n % 256, dtype=torch.uint8) for n in range(8193)]
    fastckpt.save(state, tmp_path / "f", durable=False)
    file = read(tmp_path / "f")
    assert [len(record.storages) for record in file.records] == [8192, 1]
    assert describe(file.state) == describe(fastckpt.load(tmp_path / "f")) == describe(state)


texts = st.text(max_size=8)
keys = texts | st.integers(-3, 12) | st.integers()
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 300), max_value=1 << 300)
    | st.floats()
    | st.complex_numbers()
    | texts
    | st.binary(max_size=8)
)
small_objects = (
    st.sampled_from(DTYPES)
    | st.lists(st.integers(0, 1 << 40), max_size=3).map(torch.Size)
    | st.sampled_from([torch.device("cpu"), torch.device("cuda:3")])
)


@st.composite
def tensors(draw: st.DrawFn, bases: list[Any]) -> Any:
    """A tensor of any type and shape, often a view of one drawn before."""
    if bases and draw(st.booleans()):
        base = draw(st.sampled_from(bases))
        if draw(st.booleans()):
            return base
        length = base.untyped_storage().nbytes() // base.element_size()
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        stride = tuple(draw(st.integers(0, 4)) for _ in shape)
        reach = 1 + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True))
        if reach > length or 0 in shape:
            return base
        with torch.no_grad():
            return base.as_strided(shape, stride, draw(st.integers(0, length - reach)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = torch.Size(shape).numel()
    raw = bytes(noise(count * dtype.itemsize, draw(st.integers(0, 1000))))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    tensor = of_bytes(raw, dtype, shape) if count else torch.empty(shape, dtype=dtype)
    if dtype.is_floating_point and draw(st.booleans()):
        tensor = torch.nn.Parameter(tensor, requires_grad=draw(st.booleans()))
    elif dtype.is_complex and draw(st.booleans()):
        tensor = tensor.conj()
    bases.append(tensor)
    return tensor


def ordered(items: dict[Any, Any], attributes: dict[str, Any]) -> Any:
    """An ordered dict with attributes."""
    made = OrderedDict(items)
    vars(made).update(attributes)
    return made


def attributes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Attributes of an ordered dict."""
    return st.dictionaries(texts, inner, max_size=2)


@st.composite
def states(draw: st.DrawFn) -> Any:
    """Any state."""
    bases: list[Any] = []
    return draw(
        st.recursive(
            plain | small_objects | tensors(bases) | tensors(bases),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.lists(inner, max_size=4).map(tuple)
                | st.dictionaries(keys, inner, max_size=4)
                | st.builds(
                    ordered, st.dictionaries(keys, inner, max_size=3), st.dictionaries(texts, inner, max_size=2)
                )
            ),
            max_leaves=12,
        )
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to overwrite again and again."""
    return tmp_path_factory.mktemp("golden") / "f.fckpt"


@given(
    state=states(), metadata=st.dictionaries(keys, plain, max_size=2), codec=st.sampled_from(["none", "zstd", "planes"])
)
def test_readers_agree_on_any_state(scratch: Path, state: Any, metadata: dict[Any, Any], codec: str) -> None:
    agree(state, scratch, codec=codec, metadata=metadata)
    first = scratch.read_bytes()
    fastckpt.save(fastckpt.load(scratch), scratch, codec=codec, metadata=metadata, durable=False)
    assert scratch.read_bytes() == first


# --- damage --------------------------------------------------------------------------------------------------------


def blocks(file: File, size: int) -> dict[str, tuple[int, int]]:
    """Where the copies of the metadata lie: offset and size."""
    places = {kind: (offset, length) for kind, _, offset, length, _ in file.sections}
    found = {"superblock": (0, 4096), "manifest": places[1], "index": places[2], "copy": places[3]}
    return {
        **found,
        **{f"header {r.number}": (r.offset, r.payload - r.offset) for r in file.records},
        "footer": (size - 4096, 4096),
    }


def damaged(path: Path, name: str, tmp_path: Path, zero: bool) -> tuple[File, Path]:
    """The golden file with a block zeroed, or with one byte of it changed."""
    data = bytearray(path.read_bytes())
    file = read(path)
    offset, size = blocks(file, len(data))[name]
    if zero:
        data[offset : offset + size] = bytes(size)
    else:
        data[offset + size // 2] ^= 1
    (tmp_path / path.name).write_bytes(data)
    return file, tmp_path / path.name


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("block", ["superblock", "manifest", "index", "copy", "header 0", "header 1", "footer"])
@pytest.mark.parametrize("name", ["threshold_zstd", "nesting", "from_torch_zip"])
def test_losing_one_block_loses_no_tensor(name: str, block: str, zero: bool, tmp_path: Path) -> None:
    path = V2 / f"{name}.fckpt"
    if block not in blocks(read(path), path.stat().st_size):
        pytest.skip("no such record")
    file, hurt = damaged(path, block, tmp_path, zero)
    expected = describe(file.state)
    with pytest.raises(Damaged):
        read(hurt)
    assert not fastckpt.verify(hurt).ok
    if block == "footer":
        with pytest.raises(Damaged):
            read(hurt, strict=False)
        with pytest.raises(fastckpt.errors.DamagedError):
            fastckpt.load(hurt)
    else:
        assert describe(read(hurt, strict=False).state) == describe(fastckpt.load(hurt)) == expected
    recovered = recover(hurt)
    assert describe(recovered.state) == expected
    assert not recovered.lost


def hurt_somewhere(data: bytes, chance: random.Random) -> bytes:
    """A byte changed, a few bytes or a page zeroed, or two of those at once."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2])):
        page = chance.randrange(len(data) // 4096) * 4096
        kind = chance.randrange(4)
        if kind == 0:
            changed[page : page + 4096] = bytes(4096)
        elif kind == 1:
            at = page + chance.randrange(0, 160)
            changed[at : at + 8] = bytes(8)
        else:
            written = [n for n in range(page, page + 4096) if changed[n]] or [page]
            changed[chance.choice(written)] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("count", [6, pytest.param(25, marks=pytest.mark.thorough)])
def test_readers_agree_on_damage(path: Path, expected: dict[str, Any], tmp_path: Path, count: int) -> None:
    chance, load = random.Random(path.stem), partial(loaded, path.stem)
    data = path.read_bytes()
    hurt = tmp_path / "f.fckpt"
    for _ in range(count):
        hurt.write_bytes(hurt_somewhere(data, chance))
        try:
            state = read(hurt, strict=False).state
        except NotACheckpoint:
            # Where records still tell what it was, verify says so.
            with contextlib.suppress(fastckpt.errors.NotACheckpointError):
                assert not fastckpt.verify(hurt).ok
            for action in (load, fastckpt.open):
                with pytest.raises(fastckpt.errors.NotACheckpointError):
                    action(hurt)
            continue
        except Damaged:
            with pytest.raises(fastckpt.errors.DamagedError):
                load(hurt)
        else:
            assert describe(state) == describe(load(hurt))
            assert describe(state)["tensors"] == expected["tensors"]
        report = fastckpt.verify(hurt)
        try:
            read(hurt)
        except Damaged:
            assert not report.ok
        else:
            assert report.ok
        assert sorted(report.damaged_tensors) == sorted(recover(hurt).lost)


@pytest.mark.parametrize("name", ["threshold_zstd", "pack", "aliases"])
def test_headers_alone_give_all_tensors(name: str, tmp_path: Path) -> None:
    path = V2 / f"{name}.fckpt"
    data = bytearray(path.read_bytes())
    file = read(path)
    for block, (offset, size) in blocks(file, len(data)).items():
        if "header" not in block:
            data[offset : offset + size] = bytes(size)
    (tmp_path / "f").write_bytes(data)
    recovered = recover(tmp_path / "f")
    assert recovered.state is None
    assert {name: reference_tensor(tensor) for name, tensor in recovered.tensors.items()} == {
        name: reference_tensor(tensor) for name, tensor in file.tensors.items()
    }


@pytest.mark.parametrize("name", ["threshold_zstd", "aliases", "tied_apart_zstd"])
def test_losing_a_header_and_the_index_loses_one_record(name: str, tmp_path: Path) -> None:
    path = V2 / f"{name}.fckpt"
    data = bytearray(path.read_bytes())
    file = read(path)
    for block in ("header 0", "index"):
        offset, size = blocks(file, len(data))[block]
        data[offset : offset + size] = bytes(size)
    (tmp_path / "f").write_bytes(data)
    lost = [entry.name for entry in file.records[0].entries]
    assert recover(tmp_path / "f").lost == fastckpt.verify(tmp_path / "f").damaged_tensors == lost
    with pytest.raises(fastckpt.errors.DamagedError):
        fastckpt.load(tmp_path / "f")


def test_a_damaged_leaf_loses_only_its_tensors(tmp_path: Path) -> None:
    path = V2 / "pack.fckpt"
    data = bytearray(path.read_bytes())
    file = read(path)
    record = file.records[0]
    data[record.payload + 100] ^= 1  # the first leaf
    (tmp_path / "f").write_bytes(data)
    places = {storage: (offset, offset + size) for storage, offset, size in record.storages}
    lost = [n for n, t in file.tensors.items() if t.span[1] and places[t.storage][0] < 16384]
    recovered = recover(tmp_path / "f")
    assert recovered.lost == fastckpt.verify(tmp_path / "f").damaged_tensors == lost
    with fastckpt.open(tmp_path / "f") as opened:
        for name, tensor in recovered.tensors.items():
            assert torch_tensor(opened[name])["values"] == reference_tensor(tensor)["values"]
        for name in lost:
            with pytest.raises(fastckpt.errors.DamagedError):
                opened[name]


def test_a_file_inside_a_tensor_is_not_taken_for_the_outer_one(tmp_path: Path) -> None:
    inner = (V2 / "pack.fckpt").read_bytes()
    state = {"before": torch.arange(100), "file": of_bytes(inner * 6, torch.uint8), "after": torch.zeros(70000)}
    fastckpt.save(state, tmp_path / "f")
    data = bytearray((tmp_path / "f").read_bytes())
    file = read(tmp_path / "f")
    expected = {name: reference_tensor(tensor) for name, tensor in file.tensors.items()}
    for lost in (
        ["footer"],
        ["header 0", "header 2", "footer"],
        ["superblock", "manifest", "footer"],
        ["manifest", "copy", "footer"],
        ["manifest", "copy", "index"],
        ["header 1"],
    ):
        hurt = bytearray(data)
        for block in lost:
            offset, size = blocks(file, len(data))[block]
            hurt[offset : offset + size] = bytes(size)
        (tmp_path / "hurt").write_bytes(hurt)
        recovered = recover(tmp_path / "hurt")
        assert {name: reference_tensor(tensor) for name, tensor in recovered.tensors.items()} == expected
        if "superblock" not in lost:
            assert not fastckpt.verify(tmp_path / "hurt").damaged_tensors
