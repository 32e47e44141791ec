"""`fastckpt.plotting`: what is measured is so, and what is drawn is what was measured."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.cli.plot_text import directory_lines
from fastckpt.plotting.chunk_states import ChunkState, chunk_map, chunk_states, merged
from fastckpt.plotting.markup import fits, log_ticks, nice_ticks, number, printable, spread, tick_labels
from fastckpt.plotting.naming import parse, short_labels
from fastckpt.plotting.page import directory_page, file_page
from fastckpt.plotting.survey import measure_directory, measure_file
from fastckpt.plotting.treemap import Box, squarify
from fastckpt.surveying.survey import survey
from fastckpt.tensor.profile import FIRST_OCTAVE

SVG = "{http://www.w3.org/2000/svg}"
HTML = "{http://www.w3.org/1999/xhtml}"

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src="x" onerror="alert(1)">.weight',
    "h.0.]]></svg></title><b>.w",
    "h.1.' onload='alert(1).w",
    "</style><script>document.title='hacked'</script>.w",
    "\u202egnp.exe.w",
    "\u05e9\u05dc\u05d5\u05dd.weight",
    "a\x00b\x1b[31m\r\n.w",
    "&amp;lt;script&gt;.w",
    "x" * 5000,
    "javascript:alert(1)",
    "",
    ".",
    "a." * 3000 + "b",
    "h." + "9" * 5000,
    "\u0664\u00b2.w",
    "h",
    "h.0",
]


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


def rects(root: ElementTree.Element, class_: str) -> list[ElementTree.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if class_ in rect.get("class", "").split()]


def title_of(item: ElementTree.Element) -> str:
    found = item.find(f"{SVG}title")
    assert found is not None
    assert found.text is not None
    return found.text


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(3000, 64).bfloat16()}
    for layer in range(4):
        state[f"h.{layer}.attn.c_q.weight"] = torch.randn(64, 64) * (layer + 1)
        state[f"h.{layer}.mlp.c_fc.weight"] = torch.randn(700, 700) * 0.01
    state["lm_head.weight"] = state["wte.weight"]
    return state


# --- what is measured ---


def test_numbers_are_those_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    big = torch.randn(1200, 700) * 1e-3
    big[5, 5], big[7, 7], big[9] = math.nan, -math.inf, 0.0
    state = {
        "big": big,
        "half": torch.randn(400, 300).half(),
        "fp8": torch.randn(64, 64).to(torch.float8_e4m3fn),
        "ints": torch.arange(-5, 900),
        "bools": torch.arange(10) % 3 == 0,
        "complex": torch.randn(20, 20, dtype=torch.complex64),
        "turned": torch.randn(900, 500).t(),
        "repeated": torch.full((1, 7), 3.0).expand(400_000, 7),
        "one": torch.tensor(-4.0),
        "none": torch.zeros(0, 3),
    }
    fastckpt.save(state, tmp_path / "a.fckpt")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.fckpt", "a.pt"):
        facts = measure_file(str(tmp_path / name))
        assert [tensor["name"] for tensor in facts["tensors"]] == list(state)
        for tensor in facts["tensors"]:
            value = state[tensor["name"]]
            flat = (torch.view_as_real(value) if value.is_complex() else value).double().reshape(-1)
            finite = flat[flat.isfinite()]
            numbers = tensor["numbers"]
            assert (numbers["count"], tensor["elements"]) == (len(flat), value.numel())
            assert numbers["nan"] == int(flat.isnan().sum())
            assert numbers["inf"] == int(flat.isinf().sum())
            assert numbers["zeros"] == int((finite == 0).sum())
            assert numbers["norm"] == pytest.approx(float(finite.norm()), rel=1e-9)
            assert numbers["max_abs"] == (float(finite.abs().max()) if len(finite) else 0)
            octaves, counts = finite[finite != 0].abs().log2().floor().int().unique(return_counts=True)
            found = {FIRST_OCTAVE + k: count for k, count in enumerate(numbers["octaves"]) if count}
            assert found == dict(zip(octaves.tolist(), counts.tolist(), strict=True))


def test_overlapping_elements_are_not_counted_without_end(tmp_path: Path) -> None:
    base = torch.arange(200_000.0)
    fastckpt.save({"window": base.as_strided((190_000, 8), (1, 1))}, tmp_path / "a.fckpt")
    torch.save({"endless": base.as_strided((100_000, 100_000), (1, 1))}, tmp_path / "b.pt")
    (window,) = measure_file(str(tmp_path / "a.fckpt"))["tensors"]
    assert window["numbers"]["count"] == 190_000 * 8
    (endless,) = measure_file(str(tmp_path / "b.pt"))["tensors"]
    assert endless["numbers"] is None
    assert endless["reason"] == "its elements overlap many times over"
    assert endless["nbytes"] == 199_999 * 4


def test_magnitudes_beyond_the_bins_are_counted(tmp_path: Path) -> None:
    values = torch.tensor([1e-300, 2.0**-40, 2.0**-39, 2.0**24, 1e300], dtype=torch.float64)
    fastckpt.save({"a": values}, tmp_path / "a.fckpt")
    octaves = measure_file(str(tmp_path / "a.fckpt"))["tensors"][0]["numbers"]["octaves"]
    assert (octaves[0], octaves[1], octaves[-1]) == (2, 1, 2)
    assert sum(octaves) == 5


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    sizes = []
    torch.save({"a": torch.zeros(9_000_000)}, tmp_path / "a.pt")
    from fastckpt.stored.open_file import open_file
    from fastckpt.stored.opened import Opened

    with open_file(tmp_path / "a.pt") as file:
        reading = file.read

        def read(storage: int, start: int, end: int) -> bytearray | memoryview:
            sizes.append(end - start)
            return reading(storage, start, end)

        file.read = read  # type: ignore[method-assign]
        from fastckpt.plotting.measure import measure

        (measured,) = measure(file, threads=2, progress=None)
        assert isinstance(file, Opened)
    assert measured.profile is not None
    assert measured.profile.zeros == 9_000_000
    assert sum(sizes) == 36_000_000
    assert max(sizes) <= 1 << 20


# --- the page ---


def test_every_tensor_has_its_area(tmp_path: Path) -> None:
    state = model()
    fastckpt.save(state, tmp_path / "a.fckpt")
    root = parsed(file_page(measure_file(str(tmp_path / "a.fckpt"))))
    leaves = rects(root, "leaf")
    # The tied weight is one tensor.
    assert sum(int(leaf.get("data-tensors", "")) for leaf in leaves) == len(state) - 1
    named = {title_of(leaf).partition(":")[0]: leaf for leaf in leaves}
    assert set(named) == set(state) - {"lm_head.weight"}
    areas = {name: float(leaf.get("width", "")) * float(leaf.get("height", "")) for name, leaf in named.items()}
    sizes = {name: state[name].nbytes for name in named}
    rate = sum(areas.values()) / sum(sizes.values())
    for name in named:
        if "mlp" in name:
            # Headers of modules take some room, and every rectangle has a margin.
            assert areas[name] == pytest.approx(sizes[name] * rate, rel=0.2)
    for leaf in leaves:
        x, y, width, height = (float(leaf.get(key, "")) for key in ("x", "y", "width", "height"))
        assert min(x, y, width, height) >= 0
        assert x + width <= 960
        assert y + height <= 520


def test_rectangles_of_the_treemap_do_not_overlap() -> None:
    sizes = sorted([1000, 999, 500, 3, 3, 2, 1, 40, 40, 40, 77], reverse=True)
    boxes = squarify(sizes, Box(0, 0, 300, 200))
    assert sum(box.width * box.height for box in boxes) == pytest.approx(60_000)
    for size, box in zip(sizes, boxes, strict=True):
        assert box.width * box.height == pytest.approx(60_000 * size / sum(sizes))
    for place, a in enumerate(boxes):
        for b in boxes[:place]:
            wide = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            high = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert wide < 1e-6 or high < 1e-6


def test_lines_bars_and_rows(tmp_path: Path) -> None:
    fastckpt.save(model(), tmp_path / "a.fckpt")
    facts = measure_file(str(tmp_path / "a.fckpt"))
    root = parsed(file_page(facts))
    lines = [line for line in root.iter(f"{SVG}polyline") if line.get("class", "").startswith("line")]
    assert sorted(title_of(line) for line in lines) == ["attn.c_q", "mlp.c_fc"]
    assert all(len(line.get("points", "").split()) == 4 for line in lines)
    (details,) = root.iter(f"{HTML}details")
    assert len(list(details.iter(f"{HTML}tr"))) == 1 + len(model())
    panels = [group for group in root.iter(f"{SVG}g") if group.get("class") == "panel"]
    assert len(panels) == 3
    octaves = [0] * len(facts["tensors"][0]["numbers"]["octaves"])
    for tensor in facts["tensors"]:
        if "mlp" in tensor["name"]:
            octaves = [a + b for a, b in zip(octaves, tensor["numbers"]["octaves"], strict=True)]
    bars = [title_of(bar) for bar in rects(panels[0], "bar")]
    counts = [int(title.split(": ")[1].split(" ")[0].replace(",", "")) for title in bars]
    assert sum(counts) == sum(octaves) == 4 * 700 * 700


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    state = {name: torch.ones(20, 30 + place) for place, name in enumerate(HOSTILE)}
    fastckpt.save(state, tmp_path / "a.fckpt")
    page = file_page(measure_file(str(tmp_path / "a.fckpt")))
    root = parsed(page)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "ul", "li", "span", "div", "i"}
    allowed |= {"bdi", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "code"}
    allowed |= {"svg", "g", "rect", "text", "line", "polyline", "circle", "path"}
    for item in root.iter():
        assert item.tag.rpartition("}")[2] in allowed
        assert not [key for key in item.keys() if key.startswith("on") or key in ("href", "src", "style")]  # noqa: SIM118
    assert all(c.isprintable() or c == "\n" for c in page)
    shown = "".join(root.itertext())
    assert HOSTILE[0] in shown
    assert "a\\x00b\\x1b[31m\\r\\n.w" in shown
    assert "\\u202egnp.exe.w" in shown
    assert "x" * 99 + "\u2026" in shown
    for outside in ("http://", "https://", "url(", "@import"):
        assert outside not in page.replace("http://www.w3.org/", "")
    policy = [meta.get("content") for meta in root.iter(f"{HTML}meta") if meta.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_bad_numbers_are_named_at_the_top(tmp_path: Path) -> None:
    state = {f"h.{n}.w": torch.tensor([1.0, math.nan, math.inf]) for n in range(6)}
    fastckpt.save({**state, "good": torch.ones(3)}, tmp_path / "a.fckpt")
    shown = "".join(parsed(file_page(measure_file(str(tmp_path / "a.fckpt")))).itertext())
    assert "NaN or infinities in h.0.w (2), h.1.w (2), h.2.w (2), h.3.w (2) and 2 more tensors" in shown


def test_the_same_file_gives_the_same_page(tmp_path: Path) -> None:
    fastckpt.save(model(), tmp_path / "a.fckpt")
    pages = {file_page(measure_file(str(tmp_path / "a.fckpt"), threads=threads)) for threads in (1, 2, 3)}
    assert len(pages) == 1


def test_numbers_that_overflow_are_left_out_of_the_charts(tmp_path: Path) -> None:
    huge = {f"h.{n}.w": torch.full((9,), 10.0 ** (100 * n - 300), dtype=torch.float64) for n in range(6)}
    for step in (1, 2):
        fastckpt.save({**huge, "h.0.w": huge["h.0.w"] * step}, tmp_path / f"model_{step:06d}.fckpt")
    parsed(file_page(measure_file(str(tmp_path / "model_000001.fckpt"))))
    facts = measure_directory(str(tmp_path))
    parsed(directory_page(facts))
    assert list(directory_lines(facts))


def test_the_words_of_a_histogram_are_above_its_bars(tmp_path: Path) -> None:
    state = {"w": torch.cat([torch.full((500,), 1e-9), torch.zeros(7), torch.tensor([math.nan, math.inf])])}
    fastckpt.save(state, tmp_path / "a.fckpt")
    root = parsed(file_page(measure_file(str(tmp_path / "a.fckpt"))))
    (panel,) = [group for group in root.iter(f"{SVG}g") if group.get("class") == "panel"]
    words = {text.text: float(text.get("y", "")) for text in panel.iter(f"{SVG}text")}
    top = min(float(bar.get("y", "")) for bar in rects(panel, "bar"))
    assert all(words[note] < top for note in ("w", "7 zeros", "1 NaN, 1 inf"))


@pytest.mark.parametrize("state", [{}, {"a": 5}, {"a": torch.zeros(0)}, {"a": torch.zeros(4)}, torch.tensor(math.nan)])
def test_states_with_little_to_draw(state: Any, tmp_path: Path) -> None:
    fastckpt.save(state, tmp_path / "a.fckpt")
    parsed(file_page(measure_file(str(tmp_path / "a.fckpt"))))


@pytest.mark.thorough
def test_many_tensors_are_drawn_together(tmp_path: Path) -> None:
    fastckpt.save({f"h.{n // 100}.e.{n % 100}.w": torch.ones(2) for n in range(8000)}, tmp_path / "a.fckpt")
    page = file_page(measure_file(str(tmp_path / "a.fckpt")))
    leaves = rects(parsed(page), "leaf")
    assert sum(int(leaf.get("data-tensors", "")) for leaf in leaves) == 8000
    assert len(leaves) <= 8000
    assert len(page) < 4_000_000


# --- damage ---


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


# --- directories ---


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    directory = tmp_path / "d4"
    directory.mkdir()
    state = model()
    for step in (100, 200, 300):
        fastckpt.save(state, directory / f"model_{step:06d}.fckpt")
        fastckpt.save({"state": {0: {"exp_avg": torch.ones(9)}}}, directory / f"optim_{step:06d}_rank0.fckpt")
        (directory / f"meta_{step:06d}.json").write_text(f'{{"step": {step}, "val_bpb": {1 / step}, "x": Infinity}}')
        state = {name: tensor * (1.1 if "mlp" in name else 1) for name, tensor in state.items()}
    return directory


def test_drift_over_the_steps(steps: Path) -> None:
    facts = measure_directory(str(steps))
    assert [(step["step"], step["val_bpb"]) for step in facts["steps"]] == [(100, 0.01), (200, 0.005), (300, 1 / 300)]
    assert facts["steps"][0]["changes"] is None
    changes = facts["steps"][1]["changes"]
    norms = {t["name"]: t["numbers"]["norm"] for t in facts["steps"][0]["model"]["tensors"]}
    for layer in range(4):
        mlp, attn = norms[f"h.{layer}.mlp.c_fc.weight"], norms[f"h.{layer}.attn.c_q.weight"]
        assert changes[f"h.{layer}"] == pytest.approx(0.1 * mlp / math.hypot(mlp, attn), rel=1e-4)
    assert changes["wte"] == 0
    assert [file["path"].rpartition("/")[2] for file in facts["newest"]["files"]] == [
        "model_000300.fckpt",
        "optim_000300_rank0.fckpt",
    ]
    root = parsed(directory_page(facts))
    cells = rects(root, "cell")
    assert len(cells) == 2 * len(changes)
    assert len([cell for cell in cells if "h0" in cell.get("class", "").split()]) == 2 * sum(
        value == 0 for value in changes.values()
    )


def test_damaged_and_missing_models_of_a_directory(steps: Path) -> None:
    raw = (steps / "model_000200.fckpt").read_bytes()
    (steps / "model_000200.fckpt").write_bytes(raw[:-5000])
    (steps / "model_000300.fckpt").unlink()
    facts = measure_directory(str(steps))
    assert facts["steps"][1]["model"]["ok"] is False
    assert facts["steps"][2]["error"] == "there is no model_000300"
    shown = "".join(parsed(directory_page(facts)).itertext())
    assert "there is no model_000300" in shown
    assert "Damage in model_000200.fckpt" in shown


def test_a_change_without_a_number_is_a_dash_and_told(steps: Path) -> None:
    assert "A dash:" not in directory_page(measure_directory(str(steps)))
    state = fastckpt.load(steps / "model_000300.fckpt")
    state["h.2.mlp.c_fc.weight"][3, 4] = math.nan
    fastckpt.save(state, steps / "model_000300.fckpt")
    root = parsed(directory_page(measure_directory(str(steps))))
    assert "A dash: damage, NaN or infinities left no number." in "".join(root.itertext())
    (dash,) = [text for text in root.iter(f"{SVG}text") if text.text == "\u2013"]
    row = [text for text in root.iter(f"{SVG}text") if text.get("y") == dash.get("y")]
    assert row[0].text == "h.2"


def test_shades_have_a_scale(steps: Path) -> None:
    """Its seven shades begin at equal ratios, from the smallest change to below the largest."""
    facts = measure_directory(str(steps))
    root = parsed(directory_page(facts))
    changes = [value for step in facts["steps"][1:] for value in step["changes"].values() if value]
    scale = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in {f"h{shade}" for shade in range(1, 8)}]
    texts = {(t.get("x"), t.get("y")): t.text for t in root.iter(f"{SVG}text")}
    y = number(float(scale[0].get("y", "")) + 22)
    begins = [float(texts[rect.get("x"), y] or "") for rect in scale]
    assert len(begins) == 7
    assert begins[0] == pytest.approx(min(changes), rel=0.01)
    assert begins == pytest.approx([begins[0] * (begins[1] / begins[0]) ** n for n in range(7)], rel=0.02)
    assert begins[6] < max(changes)


def test_losses_that_differ_little_are_told_apart(steps: Path) -> None:
    for step, value in ((100, 0.91234), (200, 0.91194), (300, 1.0)):
        (steps / f"meta_{step:06d}.json").write_text(f'{{"val_bpb": {value}}}')
    facts = measure_directory(str(steps))
    cells = [cell.text for cell in parsed(directory_page(facts)).iter(f"{HTML}td")]
    assert {"0.9123", "0.9119", "1.0000"} <= set(cells)
    text = "\n".join(map(str, directory_lines(facts)))
    assert all(value in text for value in ("0.9123", "0.9119", "1.0000"))


def test_moments_are_named_after_their_parameters(tmp_path: Path) -> None:
    """Ids go through the groups in order; under the first of a Muon group is the state of all of it."""
    shapes = {"transformer.wte.weight": (64, 16), "lm_head.weight": (64, 16)}
    shapes |= {f"transformer.h.{layer}.{name}.weight": (16, 16) for layer in (0, 1) for name in ("attn.q", "attn.k")}
    shapes |= {f"transformer.h.{layer}.mlp.c_fc.weight": (64, 16) for layer in (0, 1)}
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model_000003.pt")
    state: dict[int, Any] = {0: {"exp_avg": torch.ones(32, 16)}, 1: {"exp_avg": torch.ones(32, 17)}}
    state[2] = {"momentum_buffer": torch.ones(4, 16, 16), "second_momentum_buffer": torch.ones(4, 16, 1)}
    state[6] = {"momentum_buffer": torch.ones(2, 64, 16), "second_momentum_buffer": torch.ones(2, 64, 1)}
    torch.save({"state": state, "param_groups": []}, tmp_path / "optim_000003_rank0.pt")
    facts = measure_directory(str(tmp_path))
    (optimizer,) = (file for file in facts["newest"]["files"] if "optim" in file["path"])
    assert {tensor["name"]: tensor["of"] for tensor in optimizer["tensors"]} == {
        "state.0.exp_avg": "lm_head.weight",
        "state.1.exp_avg": None,
        "state.2.momentum_buffer": "attn.q, attn.k",
        "state.2.second_momentum_buffer": "attn.q, attn.k",
        "state.6.momentum_buffer": "mlp.c_fc",
        "state.6.second_momentum_buffer": "mlp.c_fc",
    }
    words = [text.text for text in parsed(directory_page(facts)).iter(f"{SVG}text")]
    assert "2: attn.q, attn.k" in words


def test_an_optimizer_is_told_with_its_groups(tmp_path: Path) -> None:
    """Learning rate, betas, weight decay and step; and whose state each tensor is, where the file says so."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2))
    groups = [{"params": [each]} for each in module.parameters()]
    groups[1] |= {"lr": 3e-5, "weight_decay": 0.25}
    optimizer = torch.optim.AdamW(groups, lr=2e-4, betas=(0.85, 0.95))
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    facts = measure_file(str(tmp_path / "a.pt"))
    table = next(t for t in parsed(file_page(facts)).iter(f"{HTML}table") if "lr" in "".join(t.itertext()))
    head, *rows = [["".join(cell.itertext()) for cell in row] for row in table.iter(f"{HTML}tr")]
    assert head[:6] == ["#", "params", "lr", "betas", "eps", "weight_decay"]
    assert [row[:6] for row in rows[:2]] == [
        ["0", "1", "0.0002", "(0.85, 0.95)", "1e-08", "0.01"],
        ["1", "1", "3e-05", "(0.85, 0.95)", "1e-08", "0.25"],
    ]
    assert "step 1" in file_page(facts)
    owners = {tensor["name"]: tensor["of"] for tensor in facts["tensors"]}
    assert owners["optimizer.state.2.exp_avg"] == "model.1.weight"
    assert owners["model.1.weight"] is None


def test_a_step_has_its_loss_and_rates(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "model_000003.pt")
    groups = [{"lr": rate, "params": []} for rate in (0.02, 3e-4, 0.02)]
    torch.save({"state": {}, "param_groups": groups}, tmp_path / "optim_000003_rank0.pt")
    (tmp_path / "meta_000003.json").write_text(json.dumps({"step": 3, "val_bpb": 0.75}))
    facts = measure_directory(str(tmp_path))
    assert facts["steps"][0]["lr"] == [0.02, 3e-4]
    page = parsed(directory_page(facts))
    assert "Step 3, the only one" in "".join(page.itertext())
    cells = ["".join(cell.itertext()) for cell in page.iter(f"{HTML}td")]
    assert cells[:5] == ["3", cells[1], "1", "0.7500", "0.0003 to 0.02"]


def test_many_steps_are_thinned_out(tmp_path: Path) -> None:
    for step in range(1, 60):
        fastckpt.save({"w": torch.ones(2) * step}, tmp_path / f"model_{step:06d}.fckpt", durable=False)
    facts = measure_directory(str(tmp_path), threads=1)
    shown = [step["step"] for step in facts["steps"]]
    assert (len(shown), shown[0], shown[-1], facts["left_out"]) == (48, 1, 59, 11)
    assert "11 steps in between are not shown." in directory_page(facts)


# --- small parts ---


def test_names() -> None:
    assert parse("transformer.h.3.attn.c_q.weight") == (
        "transformer.h.*.attn.c_q.weight",
        3,
        "transformer.h.3",
        "attn",
    )
    assert parse("value_embeds.1.weight")[1:] == (1, "value_embeds.1", "value_embeds")
    assert parse("state.7.exp_avg").family == "exp_avg"
    assert parse("lm_head.weight") == ("lm_head.weight", None, "lm_head", "lm_head")
    assert parse("bias") == ("bias", None, "bias", "bias")
    kinds = ["h.*.attn.weight", "x.*.attn.weight", "lm_head.weight"]
    assert list(short_labels(kinds).values()) == ["h.*.attn", "x.*.attn", "lm_head"]


def test_labels_and_ticks() -> None:
    assert nice_ticks(0.93, 1.07)[:2] == pytest.approx([0.95, 1.0])
    assert log_ticks(0.004, 500) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert log_ticks(0.27, 55) == pytest.approx([0.5, 1, 2, 5, 10, 20, 50])
    assert tick_labels([748.2, 748.4]) == ["748.2", "748.4"]
    assert tick_labels([1e-14, 1e-7, 1]) == ["1e-14", "1e-7", "1"]
    assert tick_labels([1000, 1500, 2000]) == ["1,000", "1,500", "2,000"]
    assert tick_labels([2e7, 4e7]) == ["2e7", "4e7"]
    places = spread([10, 11, 12, 90], 15, 0, 100)
    assert places == [10, 25, 40, 90]
    assert spread([98, 99, 100], 15, 0, 100) == [70, 85, 100]
    assert not fits("\u65e5" * 6, 60)
    assert fits("c_proj", 60)
    assert printable("a\u202eb\n") == "a\\u202eb\\n"
