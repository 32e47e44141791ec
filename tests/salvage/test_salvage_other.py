"""Salvage of legacy ``.pt`` and ``.safetensors`` files, of optimizers, of directories; sizes beyond 4 GiB."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from salvage.support import REAL, check_written, equal, flat, make_state, overwrite, places, status, with_real_files

import fastckpt
from fastckpt.errors import NotACheckpointError
from fastckpt.layout.zip_layout import BIG, layouts, next_place
from fastckpt.salvaging.directory import salvage_directory
from fastckpt.text import numbers_text

ORIGINAL = flat(make_state())


# --- legacy -------------------------------------------------------------------------


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    torch.save(make_state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return tmp_path / "old.pt"


def test_legacy_is_never_proven(legacy: Path, tmp_path: Path) -> None:
    report = fastckpt.salvage(legacy, tmp_path / "out.pt", include=["unverified"])
    assert set(status(report).values()) == {"unverified"}
    assert (report.exit_code, report.format) == (0, "torch-legacy")
    assert all(equal(t, ORIGINAL[n]) for n, t in flat(torch.load(tmp_path / "out.pt")).items())


def test_legacy_cut(legacy: Path, tmp_path: Path) -> None:
    raw = legacy.read_bytes()
    for cut in range(100, len(raw), 50_021):
        legacy.write_bytes(raw[:cut])
        report = fastckpt.salvage(legacy, tmp_path / "out.pt", include=["unverified"])
        assert set(status(report).values()) <= {"unverified", "partial", "lost"}
        if report.written:
            for name, tensor in flat(torch.load(tmp_path / "out.pt")).items():
                assert equal(tensor, ORIGINAL[name])


# --- safetensors ----------------------------------------------------------------------


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    safetensors.torch.save_file(ORIGINAL, tmp_path / "model.safetensors", {"run": "7"})
    return tmp_path / "model.safetensors"


def test_safetensors_cut(tensors: Path, tmp_path: Path) -> None:
    raw = tensors.read_bytes()
    tensors.write_bytes(raw[: len(raw) // 2])
    report = fastckpt.salvage(tensors, tmp_path / "out.safetensors", include=["unverified"])
    counts = report.counts
    assert counts["intact"] == 0
    assert counts["unverified"] and counts["lost"] and counts["partial"] == 1  # noqa: PT018
    loaded = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert set(loaded) == set(report.written)
    assert all(equal(loaded[name], ORIGINAL[name]) for name in loaded)


@pytest.mark.parametrize("length", [2**63, 10**15, 5, None])
def test_safetensors_length_of_the_header(tensors: Path, tmp_path: Path, length: int | None) -> None:
    if length is None:
        overwrite(tensors, 8, b"\xaa" * 40)  # The first entry of the table.
    else:
        overwrite(tensors, 0, struct.pack("<Q", length))
    report = fastckpt.salvage(tensors, tmp_path / "out.pt", include=["unverified"])
    assert report.structure == "damaged"
    assert len(report.tensors) >= len(ORIGINAL) - 2
    loaded = torch.load(tmp_path / "out.pt")
    assert all(equal(loaded[name], ORIGINAL[name]) for name in loaded)
    assert "intact" not in status(report).values()


def test_safetensors_header_from_like(tensors: Path, tmp_path: Path) -> None:
    shutil.copy(tensors, tmp_path / "like.safetensors")
    size = struct.unpack("<Q", tensors.read_bytes()[:8])[0]
    overwrite(tensors, 0, b"\xaa" * (8 + size))
    report = fastckpt.salvage(
        tensors, tmp_path / "out.fckpt", like=tmp_path / "like.safetensors", include=["unverified"]
    )
    assert report.structure == "like"
    assert set(report.written) == set(ORIGINAL)
    loaded = fastckpt.load(tmp_path / "out.fckpt")
    assert all(equal(loaded[name], ORIGINAL[name]) for name in ORIGINAL)


# --- optimizers ------------------------------------------------------------------------


def adamw(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.Linear(300, 100))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.randn(4, 200)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.sampled(3)
@pytest.mark.parametrize("suffix", [".pt", ".fckpt"])
@pytest.mark.parametrize("cut", [0.15, 0.4, 0.6, 0.97])
def test_adamw_resumes(tmp_path: Path, cut: float, suffix: str) -> None:
    model, optimizer = adamw(0)
    path = tmp_path / f"optim{suffix}"
    if suffix == ".pt":
        torch.save(optimizer.state_dict(), path)
    else:
        fastckpt.save({"optimizer": optimizer.state_dict()}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * cut)])
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    if not report.written:
        assert report.exit_code == 2
        return
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    state = state.get("optimizer", state)
    assert len(state["state"]) < 4
    assert all(set(entry) == {"step", "exp_avg", "exp_avg_sq"} for entry in state["state"].values())
    assert [len(group["params"]) for group in state["param_groups"]] == [4]
    missing = [each for each in range(4) if each not in state["state"]]
    (note,) = [note for note in report.notes if "anew" in note]
    assert re.match(rf"the optimizer state of parameters? {re.escape(numbers_text(missing))} ", note)
    optimizer.load_state_dict(state)
    model(torch.randn(4, 200)).square().mean().backward()
    optimizer.step()


@with_real_files
def test_nanochat_optimizer(tmp_path: Path) -> None:
    source = REAL / "base_checkpoints/d4/optim_000004_rank0.pt"
    path = tmp_path / "optim_000004_rank0.pt"
    raw = source.read_bytes()
    path.write_bytes(raw[: len(raw) * 6 // 10])
    original = torch.load(source, weights_only=True)
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert state["param_groups"] == original["param_groups"]
    assert 0 < len(state["state"]) < len(original["state"])
    for key, entry in state["state"].items():
        assert set(entry) == set(original["state"][key])
        for name, value in entry.items():
            theirs = original["state"][key][name]
            assert equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs
    assert any("muon group" in note for note in report.notes)
    filled = fastckpt.salvage(path, tmp_path / "full.pt", backfill=source)
    assert filled.complete
    assert flat(torch.load(tmp_path / "full.pt")).keys() == flat(original).keys()


@with_real_files
def test_param_groups_with_a_tensor_that_is_lost(tmp_path: Path) -> None:
    """Optimizers of October 2025 keep a tensor in each group: without it the first step fails, so it is said."""
    source = REAL / "legacy_2025_10_w4/optim_000002.pt"
    path = tmp_path / "optim_000002.pt"
    path.write_bytes(source.read_bytes()[:5_000_000])
    report = fastckpt.salvage(path, tmp_path / "out.pt")
    assert report.broken_groups == ["1.param_groups.1.zero_buffer", "1.param_groups.2.zero_buffer"]
    assert any("zero_buffer" in note for note in report.notes)
    assert "base_train" not in report.next_step
    assert "--backfill OTHER" in report.next_step
    filled = fastckpt.salvage(path, tmp_path / "out.pt", backfill=source)
    assert filled.complete
    assert not filled.broken_groups
    assert "base_train" in filled.next_step


# --- directories ------------------------------------------------------------------------


@with_real_files
def test_directory(tmp_path: Path) -> None:
    for name in os.listdir(REAL / "base_checkpoints/d4_w4"):
        shutil.copyfile(REAL / "base_checkpoints/d4_w4" / name, tmp_path / name)
    report = salvage_directory(tmp_path)
    assert (report.newest_whole, report.exit_code) == (4, 0)
    os.truncate(tmp_path / "model_000004.pt", 5_000_000)
    report = salvage_directory(tmp_path)
    assert [step.state for step in report.steps] == ["damaged"]
    assert report.newest_whole is None
    assert report.next_step.startswith("fastckpt salvage")
    shutil.copyfile(REAL / "base_checkpoints/d4_w4/model_000004.pt", tmp_path / "model_000004.pt")
    os.unlink(tmp_path / "optim_000004_rank2.pt")
    report = salvage_directory(tmp_path)
    assert [step.state for step in report.steps] == ["incomplete"]
    assert any("rank 2" in note for note in report.steps[0].notes)
    overwrite(tmp_path / "optim_000004_rank1.pt", 0, bytes(4096))
    report = salvage_directory(tmp_path)
    assert [step.state for step in report.steps] == ["damaged"]
    assert "the optimizer file of rank 2 of 4 is missing" in report.steps[0].notes
    overwrite(tmp_path / "optim_000004_rank0.pt", 0, bytes(4096))
    assert "the optimizer file of rank 2 of 4 is missing" in salvage_directory(tmp_path).steps[0].notes


# --- large files ---------------------------------------------------------------------------


@with_real_files
def test_places_as_torch_gives_them() -> None:
    for path in sorted(REAL.rglob("*.pt")):
        found = places(path)
        storages = [(key[5:], size) for key, (_, size) in found.items() if key.startswith("data/")]
        at, size = found["data.pkl"]
        predicted = next(layouts(at + size + 16, path.stem, storages))
        assert {key: place.data for key, place in predicted.items()} == {k: found[f"data/{k}"][0] for k, _ in storages}


def test_places_beyond_4_gib() -> None:
    assert next_place(0, "m/data/0", BIG - 1).descriptor == 16
    assert next_place(0, "m/data/0", BIG).descriptor == 24
    assert next_place(BIG, "m/data/0", 4).descriptor == 24
    assert next_place(BIG + 1, "m/data/0", 0).descriptor == 0


@pytest.fixture(scope="module")
def beyond_4_gib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch writes it, with a record of more than 4 GiB and others behind it."""
    directory = tmp_path_factory.mktemp("zip64")
    big = torch.from_file(str(directory / "zeros"), shared=True, size=2**32 + 100, dtype=torch.uint8)
    path = directory / "model.pt"
    torch.save({"first": torch.arange(99), "big": big, "small": torch.arange(1000), "last": torch.ones(7)}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "header", "descriptor", "directory", "data.pkl", "data.pkl and directory"])
def test_beyond_4_gib(beyond_4_gib: Path, lost: str) -> None:
    """Local headers and the directory have zip64 fields there, descriptors 24 bytes."""
    path, size = beyond_4_gib, beyond_4_gib.stat().st_size
    found = places(path)
    small = found["data/2"]
    assert small[0] > 2**32
    end = found[".data/serialization_id"][0] + 40 + 24
    ranges = {
        "header": [(small[0] - 64, 64)],
        "descriptor": [(sum(small), 24)],
        "directory": [(end, size - end)],
        "data.pkl": [found["data.pkl"]],
        "data.pkl and directory": [found["data.pkl"], (end, size - end)],
    }.get(lost, [])
    like = beyond_4_gib.with_name("like.pt")
    if not like.exists():
        subprocess.run(["cp", "--sparse=always", path, like], check=True)
    with open(path, "r+b") as file:
        saved = [(at, os.pread(file.fileno(), count, at)) for at, count in ranges]
        for at, raw in saved:
            os.pwrite(file.fileno(), b"\xaa" * len(raw), at)
        try:
            report = fastckpt.salvage(path, like=like if lost.startswith("data.pkl") else None)
        finally:
            for at, raw in saved:
                os.pwrite(file.fileno(), raw, at)
    assert set(status(report).values()) == {"intact"}


@pytest.mark.slow
def test_writing_beyond_4_gib(beyond_4_gib: Path, tmp_path: Path) -> None:
    """What is written is a file for torch too."""
    os.truncate(beyond_4_gib, beyond_4_gib.stat().st_size - 200)
    report = fastckpt.salvage(beyond_4_gib, tmp_path / "out.pt", durable=False)
    assert report.complete
    loaded = torch.load(tmp_path / "out.pt", mmap=True)
    assert torch.equal(loaded["small"], torch.arange(1000))
    assert torch.equal(loaded["last"], torch.ones(7))
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.getinfo("out/data/1").file_size == 2**32 + 100
    assert set(status(fastckpt.salvage(tmp_path / "out.pt")).values()) == {"intact"}


# --- the command line ----------------------------------------------------------------------


@with_real_files
def test_command_line(tmp_path: Path, capsys: Any) -> None:
    from fastckpt.cli.main import main

    path = tmp_path / "model_000004.pt"
    path.write_bytes((REAL / "base_checkpoints/d4/model_000004.pt").read_bytes()[:9_000_000])
    assert main(["salvage", str(path)]) == 3
    text = capsys.readouterr().out
    assert "22 of 35 tensors" in text
    assert f"fastckpt salvage {path} -o" in text
    assert main(["salvage", str(path), "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"intact": 22, "unverified": 0, "damaged": 0, "partial": 1, "lost": 12}
    assert facts["tensors"]["lm_head.weight"]["status"] == "lost"
    assert main(["salvage", str(path), "-o", str(tmp_path / "o.fckpt"), "--include", "partial"]) == 3
    assert "wrote" in capsys.readouterr().out
    assert main(["salvage", str(tmp_path)]) == 3
    assert "newest whole step: none" in capsys.readouterr().out
    assert main(["salvage", str(path), "-o", str(tmp_path / "o.zip")]) == 64


def test_every_dtype_and_view_through_pt(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "views": [base[1:3], base.t(), base[:, ::2]],
        "fp8": torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "u16": torch.arange(8, dtype=torch.int16).view(torch.uint16),
        "conj": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(3, 0),
        "plain": (1, -(2**70), 1.5, None, True, "text", b"bytes", b"", 2 + 3j, torch.Size([1, 2]), torch.bfloat16),
        5: torch.device("cpu"),
    }
    fastckpt.save(state, tmp_path / "a.fckpt")
    report = fastckpt.salvage(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert report.complete
    loaded = torch.load(tmp_path / "b.pt", weights_only=True)
    assert loaded["plain"] == state["plain"]
    assert loaded[5] == torch.device("cpu")
    assert isinstance(loaded["parameter"], torch.nn.Parameter)
    views = loaded["views"]
    assert views[0].untyped_storage().data_ptr() == views[1].untyped_storage().data_ptr()
    assert [v.stride() for v in views] == [v.stride() for v in state["views"]]  # type: ignore[union-attr]
    for name in ("fp8", "u16", "scalar", "empty"):
        assert equal(loaded[name], state[name]), name  # type: ignore[arg-type]
    assert torch.equal(loaded["conj"], state["conj"])  # type: ignore[arg-type]
    check_written(tmp_path / "b.pt", report, {**flat(state), "parameter": state["parameter"]})  # type: ignore[dict-item]


def test_a_safetensors_that_ends_in_its_header_has_no_data(tmp_path: Path) -> None:
    """The rows that are there tell sizes, and the file has bytes: none of them are a tensor's."""
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "w": torch.arange(1000.0)}, path)
    raw = path.read_bytes()
    for size in range(raw.index(b"}") + 1, raw.index(b"}}") + 1):
        path.write_bytes(raw[:size])
        report = fastckpt.salvage(path)
        assert (report.exit_code, set(status(report).values())) == (2, {"lost"}), size
        assert fastckpt.verify(path).exit_code == 2


@pytest.mark.parametrize("text", ["5", "[]", '"x"', "null", '{"a": 5}', '{"a": {"dtype": "F32"}}', '{"a": []}'])
def test_safetensors_header_that_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(100))
    if not text.startswith("{"):
        with pytest.raises(NotACheckpointError, match="--like OTHER"):
            fastckpt.salvage(path)
        return
    report = fastckpt.salvage(path)
    assert (report.exit_code, report.tensors) == (2, {})


def test_safetensors_that_overlap(tmp_path: Path) -> None:
    """One place cannot hold two tensors: the one that does not come back is lost, and named."""
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    rows = {"a": (0, 8), "b": (4, 12), "c": (12, 16)}
    table = {name: {"dtype": "F32", "shape": [(e - b) // 4], "data_offsets": [b, e]} for name, (b, e) in rows.items()}
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    report = fastckpt.salvage(path, out, include=("unverified",))
    assert (report.exit_code, report.complete) == (3, False)
    assert {name: fate.status for name, fate in report.tensors.items()} == {
        "a": "unverified",
        "b": "lost",
        "c": "unverified",
    }
    assert set(safetensors.torch.load_file(out)) == {"a", "c"}
