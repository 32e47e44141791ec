"""``fastckpt plot``: where it writes, what --text and --json say; the page is tested with the library."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch

import fastckpt

FILE_KEYS = {
    "path",
    "format",
    "size",
    "ok",
    "verdict",
    "findings",
    "next",
    "tensors",
    "optimizers",
    "healing",
    "chunks",
    "not_whole",
    "first_octave",
    "output",
}
TENSOR_KEYS = {"name", "dtype", "shape", "nbytes", "elements", "reason", "of", "numbers", "tied_to"}
NUMBER_KEYS = {"norm", "rms", "max_abs", "nan", "inf", "zeros", "count", "octaves"}


@pytest.mark.parametrize("name", ["pt", "legacy", "fckpt", "safetensors", "damaged", "damaged_pt", "cut"])
def test_a_page_for_every_kind_of_file(name, here, samples, tmp_path):
    path = getattr(samples, name)
    ended = here("plot", path, "-o", tmp_path / "page.html")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{tmp_path / 'page.html'}: ")
    page = (tmp_path / "page.html").read_text()
    ElementTree.fromstring(page)
    assert ("Damage in" in page) == (name in ("damaged", "damaged_pt", "cut"))


def test_the_page_lies_here_unless_told_otherwise(here, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = here("plot", samples.fckpt)
    assert ended.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.fckpt.html"]


def test_the_json_document(here, samples, tmp_path):
    ended = here("plot", samples.fckpt, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.json
    assert set(document) == FILE_KEYS
    assert document["output"] is None
    assert all(set(tensor) == TENSOR_KEYS for tensor in document["tensors"])
    assert all(set(tensor["numbers"]) == NUMBER_KEYS for tensor in document["tensors"])
    assert {t["name"]: t["tied_to"] for t in document["tensors"]}["model.lm_head.weight"] == "model.wte.weight"
    assert here("plot", samples.fckpt, "--json", "-o", tmp_path / "a.html").json["output"] == str(tmp_path / "a.html")
    assert (tmp_path / "a.html").exists()


def json_cells(here, samples) -> list[dict[str, object]]:
    cells: list[dict[str, object]] = here("plot", samples.damaged, "--json").json["chunks"]["cells"]
    return cells


def test_the_terminal(here, samples, tmp_path):
    lines = here("plot", samples.fckpt, "--text").out.splitlines()
    assert lines[0].startswith(f"{samples.fckpt}: fckpt, ")
    assert lines[1] == "  intact: every byte verified"
    row = next(line.split() for line in lines if line.split()[:1] == ["attn"])
    assert row[1:3] == ["16.4", "kB"]
    assert len(row[-4]) == 4  # A sign for each layer, then the norms of the lowest and the highest.
    assert row[-2] == "to"
    assert float(row[-3]) < float(row[-1])
    torch.save({f"h.{n}.w": torch.full((9,), 1 + n * 1e-6) for n in range(4)}, tmp_path / "flat.pt")
    assert here("plot", tmp_path / "flat.pt", "--text").out.rstrip().endswith("▁▁▁▁  3")
    assert here("plot", samples.pt, "--text").out.splitlines()[1] == "  intact: every record matches its CRC-32"
    lines = here("plot", samples.damaged, "--text").out.splitlines()
    assert lines[1] == "  damaged: 1 tensor not whole"
    (drawn,) = [line.strip() for line in lines if line.strip() and set(line.strip()) <= set("·x!?")]
    nbytes = sum(int(str(cell["nbytes"])) for cell in json_cells(here, samples))
    assert drawn == "x" * -(-nbytes // 2**20)  # The only MiB there is has something bad in it.
    assert "  616 of 633 kB proven, 16.4 kB damaged or missing" in lines
    assert lines[-1] == f"  next: fastckpt salvage {samples.damaged}"
    fastckpt.save({"a": torch.tensor([1.0, float("nan"), float("inf")])}, tmp_path / "nan.fckpt")
    assert "  a: 1 NaN, 1 inf" in here("plot", tmp_path / "nan.fckpt", "--text").out.splitlines()


def test_a_directory(here, tmp_path):
    directory = tmp_path / "d2"
    directory.mkdir()
    for step in (1, 2, 3):
        torch.save({"h.0.w": torch.full((50, 50), float(step))}, directory / f"model_{step:06d}.pt")
    ended = here("plot", directory, "-o", tmp_path / "page.html")
    assert ended.code == 0
    ElementTree.fromstring((tmp_path / "page.html").read_text())
    lines = [line.split() for line in here("plot", directory, "--text").out.splitlines()]
    assert lines[1] == ["step", "model", "lr", "norm", "largest", "relative", "change", "NaN,", "inf"]
    assert lines[2][4:6] == ["50", "-"]
    assert lines[3][4:7] == ["100", "h.0", "1"]
    assert lines[4][4:7] == ["150", "h.0", "0.5"]
    document = here("plot", directory, "--json").json
    assert set(document) == {"path", "steps", "left_out", "newest", "output"}


def test_wrong_ends(here, samples, tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("nothing")
    (tmp_path / "empty").mkdir()
    for path, code in ((text, 4), (tmp_path / "none.pt", 5), (tmp_path, 64), (tmp_path / "empty", 4)):
        ended = here("plot", path, "-o", tmp_path / "page.html")
        assert ended.code == code
        assert ended.err.startswith("fastckpt: error: ")
    for output in (samples.pt, tmp_path / "page.png"):
        assert here("plot", samples.pt, "-o", output).code == 64
    assert here("plot", samples.pt, "-o", tmp_path / "no" / "page.html").code == 5
    assert here("plot").code == 64
    assert not (tmp_path / "page.html").exists()
