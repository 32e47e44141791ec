"""Pages of `fastckpt plot` in a real browser: what was written is shown, nothing runs, no words collide or are cut."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
from fastckpt.plotting.difference import Compared, difference_page
from fastckpt.plotting.page import directory_page, file_page
from fastckpt.plotting.survey import measure_directory, measure_file
from fastckpt.stored.comparison import compare

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "</style><script>document.title='hacked'</script>.w",
    '"><img src="x" onerror="document.title=1">.weight',
    "\u05e9\u05dc\u05d5\u05dd.weight",
    "\u65e5\u672c\u8a9e" * 20,
    "x" * 5000,
]

MEASURE = """<script>window.onload = () => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const words = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    const shown = words.filter(([, box]) => box.width > 0);
    shown.forEach(([word, box], place) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 2 || box.bottom > frame.bottom + 1) found.push(["cut", word]);
      for (const [other, its] of shown.slice(place + 1)) {
        const wide = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        const high = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (wide > 1 && high > 4) found.push(["collide", word, other]);
      }
    });
  }
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify([document.querySelectorAll("svg text").length, found]);
  document.body.append(report);
}</script>"""


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., str]:
    """Run a headless browser on a page, and return what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((found for name in names if (found := shutil.which(name)) is not None), None)
    if program is None:
        pytest.skip("no headless browser is installed")
    quiet = ("quic", "background-networking", "component-update", "sync")
    common = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1100,2000"]
    common += [f"--disable-{name}" for name in quiet]

    def run(page: str, *options: str) -> str:
        (tmp_path / "page.html").write_text(page)
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [*common, profile, *options, (tmp_path / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout

    return run


def model() -> dict[str, Any]:
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(3000, 64).bfloat16()}
    for layer in range(12):
        state[f"h.{layer}.attn.c_q.weight"] = torch.randn(64, 64) * (layer + 1)
        state[f"h.{layer}.attn.c_k.weight"] = torch.randn(64, 64) * (layer + 1.01)
        state[f"h.{layer}.mlp.c_fc.weight"] = torch.randn(300, 300) * 0.01
    return state


def page_of_file(tmp_path: Path) -> str:
    state = model() | {name: torch.ones(60, 90 + place) for place, name in enumerate(HOSTILE)}
    state["h.3.mlp.c_fc.weight"][0, 0] = math.nan
    state["h.4.mlp.c_fc.weight"][:200] = 0
    fastckpt.save(state, tmp_path / "a.fckpt")
    return file_page(measure_file(str(tmp_path / "a.fckpt")))


def page_of_damage(tmp_path: Path) -> str:
    fastckpt.save({f"h.{n}.w": torch.randn(300, 1000) for n in range(20)}, tmp_path / "a.fckpt")
    raw = bytearray((tmp_path / "a.fckpt").read_bytes())
    for place in range(2_000_000, len(raw) // 2, 3_000_000):
        raw[place] ^= 1
    (tmp_path / "a.fckpt").write_bytes(raw[: len(raw) * 3 // 4])
    return file_page(measure_file(str(tmp_path / "a.fckpt")))


def page_of_healing(tmp_path: Path) -> str:
    fastckpt.save({f"h.{n}.w": torch.randn(300, 1000) for n in range(20)}, tmp_path / "a.fckpt", parity="3%")
    raw = bytearray((tmp_path / "a.fckpt").read_bytes())
    for place in [1_000_000, *range(7_000_000, 9_000_000, 16_384)]:
        raw[place] ^= 1
    (tmp_path / "a.fckpt").write_bytes(raw)
    return file_page(measure_file(str(tmp_path / "a.fckpt")))


def page_of_directory(tmp_path: Path) -> str:
    directory = tmp_path / "d12"
    directory.mkdir()
    state = model()
    for step in (500, 1000, 1500, 20_000):
        torch.save(state, directory / f"model_{step:06d}.pt")
        state = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}
        state["h.1.mlp.c_fc.weight"][0, 0] = math.nan
    torch.save({"state": {n: {"exp_avg": torch.ones(900)} for n in range(9)}}, directory / "optim_020000_rank0.pt")
    return directory_page(measure_directory(str(directory)))


def page_of_difference(tmp_path: Path) -> str:
    state = model() | {name: torch.ones(60, 90 + place) for place, name in enumerate(HOSTILE)}
    fastckpt.save(state, tmp_path / "a.fckpt")
    moved = {name: tensor + 0.01 * (place + 1) for place, (name, tensor) in enumerate(state.items())}
    fastckpt.save(moved, tmp_path / "b.fckpt")
    found = compare(tmp_path / "a.fckpt", tmp_path / "b.fckpt")
    return difference_page("a.fckpt", "b.fckpt", [Compared("", found, "different", "warn")])


PAGES = [page_of_file, page_of_damage, page_of_healing, page_of_directory, page_of_difference]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", PAGES)
def test_a_browser_shows_what_was_written(
    make: Callable[[Path], str], browser: Callable[..., str], tmp_path: Path
) -> None:
    """Every element is there, none was added, and nothing in the page ran."""
    page = make(tmp_path)
    shown = browser(page, "--dump-dom")
    assert "<script" not in shown.lower()
    assert "hacked" not in shown.partition("</title>")[0]
    for tag in ("rect", "text", "tr", "polyline", "circle", "title"):
        assert shown.count(f"<{tag}") == page.count(f"<{tag}"), tag
    picture = tmp_path / "page.png"
    browser(page, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def collisions(page: str, browser: Callable[..., str]) -> tuple[int, list[list[str]]]:
    """How many words the figures have, and which of them are cut or lie over others."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    shown = browser(page.replace("</body>", MEASURE + "</body>"), "--dump-dom")
    report = re.search(r'<pre id="report">(.*?)</pre>', shown, re.DOTALL)
    assert report is not None
    count, found = json.loads(html.unescape(report[1]))
    return count, found


@pytest.mark.thorough
@pytest.mark.parametrize("make", PAGES)
def test_words_in_figures_neither_collide_nor_are_cut(
    make: Callable[[Path], str], browser: Callable[..., str], tmp_path: Path
) -> None:
    page = make(tmp_path)
    count, found = collisions(page, browser)
    assert count == page.count("<text")
    assert found == []


def test_collisions_are_seen(browser: Callable[..., str]) -> None:
    words = '<text x="10" y="40">one</text><text x="14" y="42">two</text><text x="195" y="40">three</text>'
    page = f'<html><body><svg width="200" height="90">{words}</svg></body></html>'
    assert collisions(page, browser) == (3, [["collide", "one", "two"], ["cut", "three"]])
