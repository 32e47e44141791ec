"""The page of two checkpoints says what `compare` found, whatever their names."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastckpt
from fastckpt.cli.main import main
from fastckpt.plotting.difference import Compared, difference_page
from fastckpt.stored.comparison import compare

HOSTILE = "</style><script>document.title='hacked'</script>.w"


def states() -> tuple[dict[str, Any], dict[str, Any]]:
    torch.manual_seed(0)
    a: dict[str, Any] = {f"h.{n}.w": torch.randn(30, 20) for n in range(4)}
    a |= {"same": torch.ones(9), "gone": torch.ones(3), HOSTILE: torch.ones(5), "kind": torch.ones(4), "lr": 0.1}
    b = {name: value + 0.1 * n if "h." in name else value for n, (name, value) in enumerate(a.items(), 1)}
    del b["gone"]
    b |= {"new": torch.ones(2, 2), HOSTILE: torch.full((5,), math.nan), "kind": torch.ones(4).double(), "lr": 0.01}
    return a, b


def parsed(page: str) -> ET.Element:
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def texts(root: ET.Element, tag: str) -> list[str]:
    return ["".join(node.itertext()) for node in root.iter(f"{{http://www.w3.org/1999/xhtml}}{tag}")]


def rows(root: ET.Element, *, of_tensors: bool) -> dict[str, list[str]]:
    """The rows of the table of tensors, or of the others, by name."""
    found = [["".join(cell.itertext()) for cell in row] for row in root.iter("{http://www.w3.org/1999/xhtml}tr")]
    return {row[0 if of_tensors else 1]: row for row in found if (len(row) > 4) is of_tensors}


def test_the_page_says_what_differs(tmp_path: Path) -> None:
    a, b = states()
    fastckpt.save(a, tmp_path / "a.fckpt")
    torch.save(b, tmp_path / "b.pt")
    found = compare(tmp_path / "a.fckpt", tmp_path / "b.pt")
    root = parsed(difference_page("a.fckpt", "b.pt", [Compared("", found, "different: 2 < 3", "warn")]))
    assert not texts(root, "script")
    table, others = rows(root, of_tensors=True), rows(root, of_tensors=False)
    for name, tensor in found.tensors.items():
        if tensor.numbers is not None and math.isfinite(tensor.numbers.relative):
            assert float(table[name][3]) == pytest.approx(tensor.numbers.relative, rel=0.01)
            assert table[name][7].startswith(f"{tensor.numbers.differing:,} ")
    assert table[HOSTILE][3] == "nan"
    assert "same" not in table
    assert others["gone"] == ["tensor", "gone", "float32 3", ""]
    assert others["new"] == ["tensor", "new", "", "float32 2 x 2"]
    assert others["kind"][:2] == ["dtype", "kind"]
    assert others["lr"] == ["value", "lr", "0.1", "0.01"]
    assert texts(root, "li") == ["1identical", "6differ", "0damaged", "1only in A", "1only in B"]
    assert "Change by layer" in texts(root, "h2")


def test_two_that_are_the_same_have_no_tables(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    found = compare(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    root = parsed(difference_page("a", "a", [Compared("", found, "identical", "good")]))
    assert not texts(root, "h2")
    assert not rows(root, of_tensors=True)


def test_the_command_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = states()
    for place, state in (("one", a), ("two", b)):
        Path(place).mkdir()
        torch.save(state, f"{place}/model_000010.pt")
        torch.save({"w": torch.ones(3)}, f"{place}/optim_000010_rank0.pt")
    assert main(["diff", "one/model_000010.pt", "two/model_000010.pt", "--html", "d.html"]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1].rpartition(" (")[0]
    assert verdict in "".join(parsed(Path("d.html").read_text()).itertext())
    assert main(["diff", "one", "two", "--html", "both.html"]) == 1
    assert len(texts(parsed(Path("both.html").read_text()), "h1")) == 3
    for wrong in ("one/model_000010.pt", "page.txt"):
        assert main(["diff", "one/model_000010.pt", "two/model_000010.pt", "--html", wrong]) == 64
