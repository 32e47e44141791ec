"""No verdict without a table: the words are in one place, and what is shown as good news needs one of them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from claim_tables import Claim

import fastckpt
from fastckpt.verdicts import Verdict

PACKAGE = Path(fastckpt.__file__).parent
NO_TABLE = {Path(__file__).stem, "test_of_nothing"}
"""Modules that are about all verdicts."""
MODULES = sorted({path.stem for path in Path(__file__).parent.glob("test_*.py")} - NO_TABLE)
CLAIMS: dict[str, Claim] = {name: importlib.import_module(name).CLAIM for name in MODULES}

NO_PROMISE = {
    "cli/demo.py": "it says of every check what it compared, itself",
    "cli/render.py": "the colours",
}
"""Files that show something as good news that is no promise about a checkpoint."""


def test_every_verdict_has_one_table() -> None:
    assert sorted(claim.verdict for claim in CLAIMS.values()) == sorted(Verdict)


@pytest.mark.parametrize("name", MODULES)
def test_each_row_is_broken_in_several_ways_and_formats(name: str) -> None:
    claim = CLAIMS[name]
    assert claim.true
    assert claim.asks
    assert claim.rows
    for row in claim.rows:
        assert len(row.broken) >= 3, row.must
        assert len({what.partition(":")[0] for what in row.broken}) >= 2, row.must


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Text that is not a docstring."""
    docs = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
            yield node


@cache
def texts() -> dict[str, str]:
    """Of all files of the package, by the path in it."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_good_news_names_a_verdict() -> None:
    """A function that shows something in the colour of good news says which promise that is."""
    unnamed = []
    for name in [name for name, text in texts().items() if '"good"' in text and name not in NO_PROMISE]:
        for function in ast.walk(ast.parse(texts()[name])):
            if not isinstance(function, ast.FunctionDef):
                continue
            good = [node for node in literals(function) if node.value == "good"]
            if not good:
                continue
            compared = {node for test in ast.walk(function) if isinstance(test, ast.Compare) for node in ast.walk(test)}
            named = any(isinstance(node, ast.Name) and node.id == "Verdict" for node in ast.walk(function))
            if not compared.issuperset(good) and not named:
                unnamed.append(f"{name}: {function.name}")
    assert not unnamed, unnamed


def test_the_words_stand_in_one_place() -> None:
    """Where a text begins with a verdict, or is one of several words, it is spelled in verdicts.py alone."""
    begin = tuple(f"{verdict.value}{mark} " for verdict in Verdict for mark in ":;")
    several = {verdict.value for verdict in Verdict if " " in verdict.value}
    written = []
    for name, text in texts().items():
        for node in literals(ast.parse(text)) if name != "verdicts.py" else ():
            if node.value.startswith(begin) or node.value in several:
                written.append(f"{name}:{node.lineno}: {node.value!r}")
    assert not written, "\n".join(written)
