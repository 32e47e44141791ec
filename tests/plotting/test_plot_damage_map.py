"""The map of the damage: a cell for every chunk, in proportion to its bytes, of files damaged anywhere."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import torch
from drawn_pages import SVG, model, parsed, rects, title_of

import fastckpt
from fastckpt.plotting.chunk_states import ChunkState, chunk_map, chunk_states, merged
from fastckpt.plotting.page import file_page
from fastckpt.plotting.survey import measure_file
from fastckpt.surveying.survey import survey


def spoil(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A record of three chunks: the first with a flipped bit, the second zeroed; others intact."""
    torch.manual_seed(2)
    path = tmp_path / "a.fckpt"
    fastckpt.save({"a": torch.randn(700_000), "b": torch.randn(700_000), "small": torch.ones(5)}, path)
    raw = path.read_bytes()
    offset = raw.index(fastckpt.load(path)["a"].numpy().tobytes()[:64])
    spoil(path, offset + 100, bytes((raw[offset + 100] ^ 1,)))
    spoil(path, offset + (1 << 20), bytes(1 << 20))
    return path


def test_the_damage_map_has_a_cell_for_every_chunk(spoilt: Path) -> None:
    facts = measure_file(str(spoilt))
    states = [cell.state for cell in facts["chunks"]["cells"]]
    assert Counter(states) == {"damaged": 1, "lost": 1, "intact": 5}
    assert facts["not_whole"] == ["a"]
    cells = [cell for cell in facts["chunks"]["cells"] if cell.state != "intact"]
    assert {name for cell in cells for name in cell.tensors} == {"a"}
    root = parsed(file_page(facts))
    drawn = rects(root, "chunk")
    assert Counter(cell.get("class", "").split()[1] for cell in drawn) == Counter(states)
    assert "4.54 of 5.60 MB proven, 1.06 MB damaged or missing" in "".join(root.itertext())
    assert [title_of(leaf).partition(":")[0] for leaf in rects(root, "broken")] == ["a"]
    assert len([path for path in root.iter(f"{SVG}path") if path.get("class") == "cross"]) == 1
    tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert tensors["a"]["numbers"] is None
    assert "is not what was written" in tensors["a"]["reason"]
    assert tensors["b"]["numbers"]["nan"] == 0
    assert "damaged: 1 tensor not whole" in "".join(root.itertext())


def test_an_intact_file_has_no_map(tmp_path: Path) -> None:
    fastckpt.save(model(), tmp_path / "a.fckpt")
    facts = measure_file(str(tmp_path / "a.fckpt"))
    assert facts["chunks"] is None
    assert not rects(parsed(file_page(facts)), "chunk")


@pytest.mark.parametrize("suffix", ["fckpt", "pt", "safetensors"])
def test_a_cut_file_shows_what_is_left(suffix: str, tmp_path: Path) -> None:
    state = {f"h.{n}.w": torch.full((300_000,), float(n + 1)) for n in range(4)}
    whole = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save(state, whole)
    else:
        fastckpt.save(state, tmp_path / "a.fckpt")
        if suffix == "safetensors":
            fastckpt.convert(tmp_path / "a.fckpt", whole)
    cut = tmp_path / f"cut.{suffix}"
    shutil.copyfile(whole, cut)
    with open(cut, "r+b") as file:
        file.truncate(whole.stat().st_size * 6 // 10)
    facts = measure_file(str(cut))
    measured = {tensor["name"]: tensor["numbers"] for tensor in facts["tensors"]}
    assert measured["h.2.w"] is None
    assert measured["h.3.w"] is None
    for layer in (0, 1):
        assert measured[f"h.{layer}.w"]["norm"] == pytest.approx((layer + 1) * 300_000**0.5)
    states = Counter(cell.state for cell in facts["chunks"]["cells"])
    assert states["unproven" if suffix == "safetensors" else "intact"] == 4
    assert states["lost"] == 3
    parsed(file_page(facts))


def test_a_file_cut_anywhere_is_drawn(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3000), "b": torch.ones(5)}, tmp_path / "a.pt")
    fastckpt.save({"a": torch.ones(3000), "b": torch.ones(5)}, tmp_path / "a.fckpt")
    for name in ("a.pt", "a.fckpt"):
        raw = (tmp_path / name).read_bytes()
        for size in range(200, len(raw), len(raw) // 11):
            path = tmp_path / f"cut_{size}_{name}"
            path.write_bytes(raw[:size])
            try:
                facts = measure_file(str(path))
            except fastckpt.errors.NotACheckpointError:
                continue
            parsed(file_page(facts))


def test_a_cut_zip_names_the_tensors_that_are_not_whole(tmp_path: Path) -> None:
    torch.save({f"h.{n}.w": torch.rand(1000) for n in range(60)}, tmp_path / "a.pt")
    raw = bytearray((tmp_path / "a.pt").read_bytes())
    raw[raw.index(torch.load(tmp_path / "a.pt")["h.1.w"].numpy().tobytes()[:64])] ^= 1
    (tmp_path / "a.pt").write_bytes(raw[: len(raw) // 3])
    facts = measure_file(str(tmp_path / "a.pt"))
    shown = "".join(parsed(file_page(facts)).itertext())
    named = {name for finding in facts["findings"][:30] for name in finding["tensors"]}
    others = [name for name in facts["not_whole"] if name not in named]
    assert "h.1.w" in named
    assert len(others) > 1
    assert f"Not whole: {', '.join(others)}" in shown


def test_states_of_chunks_in_a_pack(tmp_path: Path) -> None:
    path = tmp_path / "a.fckpt"
    fastckpt.save({f"t{n}": torch.full((3000,), float(n)) for n in range(20)}, path)
    raw = path.read_bytes()
    spoil(path, raw.index(torch.full((3000,), 7.0).numpy().tobytes()) + 500, b"\x11")
    cells = chunk_states(survey(str(path), threads=1))
    assert [cell.state for cell in cells] == ["damaged"]
    assert len(cells[0].tensors) == 20


def test_too_many_chunks_are_told_together() -> None:
    states = [ChunkState("lost" if n == 777 else "intact", 2**20, f"record 0, chunk {n}", ("a",)) for n in range(1000)]
    cells, size = merged(states, 100)
    assert (len(cells), size) == (100, 10)
    assert [n for n, cell in enumerate(cells) if cell.state == "lost"] == [77]
    assert cells[77].place == "record 0, chunk 770 to record 0, chunk 779"
    assert merged(states, 1000) == (states, 1)
    drawn = ElementTree.fromstring(chunk_map(states, "Damage map"))
    assert len(rects(drawn, "chunk")) == 1000
    assert cells[77].nbytes == 10 * 2**20


def test_the_map_is_in_proportion_to_bytes() -> None:
    """A million bytes that are lost and a hundred storages of four bytes that are not: nearly all of it is lost."""
    sizes = [("lost", 10**6)] + [("intact", 4)] * 99 + [("damaged", 4)]
    cells = [ChunkState(state, size, f"storage {n}", ()) for n, (state, size) in enumerate(sizes)]
    drawn = ElementTree.fromstring(chunk_map(cells, "Damage map"))
    widths: dict[str, list[float]] = {}
    for rect in rects(drawn, "chunk"):
        widths.setdefault(rect.get("class", "").split()[1], []).append(float(rect.get("width", "")))
    assert sum(widths["lost"]) > 880
    assert sum(widths["intact"]) < 1
    assert widths["damaged"] == [1.5]  # Seen all the same.
    cells[0] = ChunkState("lost", 7 * 10**8, "storage 0", ())
    rows = rects(ElementTree.fromstring(chunk_map(cells, "Damage map")), "lost")
    areas = [float(rect.get("width", "")) * float(rect.get("height", "")) for rect in rows]
    assert len(rows) > 10
    assert max(areas) == pytest.approx(areas[0])
