"""`fastckpt.plotting`: what is measured is so, and what is drawn is what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_pages import HTML, SVG, model, parsed, rects, title_of

import fastckpt
from fastckpt.cli.plot_text import directory_lines
from fastckpt.plotting.markup import fits, log_ticks, nice_ticks, printable, spread, tick_labels
from fastckpt.plotting.naming import parse, short_labels
from fastckpt.plotting.page import directory_page, file_page
from fastckpt.plotting.survey import measure_directory, measure_file
from fastckpt.plotting.treemap import Box, squarify
from fastckpt.tensor.profile import FIRST_OCTAVE

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
