"""`docs/architecture.md` names every module, once and in its room, and only files that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fastckpt

PACKAGE = Path(fastckpt.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")


def part(heading: str) -> str:
    begin = TEXT.index(f"\n## {heading}\n")
    end = TEXT.find("\n## ", begin + 1)
    return TEXT[begin : end if end > 0 else len(TEXT)]


def test_every_module_is_named_once() -> None:
    named = []
    for room, line in re.findall(r"^- `([\w/]+)/` (.*(?:\n  .*)*)", part("Rooms"), re.MULTILINE):
        below = "" if room == "fastckpt" else f"{room}/"
        named += [f"{below}{name}.py" for name in re.findall(r"`(\w+)`", line)]
    files = [file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if file.name != "__init__.py"]
    assert sorted(named) == sorted(files)


def imported_by(file: str) -> set[str]:
    """The files that a file may import: modules, and names that may be modules."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("fastckpt."):
            module = node.module.removeprefix("fastckpt.").replace(".", "/")
            found |= {f"{module}.py", *(f"{module}/{name.name}.py" for name in node.names)}
    return found


def test_files_of_the_journeys_exist_and_follow_the_imports() -> None:
    journeys = re.split(r"^\*\*", part("Six journeys"), flags=re.MULTILINE)[1:]
    assert len(journeys) == 6
    for journey in journeys:
        files = re.findall(r"`([\w/]+\.py)`", journey)
        assert len(files) >= 6
        assert [file for file in files if not (PACKAGE / file).is_file()] == []
        reached = [set().union(*map(imported_by, files[:number])) for number in range(len(files))]
        assert [file for file, before in list(zip(files, reached, strict=True))[1:] if file not in before] == []


def test_page_is_short() -> None:
    assert TEXT.count("\n") <= 150


def test_a_public_function_is_in_the_file_of_its_name() -> None:
    functions = [name for name in fastckpt.__all__ if name.islower()]
    assert len(functions) > 10
    assert [name for name in functions if not fastckpt._HOMES[name].endswith(f".{name}")] == []
