"""Where the storages of a ``.pt`` are, when what tells their places contradicts itself."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from salvage.support import equal, flat, make_state, overwrite, places, status

import fastckpt
from fastckpt.layout.zip_layout import BIG, end_of, next_place, place_before

ORIGINAL = flat(make_state())
KEYS = {name: f"data/{number}" for number, name in enumerate(ORIGINAL)}


def save(path: Path, *, crcs: bool = True) -> Path:
    torch.serialization.set_crc32_options(crcs)
    try:
        torch.save(make_state(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    return path


def header_of(path: Path, record: str) -> int:
    """Where the local header of a record begins."""
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(f"{path.stem}/{record}").header_offset


def cut_directory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    path.write_bytes(path.read_bytes()[:start])


def check_all_back(path: Path, like: Path | None = None) -> None:
    """Every tensor comes back from its place, proven or not."""
    report = fastckpt.salvage(path, path.with_name("out.fckpt"), include=["unverified"], like=like)
    loaded = flat(fastckpt.load(path.with_name("out.fckpt")))
    assert list(loaded) == list(ORIGINAL), status(report)
    assert all(equal(loaded[name], ORIGINAL[name]) for name in ORIGINAL)


def test_backwards_is_the_inverse_of_forwards() -> None:
    r = random.Random(3)
    for _ in range(3000):
        start = r.choice((r.randrange(100_000), r.randrange(BIG - 10_000, BIG + 10_000)))
        name, size = f"m/data/{r.randrange(10 ** r.randrange(1, 6))}", r.choice((0, 1, r.randrange(5000), BIG))
        after_name, after_size = f"m/data/{r.randrange(10 ** r.randrange(1, 6))}", r.choice((0, 7, r.randrange(5000)))
        place = next_place(start, name, size)
        after = next_place(end_of(place, size), after_name, after_size)
        if (start < BIG) != (after.data < BIG):
            continue  # Which fields are wide is told by the header's own offset, which is what is looked for.
        found = place_before(after, after_name, after_size, name, size)
        assert found is not None
        assert (found.data, found.descriptor) == (place.data, place.descriptor)
    assert place_before(next_place(0, "m/data/0", 5), "m/data/0", 5, "m/data/1", 100) is None


@pytest.mark.parametrize("crcs", [True, False])
def test_header_that_tells_another_place(tmp_path: Path, crcs: bool) -> None:
    """A flipped bit in the length of a name or of the padding, and neither descriptor nor directory left."""
    path = save(tmp_path / "model.pt", crcs=crcs)
    at, size = places(path)["data/3"]
    header = header_of(path, "data/3")
    cut_directory(path)
    overwrite(path, at + size, b"\xaa" * 16)
    raw = path.read_bytes()
    for field in (26, 28):
        for bit in (2, 6):
            (length,) = struct.unpack_from("<H", raw, header + field)
            overwrite(path, header + field, struct.pack("<H", length ^ 1 << bit))
            assert fastckpt.salvage(path).tensors[list(ORIGINAL)[3]].offset == at
            check_all_back(path)
            overwrite(path, header + field, struct.pack("<H", length))


@pytest.mark.parametrize("crcs", [True, False])
def test_all_headers_and_descriptors_lost(tmp_path: Path, crcs: bool) -> None:
    """The sizes in data.pkl, and the records around those in doubt, tell the places."""
    path = save(tmp_path / "model.pt", crcs=crcs)
    found = places(path)
    headers = [header_of(path, f"data/{n}") for n in range(3, 7)]
    for header, n in zip(headers, range(3, 7), strict=True):
        at, size = found[f"data/{n}"]
        overwrite(path, header, b"\xaa" * 40)
        overwrite(path, at + size, b"\xaa" * 16)
    cut_directory(path)
    check_all_back(path)


@pytest.mark.parametrize("crcs", [True, False])
def test_records_in_the_order_of_their_keys_as_text(tmp_path: Path, crcs: bool) -> None:
    """As older versions of torch wrote them: data/10 comes before data/2, and the neighbours are others."""
    state = {f"t{number}": torch.arange(100 + 7 * number) for number in range(12)}
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    torch.serialization.set_crc32_options(crcs)
    try:
        writer = torch._C.PyTorchFileWriter(str(path))
        writer.write_record("data.pkl", records["data.pkl"], len(records["data.pkl"]))
        for name in sorted(name for name in records if name.startswith("data/")):
            writer.write_record(name, records[name], len(records[name]))
        writer.write_end_of_file()
    finally:
        torch.serialization.set_crc32_options(True)
    found = places(path)
    headers = {number: header_of(path, f"data/{number}") for number in (2, 3, 10)}
    assert headers[10] < headers[2] < headers[3]
    cut_directory(path)
    for number, header in headers.items():
        overwrite(path, header, b"\xaa" * 30)
        overwrite(path, sum(found[f"data/{number}"]), b"\xaa" * 16)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", include=["unverified"])
    assert {name: fate.offset for name, fate in report.tensors.items()} == {
        f"t{number}": found[f"data/{number}"][0] for number in range(12)
    }
    loaded = fastckpt.load(tmp_path / "out.fckpt")
    assert all(equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("crcs", [True, False])
def test_stray_copy_of_a_header(tmp_path: Path, crcs: bool) -> None:
    """A sector stands in another place too, with headers that claim to be there."""
    path = save(tmp_path / "model.pt", crcs=crcs)
    raw = path.read_bytes()
    header = header_of(path, "data/4")
    cut_directory(path)
    at, size = places_of_raw(raw)["data/4"]
    overwrite(path, at + size, b"\xaa" * 16)
    wte, _ = places_of_raw(raw)["data/0"]
    overwrite(path, wte + 5000, raw[header : header + 200])
    report = fastckpt.salvage(path, include=["unverified"])
    assert report.tensors[list(ORIGINAL)[4]].offset == at
    assert report.tensors["wte"].status.value == ("damaged" if crcs else "unverified")


def places_of_raw(raw: bytes) -> dict[str, tuple[int, int]]:
    """As `places`, of a file that is not on disk any more."""
    import io

    found = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for info in archive.infolist():
            names, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
            found[info.filename.partition("/")[2]] = (info.header_offset + 30 + names + extra, info.file_size)
    return found


def test_stray_header_is_no_storage(tmp_path: Path) -> None:
    """Without data.pkl, a copy of a header in front of another one announces nothing."""
    path = save(tmp_path / "model.pt")
    raw = path.read_bytes()
    at, size = places(path)["data.pkl"]
    overwrite(path, at, bytes(size))
    header = header_of(path, "data/4")
    overwrite(path, at, raw[header : places(path)["data/4"][0]])
    report = fastckpt.salvage(path)
    fate = report.tensors["data/4"]
    assert (fate.status.value, fate.offset) == ("intact", places(path)["data/4"][0])


@pytest.mark.parametrize("crcs", [True, False])
def test_another_file_does_not_replace_what_is_there(tmp_path: Path, crcs: bool) -> None:
    """A data.pkl that only lost its checksum keeps its places and names, which --like confirms."""
    path = save(tmp_path / "model.pt", crcs=crcs)
    like = save(tmp_path / "like.pt")
    at, size = places(path)["data.pkl"]
    cut_directory(path)
    overwrite(path, at + size, b"\xaa" * 16)
    at, size = places_of_raw(like.read_bytes())["data/3"]
    check_all_back(path, like)
    report = fastckpt.salvage(path, like=like)
    assert report.structure == "whole"
    assert any("another checkpoint" in note for note in report.notes)
    assert status(report)["wte"] == ("intact" if crcs else "unverified")


def test_header_and_descriptor_of_a_lost_name(tmp_path: Path) -> None:
    """Half of the headers are lost, and data.pkl with one letter of the name in front."""
    path = save(tmp_path / "model.pt")
    like = save(tmp_path / "like.pt")
    found = places(path)
    headers = {n: header_of(path, f"data/{n}") for n in range(len(ORIGINAL))}
    cut_directory(path)
    overwrite(path, 31, b"_")
    overwrite(path, found["data.pkl"][0], bytes(found["data.pkl"][1]))
    for n in range(0, len(ORIGINAL), 2):
        overwrite(path, headers[n], b"\xaa" * 30)
    report = fastckpt.salvage(path, like=like)
    # What stands behind a record proves it only together with the header that names it.
    for n, fate in enumerate(report.tensors.values()):
        assert fate.status.value == ("unverified" if n % 2 == 0 and fate.nbytes else "intact")


def test_one_name_of_the_directory_is_damaged(tmp_path: Path) -> None:
    """That of data.pkl, and by a byte that is no text, so that it reads as longer than it is."""
    path = save(tmp_path / "model.pt")
    raw = path.read_bytes()
    at = raw.index(b"model/data.pkl", raw.index(b"PK\x01\x02"))
    overwrite(path, at, b"\xff")
    report = fastckpt.salvage(path)
    assert set(status(report).values()) == {"intact"}
    assert list(report.tensors) == list(ORIGINAL)


def test_bytes_put_in(tmp_path: Path) -> None:
    """All that follows stands further back; the directory does not know."""
    path = save(tmp_path / "model.pt")
    raw = path.read_bytes()
    at = header_of(path, "data/3")
    path.write_bytes(raw[:at] + b"\xaa" * 5 + raw[at:])
    assert set(status(fastckpt.salvage(path)).values()) == {"intact"}
    save(path, crcs=False)
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + b"\xaa" * 5 + raw[at:])
    check_all_back(path)


def test_bytes_taken_out_between_two_storages(tmp_path: Path) -> None:
    """What is left of the second one seems to begin in the first: a place that is certain is not given to another."""
    path = save(tmp_path / "model.pt", crcs=False)
    found, raw = places(path), path.read_bytes()
    (at, size), (following, _) = found["data/2"], found["data/3"]
    header = header_of(path, "data/3")
    path.write_bytes(raw[:header] + raw[following + 400 :])
    report = fastckpt.salvage(path)
    names = list(ORIGINAL)
    assert (status(report)[names[2]], report.tensors[names[2]].offset) == ("unverified", at)
    assert size < 400
    loss = following + 400 - header
    assert report.tensors[names[4]].offset == found["data/4"][0] - loss


def test_checksum_in_the_directory_counts_wherever_the_bytes_are(tmp_path: Path) -> None:
    """A storage that has moved, without its descriptor."""
    path = save(tmp_path / "model.pt")
    raw = path.read_bytes()
    at = header_of(path, "data/3")
    start, size = places(path)["data/3"]
    moved = raw[:at] + b"\xaa" * 64 + raw[at : start + size] + b"\xaa" * 16 + raw[start + size + 16 :]
    path.write_bytes(moved)
    assert status(fastckpt.salvage(path))[list(ORIGINAL)[3]] == "intact"


@pytest.mark.parametrize("flipped", ["top directory", "key"])
def test_a_damaged_name_is_no_other_record(tmp_path: Path, flipped: str) -> None:
    """One bit of the last storage's header makes it name another directory or key; what is behind it is lost."""
    path = save(tmp_path / "model.pt")
    name = list(ORIGINAL)[-1]
    header = header_of(path, KEYS[name])
    start, size = places(path)[KEYS[name]]
    raw = path.read_bytes()[: start + size] + b"\xaa" * 300
    at = header + 30 if flipped == "top directory" else header + 30 + len(f"model/{KEYS[name]}") - 1
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    report = fastckpt.salvage(path, tmp_path / "out.pt", include=["unverified"])
    assert status(report)[name] == "unverified"
    assert equal(flat(torch.load(tmp_path / "out.pt"))[name], ORIGINAL[name])
