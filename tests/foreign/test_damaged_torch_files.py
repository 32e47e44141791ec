"""Cut, altered and unusual torch files: each has its own typed error, and none is taken for whole."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from at_path import open_foreign
from zip64 import write_zip64

from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, UnsupportedStateError

STATE = {"first": torch.arange(100.0), "second": torch.arange(50), "third": torch.ones(7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    return tmp_path / "legacy.pt"


def rewrite(source: Path, change: Callable[[dict[str, bytes]], None], **options: int) -> Path:
    """Repack an archive with the standard library, after ``change`` to its records."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(source, "w", **options) as archive:
        for name, raw in records.items():
            archive.writestr(name, raw)
    return source


def test_repacked_is_still_a_checkpoint(path: Path) -> None:
    before = open_foreign(path)
    rewrite(path, lambda records: None)
    after = open_foreign(path)
    assert after.entries == before.entries
    assert [s.crc for s in after.storages] == [s.crc for s in before.storages]


def test_other_first_record(path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        pickle_record = records.pop("model/data.pkl")
        others = dict(records)
        records.clear()
        records["model/README"] = b"hello"
        records.update(others)
        records["model/data.pkl"] = pickle_record

    assert len(open_foreign(rewrite(path, change)).entries) == 3


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_cut_zip(path: Path, kept: float) -> None:
    raw = path.read_bytes()
    size = int(len(raw) * kept)
    path.write_bytes(raw[:size])
    with pytest.raises(DamagedError, match=rf"the file is cut .* it has {size} bytes") as caught:
        open_foreign(path)
    assert caught.value.next_step == f"fastckpt salvage {path}"


@pytest.mark.parametrize("which", ["path", "legacy"])
def test_cut_at_every_length(request: pytest.FixtureRequest, which: str) -> None:
    source = request.getfixturevalue(which)
    raw = source.read_bytes()
    for size in [*range(0, len(raw), 23), len(raw) - 1]:
        source.write_bytes(raw[:size])
        with pytest.raises(FastckptError):
            open_foreign(source)


def test_next_step_is_quoted_for_the_shell(path: Path) -> None:
    odd = path.with_name("my model.pt")
    odd.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError) as caught:
        open_foreign(odd)
    assert caught.value.next_step == f"fastckpt salvage '{odd}'"


def test_storages_missing_as_after_an_interrupt(path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        del records["model/data/1"], records["model/data/2"]

    with pytest.raises(DamagedError, match=r"2 of 3 storages are missing.*second, third") as caught:
        open_foreign(rewrite(path, change))
    assert caught.value.tensor == "second"
    assert caught.value.next_step == f"fastckpt salvage {path}"


def test_storage_of_wrong_size(path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        records["model/data/1"] += b"12345678"

    with pytest.raises(DamagedError, match=r"1 of 3 storages are of another size.*second"):
        open_foreign(rewrite(path, change))


def test_pickle_with_wrong_crc(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.index(b"second")
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"data.pkl is damaged: its CRC-32"):
        open_foreign(path)


def test_storage_bytes_are_not_read(path: Path) -> None:
    file = open_foreign(path)
    raw = bytearray(path.read_bytes())
    raw[file.storages[0].offset] ^= 1
    path.write_bytes(raw)
    assert open_foreign(path).storages == file.storages


def test_compressed(path: Path) -> None:
    rewrite(path, lambda records: None, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(UnsupportedStateError, match=r"is compressed.*zip -0"):
        open_foreign(path)


def test_encrypted(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="disagrees with the directory about compression"):
        open_foreign(path)
    raw[int.from_bytes(raw[at + 42 : at + 46], "little") + 6] |= 1
    path.write_bytes(raw)
    with pytest.raises(UnsupportedStateError, match="is encrypted"):
        open_foreign(path)


def test_byte_order_that_is_none(path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        records["model/byteorder"] = b"middle"

    with pytest.raises(UnsupportedStateError, match="is not known"):
        open_foreign(rewrite(path, change))


def test_no_byteorder_record_as_in_old_files(path: Path) -> None:
    rewrite(path, lambda records: [records.pop(f"model/{name}", None) for name in ("byteorder", ".format_version")])
    assert len(open_foreign(path).entries) == 3


def test_no_pickle(path: Path) -> None:
    with pytest.raises(DamagedError, match=r"no data.pkl"):
        open_foreign(rewrite(path, lambda records: records.pop("model/data.pkl") and None))
    with pytest.raises(NotACheckpointError, match="torch did not write it"):
        open_foreign(rewrite(path, lambda records: [records.pop(name) for name in list(records) if "/data/" in name]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_name(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/0", bytes(400))
    with pytest.raises(DamagedError, match="two records named 'model/data/0'"):
        open_foreign(path)


def test_local_header_with_another_name(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"model/data/1", b"model/data/9", 1))
    with pytest.raises(DamagedError, match="header of record model/data/1 has another name"):
        open_foreign(path)


def test_local_header_overwritten(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.index(b"model/data/1") - 30
    path.write_bytes(raw[:at] + bytes(64) + raw[at + 64 :])
    with pytest.raises(DamagedError, match="header of record model/data/1 is not there") as caught:
        open_foreign(path)
    assert caught.value.offset == at


def test_beginning_overwritten(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(bytes(64) + raw[64:])
    with pytest.raises(DamagedError, match=r"header of record model/data.pkl is not there"):
        open_foreign(path)


def test_overlapping_records(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"model/data/0") - 46
    for field in (20, 24):
        (size,) = struct.unpack_from("<I", raw, at + field)
        struct.pack_into("<I", raw, at + field, size + 1000)
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="model/data/0 reaches into what follows"):
        open_foreign(path)


def test_two_sizes(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"model/data/0") - 46
    struct.pack_into("<I", raw, at + 20, 8)
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match="has two sizes"):
        open_foreign(path)


def test_tensor_beyond_its_storage(path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        # The shape is the second 100 of the tensor; the first is the length of its storage.
        before, between, after = records["model/data.pkl"].split(b"Kd")
        records["model/data.pkl"] = before + b"Kd" + between + b"Ke" + after

    with pytest.raises(DamagedError, match="reaches beyond its storage") as caught:
        open_foreign(rewrite(path, change))
    assert caught.value.tensor == "first"


def test_cut_legacy_names_tensors(legacy: Path) -> None:
    raw = legacy.read_bytes()
    legacy.write_bytes(raw[:-3])
    with pytest.raises(DamagedError, match="1 of 3 storages are cut off") as caught:
        open_foreign(legacy)
    assert caught.value.tensor in STATE
    assert caught.value.next_step == f"fastckpt salvage {legacy}"
    legacy.write_bytes(raw[:100])
    with pytest.raises(DamagedError, match="has 100 bytes and ends inside the pickles"):
        open_foreign(legacy)


def test_legacy_length_differs(legacy: Path) -> None:
    file = open_foreign(legacy)
    raw = bytearray(legacy.read_bytes())
    struct.pack_into("<q", raw, file.storages[0].offset - 8, 99)
    legacy.write_bytes(raw)
    with pytest.raises(DamagedError, match="first"):
        open_foreign(legacy)


def write_legacy(path: Path, *objects: object, tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(pickle.dumps(item, protocol=2) for item in objects) + tail)
    return path


MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ((MAGIC, 1002, SYSTEM, {}, []), "none that torch ever wrote"),
        ((MAGIC, PROTOCOL, SYSTEM, {}, {}), "not a list of texts"),
        ((MAGIC, PROTOCOL, SYSTEM, {}, ["1", "1"]), "one key twice"),
        ((MAGIC, PROTOCOL, SYSTEM, {}, ["1"]), "belongs to no tensor"),
        (([MAGIC], PROTOCOL, SYSTEM, {}, []), "magic number"),
    ],
)
def test_legacy_that_makes_no_sense(tmp_path: Path, objects: Sequence[object], message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        open_foreign(write_legacy(tmp_path / "x.pt", *objects))


def test_legacy_storage_views(tmp_path: Path) -> None:
    """Files of early versions: a persistent id can name a part of a storage."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("77") + text("cuda:1") + b"K\x08"
    view = storage + text("78") + b"K\x03K\x04\x87tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + view + b"K\x01K\x02\x85K\x01\x85tR"
    raw = b"".join(pickle.dumps(item, protocol=2) for item in (MAGIC, PROTOCOL, SYSTEM))
    raw += b"\x80\x02" + tensor + b"." + pickle.dumps(["77"], protocol=2) + struct.pack("<q", 8) + bytes(32)
    (tmp_path / "old.pt").write_bytes(raw)
    file = open_foreign(tmp_path / "old.pt")
    assert file.entries[0].storage_offset == 4
    assert file.storages[0].nbytes == 32
    assert file.locations == {"cuda:1": 1}


def test_legacy_with_pickles_longer_than_the_first_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastckpt.foreign import torch_legacy

    monkeypatch.setattr(torch_legacy, "_FIRST_WINDOW", 64)
    torch.save(
        {f"tensor {i}": torch.ones(i) for i in range(50)}, tmp_path / "l.pt", _use_new_zipfile_serialization=False
    )
    assert len(open_foreign(tmp_path / "l.pt").entries) == 50


def test_zip64(tmp_path: Path) -> None:
    numel = 2**30 + 1

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(key: str, numel: int) -> bytes:
        count = b"\x8a\x08" + struct.pack("<q", numel)
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + count + b"tQ"
        hooks = b"ccollections\nOrderedDict\n)R"
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + count + b"\x85K\x01\x85\x89" + hooks + b"tR"
        )

    data = b"\x80\x02}" + text("big") + tensor("0", numel) + b"s" + text("small") + tensor("1", 2) + b"s."
    small = struct.pack("<2f", 1.5, 2.5)
    path = tmp_path / "big.pt"
    write_zip64(
        path,
        [
            ("big/data.pkl", data),
            ("big/byteorder", b"little"),
            ("big/data/0", 4 * numel),
            ("big/data/1", small),
            ("big/version", b"3\n"),
        ],
    )
    file = open_foreign(path)
    assert [storage.nbytes for storage in file.storages] == [4 * numel, 8]
    assert [storage.crc for storage in file.storages] == [None, zlib.crc32(small)]
    assert file.storages[1].offset > 2**32
    with open(path, "rb") as raw:
        raw.seek(file.storages[1].offset)
        assert raw.read(8) == small
    loaded = torch.load(path, mmap=True)
    assert loaded["big"].shape == (numel,), "torch takes the file for one of its own"
    assert loaded["small"].tolist() == [1.5, 2.5]
