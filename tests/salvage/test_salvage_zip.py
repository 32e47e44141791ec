"""Salvage of damaged ``.pt`` files: every kind of damage the issue names, one small case each."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from salvage.support import REAL, check_written, equal, flat, make_state, overwrite, places, status, with_real_files

import fastckpt
from fastckpt.errors import NotACheckpointError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(make_state(), tmp_path / "model_000004.pt")
    return tmp_path / "model_000004.pt"


ORIGINAL = flat(make_state())


def test_whole_file(path: Path) -> None:
    report = fastckpt.salvage(path)
    assert set(status(report).values()) == {"intact"}
    assert list(report.tensors) == list(ORIGINAL)
    assert (report.exit_code, report.complete, report.findings) == (0, True, [])
    assert report.next_step.startswith("nothing to salvage")


@pytest.mark.parametrize("suffix", [".pt", ".fckpt", ".safetensors"])
def test_cut_anywhere(path: Path, tmp_path: Path, suffix: str) -> None:
    whole = path.read_bytes()
    found = places(path)
    names = {f"data/{i}": name for i, name in enumerate(n for n, t in ORIGINAL.items())}
    for cut in range(2000, len(whole), 41_777):
        path.write_bytes(whole[:cut])
        dst = tmp_path / f"out{suffix}"
        report = fastckpt.salvage(path, dst)
        expected = {}
        for key, (at, size) in found.items():
            if key.startswith("data/") and key in names:
                name = names[key]
                if not size or at + size + 8 <= cut:
                    expected[name] = "intact"
                elif at + size <= cut:
                    expected[name] = "unverified"
                else:
                    expected[name] = "partial" if at < cut else "lost"
        assert status(report) == expected, cut
        assert report.exit_code == 3
        assert dst.exists()
        if suffix == ".safetensors":
            loaded = fastckpt.load(dst)
            assert set(loaded) == set(report.written)
            assert all(equal(loaded[name], ORIGINAL[name]) for name in report.written)
        else:
            loaded = check_written(dst, report, ORIGINAL)
            assert loaded["step"] == 7
            assert len(loaded["blocks"]) == 3
    assert not [p for p in tmp_path.iterdir() if p.name not in ("model_000004.pt", f"out{suffix}")]


@with_real_files
@pytest.mark.parametrize(("kept", "intact"), [(0.1, 7), (0.5, 21), (0.9, 33), (0.999, 34), (None, 35)])
def test_real_model_cut(tmp_path: Path, kept: float | None, intact: int) -> None:
    raw = (REAL / "base_checkpoints/d4/model_000004.pt").read_bytes()
    cut = tmp_path / "model_000004.pt"
    cut.write_bytes(raw[: int(len(raw) * kept)] if kept else raw[:-1])
    report = fastckpt.salvage(cut)
    assert report.counts["intact"] == intact
    assert len(report.tensors) == 35


def test_interrupted_save_leaves_a_valid_zip(path: Path) -> None:
    """Ctrl-C: the directory is written, the last storages are not."""
    with zipfile.ZipFile(path) as archive:
        prefix = "model_000004"
        state = archive.read(f"{prefix}/data.pkl")
        records = {i: archive.read(f"{prefix}/data/{i}") for i in range(4)}
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", state, len(state))
    writer.write_record("byteorder", b"little", 6)
    for index, raw in records.items():
        writer.write_record(f"data/{index}", raw, len(raw))
    writer.write_end_of_file()
    report = fastckpt.salvage(path)
    found = status(report)
    names = list(ORIGINAL)
    assert [found[name] for name in names[:4]] == ["intact"] * 4
    assert {found[name] for name in names[4:] if ORIGINAL[name].numel()} == {"lost"}
    assert "interrupted" in report.tensors[names[4]].reason


def test_hole_over_end_descriptor_and_next_header(path: Path) -> None:
    found = places(path)
    at, size = found["data/0"]
    path.write_bytes(path.read_bytes()[: found["data/5"][0] + 5])
    overwrite(path, at + size - 100, bytes(300))
    report = fastckpt.salvage(path)
    names = list(ORIGINAL)
    assert report.tensors[names[0]].status.value == "partial"
    assert report.tensors[names[0]].rows_present == [(0, 399)]
    # The next one lost its header, not its bytes: the descriptor proves them.
    assert report.tensors[names[1]].status.value in ("intact", "damaged")
    assert report.tensors[names[2]].status.value == "intact"


def test_second_half_reads_as_zeros(path: Path) -> None:
    size = path.stat().st_size
    before = status(fastckpt.salvage(path))
    overwrite(path, size // 2, bytes(size - size // 2))
    report = fastckpt.salvage(path)
    half = size // 2
    for name, fate in report.tensors.items():
        assert fate.offset is not None
        if fate.nbytes and fate.offset + fate.nbytes > half:
            assert fate.status.value in ("partial", "lost"), name
        else:
            assert fate.status.value in ("intact", "unverified")
    assert set(before.values()) == {"intact"}


def test_flipped_bit_is_damage(path: Path) -> None:
    at, size = places(path)["data/0"]
    raw = path.read_bytes()
    overwrite(path, at + size // 2, bytes([raw[at + size // 2] ^ 4]))
    report = fastckpt.salvage(path)
    assert status(report)["wte"] == "damaged"
    assert list(status(report).values()).count("intact") == len(ORIGINAL) - 1
    assert report.exit_code == 3


def test_directory_destroyed(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x01\x02", 0, raw.index(b"PK\x01\x02") + 4)
    overwrite(path, at, b"\xaa" * (len(raw) - at))
    report = fastckpt.salvage(path)
    assert set(status(report).values()) == {"intact"}
    assert report.exit_code == 1


def test_local_headers_destroyed(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.find(b"PK\x03\x04", 10)
    while at >= 0:
        overwrite(path, at, b"\xaa" * 40)
        at = raw.find(b"PK\x03\x04", at + 1)
    report = fastckpt.salvage(path)
    assert set(status(report).values()) == {"intact"}
    assert report.exit_code == 1


def test_descriptors_destroyed_directory_proves(path: Path) -> None:
    for key, (at, size) in places(path).items():
        if size and key.startswith("data/"):
            overwrite(path, at + size, b"\xaa" * 16)
    assert set(status(fastckpt.salvage(path)).values()) == {"intact"}


@pytest.mark.parametrize("last", [True, False])
def test_descriptors_and_directory_destroyed(path: Path, last: bool) -> None:
    """torch's last record is made of the CRC-32s of all others: it proves them, or nothing does."""
    raw = path.read_bytes()
    end = raw.index(b"PK\x01\x02") if last else places(path)[".data/serialization_id"][0]
    for key, (at, size) in places(path).items():
        if size and key.startswith("data/"):
            overwrite(path, at + size, b"\xaa" * 16)
    path.write_bytes(path.read_bytes()[:end])
    report = fastckpt.salvage(path)
    assert {status(report)[name] for name, tensor in ORIGINAL.items() if tensor.numel()} == {
        "intact" if last else "unverified"
    }


@pytest.mark.parametrize("garbage", [b"x" * 10, b"\0" * 100_000, b"PK\x05\x06" * 30_000])
def test_garbage_appended(path: Path, garbage: bytes) -> None:
    path.write_bytes(path.read_bytes() + garbage)
    report = fastckpt.salvage(path)
    assert set(status(report).values()) == {"intact"}
    assert report.exit_code == 1


def test_crc_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(make_state(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert "intact" not in {status(report)[name] for name, t in ORIGINAL.items() if t.numel()}
    assert report.counts["unverified"] == len(ORIGINAL)
    assert report.exit_code == 2
    report = fastckpt.salvage(path, tmp_path / "out.fckpt", include=["unverified"])
    assert report.written == list(ORIGINAL)
    assert report.exit_code == 0
    loaded = flat(fastckpt.load(tmp_path / "out.fckpt"))
    assert all(equal(loaded[name], ORIGINAL[name]) for name in ORIGINAL)
    with fastckpt.open(tmp_path / "out.fckpt") as checkpoint:
        assert set(checkpoint.metadata["fastckpt.salvage"]["not_proven"].values()) == {"unverified"}


# --- the pickle is lost ---------------------------------------------------------


def test_first_bytes_destroyed_names_from_like(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({**make_state(), "wte": torch.zeros(400, 300)}, other)
    overwrite(path, 0, b"\xaa" * 4096)
    report = fastckpt.salvage(path)
    assert report.structure == "none"
    assert report.counts["intact"] > 5
    assert all(name.startswith("data/") for name in report.tensors)
    report = fastckpt.salvage(path, tmp_path / "out.pt", like=other)
    assert report.structure == "like"
    found = status(report)
    assert list(found) == list(ORIGINAL)
    # The first storage begins inside the destroyed part.
    assert found["wte"] == "damaged"
    assert {found[name] for name in found if name != "wte" and ORIGINAL[name].numel()} == {"intact"}
    check_written(tmp_path / "out.pt", report, ORIGINAL)


@with_real_files
def test_real_model_names_from_meta_alone(tmp_path: Path) -> None:
    source = REAL / "base_checkpoints/d4_w4"
    path = tmp_path / "model_000004.pt"
    path.write_bytes((source / "model_000004.pt").read_bytes())
    (tmp_path / "meta_000004.json").write_bytes((source / "meta_000004.json").read_bytes())
    original = torch.load(path, weights_only=True)
    at, size = places(path)["data.pkl"]
    overwrite(path, at, bytes(size))
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    assert report.structure == "nanochat order"
    assert list(report.tensors) == list(original)
    assert report.counts["intact"] == 35
    assert report.complete
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(equal(loaded[name], original[name]) for name in original)


@with_real_files
def test_names_from_a_sibling_step(tmp_path: Path) -> None:
    raw = (REAL / "base_checkpoints/d4/model_000004.pt").read_bytes()
    (tmp_path / "model_000004.pt").write_bytes(raw)
    (tmp_path / "model_000002.pt").write_bytes(raw)
    overwrite(tmp_path / "model_000004.pt", 300, b"\xaa" * 3000)
    report = fastckpt.salvage(tmp_path / "model_000004.pt")
    assert report.structure == "sibling"
    assert report.counts["intact"] == 35


def test_flip_in_the_pickle_is_never_intact(path: Path) -> None:
    at, _ = places(path)["data.pkl"]
    raw = path.read_bytes()
    where = raw.index(b"wte", at)
    overwrite(path, where, b"w")
    overwrite(path, where + 1, b"x")
    report = fastckpt.salvage(path)
    assert report.structure == "damaged"
    assert "wxe" in report.tensors
    assert "intact" not in status(report).values()
    assert any("fails its CRC-32" in finding.message for finding in report.findings)


@with_real_files
def test_empty_file(tmp_path: Path) -> None:
    raw = (REAL / "base_checkpoints/d4/model_000004.pt").read_bytes()
    (tmp_path / "model_000004.pt").write_bytes(b"")
    (tmp_path / "model_000002.pt").write_bytes(raw)
    with pytest.raises(NotACheckpointError, match="empty"):
        fastckpt.salvage(tmp_path / "model_000004.pt")
    report = fastckpt.salvage(tmp_path / "model_000004.pt", like=tmp_path / "model_000002.pt")
    assert report.counts["lost"] == 35
    assert "step 2" in report.next_step


# --- hostile and odd files --------------------------------------------------------


def test_repacked_without_alignment(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "re.pt", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    raw = (tmp_path / "re.pt").read_bytes()
    assert set(status(fastckpt.salvage(tmp_path / "re.pt")).values()) == {"intact"}
    (tmp_path / "re.pt").write_bytes(raw[: len(raw) // 2])
    counts = fastckpt.salvage(tmp_path / "re.pt").counts
    assert counts["intact"] >= 1
    assert counts["lost"] >= 1


def test_unknown_global_is_not_imported(tmp_path: Path) -> None:
    import string

    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(10), "config": string.Template("aab")}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"PK\x01\x02")])
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    assert status(report) == {"w": "intact"}
    assert any("string.Template" in note for note in report.notes)
    back = torch.load(tmp_path / "out.pt", weights_only=False)
    assert back["config"].template == "aab"
    report = fastckpt.salvage(path, tmp_path / "out.fckpt")
    assert any("is in the new file" in note for note in report.notes)
    assert "config" in fastckpt.load(tmp_path / "out.fckpt", opaque="keep")


@pytest.mark.parametrize("suffix", ["pt", "fckpt", "safetensors"])
def test_what_a_safetensors_leaves_out_is_missing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(10), "step": 3}, path)
    report = fastckpt.salvage(path, tmp_path / f"out.{suffix}")
    assert report.complete == ("step" in fastckpt.load(tmp_path / f"out.{suffix}")) == (suffix != "safetensors")
    torch.save({"w": torch.ones(10)}, path)
    assert fastckpt.salvage(path, tmp_path / f"out.{suffix}").complete


def test_overlapping_records(tmp_path: Path) -> None:
    """A directory that names the same bytes a thousand times does not make us read them as often."""
    path = tmp_path / "bomb.pt"
    torch.save([torch.ones(1000) for _ in range(100)], path)
    raw = bytearray(path.read_bytes())
    first = places(path)["data/0"][0]
    at = raw.index(b"PK\x01\x02")
    while at >= 0:
        if b"/data/" in raw[at + 46 : at + 60]:
            struct.pack_into("<I", raw, at + 42, first - 64)
        at = raw.find(b"PK\x01\x02", at + 4)
    path.write_bytes(raw)
    assert fastckpt.salvage(path).counts["intact"] <= 100


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, raw in [("a.zip", b""), ("b.txt", b"hello world " * 1000), ("c.bin2", bytes(10_000))]:
        path = tmp_path / name
        if name == "a.zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("hello.txt", "hello")
            raw = buffer.getvalue()
        path.write_bytes(raw)
        with pytest.raises(NotACheckpointError):
            fastckpt.salvage(path)


def test_destination_must_be_another_file(path: Path) -> None:
    with pytest.raises(UsageError):
        fastckpt.salvage(path, path)
    with pytest.raises(UsageError):
        fastckpt.salvage(path, path.with_suffix(".xyz"))


# --- more than what is intact ------------------------------------------------------


@pytest.mark.parametrize("fill", ["nan", "zeros"])
def test_include_partial(path: Path, tmp_path: Path, fill: str) -> None:
    at, size = places(path)["data/0"]
    path.write_bytes(path.read_bytes()[: at + size // 2])
    report = fastckpt.salvage(path, tmp_path / "out.pt", include=["partial"], fill=fill)
    wte = torch.load(tmp_path / "out.pt")["wte"]
    assert equal(wte[:200], ORIGINAL["wte"][:200])
    assert bool(wte[200:].isnan().all()) if fill == "nan" else not bool(wte[200:].any())
    assert report.tensors["wte"].status.value == "partial"
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        note = json.loads(archive.read("out/.data/salvage.json"))["fastckpt.salvage"]
    assert note["not_proven"] == {"wte": "partial"}
    assert note["filled_bytes"] == size // 2


def test_backfill(path: Path, tmp_path: Path) -> None:
    older = {**make_state(), "head": torch.full((700, 100), 5.0)}
    torch.save(older, tmp_path / "model_000002.pt")
    at, _ = places(path)["data/8"]
    path.write_bytes(path.read_bytes()[: at + 10])
    dry = fastckpt.salvage(path)
    assert "--backfill" in dry.next_step
    report = fastckpt.salvage(path, tmp_path / "out.pt", backfill=tmp_path / "model_000002.pt")
    assert report.complete
    assert report.exit_code == 1
    assert set(report.backfilled) == {"head"} | ({"ids"} & set(report.backfilled))
    loaded = flat(torch.load(tmp_path / "out.pt"))
    for name in ORIGINAL:
        expected = flat(older)[name] if name in report.backfilled else ORIGINAL[name]
        assert equal(loaded[name], expected), name
