"""Imports go down only: `docs/architecture.md` has the layers, and this reads every import there is."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import fastckpt
import fastckpt.nanochat

PACKAGE = Path(fastckpt.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"


def table() -> list[tuple[set[str], bool]]:
    """The rows of the page's table, lowest first: the rooms of a layer, and whether they import torch at their top."""
    rows = re.findall(r"^\| *(\d+) \| ([^|]+) \| [^|]* \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(len(rows), 0, -1))
    found = []
    for _, rooms, torch in reversed(rows):
        named = {name.strip("`/") for name in re.findall(r"`[^`]+`", rooms)}
        found.append((named, torch.strip() == "yes"))
    return found


LAYERS = table()
LEVEL = {room: level for level, (rooms, _) in enumerate(LAYERS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(file) for file in FILES}


def room_of(module: str) -> str:
    """The package below fastckpt that a module lies in, or the module itself if it lies loose."""
    return "__init__" if module == "fastckpt" else module.split(".")[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module of this package that a file imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner if name != "fastckpt._core"]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "fastckpt")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_every_file_lies_in_a_layer() -> None:
    assert {room_of(module_of(file)) for file in FILES} == set(LEVEL)


def test_imports_between_rooms_go_down() -> None:
    up = []
    for file in FILES:
        module = module_of(file)
        here = room_of(module)
        for name in imports(parse(file)):
            there = room_of(name)
            if there != here and LEVEL[there] >= LEVEL[here]:
                up.append(f"{module} imports {name}")
    assert not up, "\n".join(up)


def test_no_circle_between_files() -> None:
    graph = {module_of(file): set(imports(parse(file))) - {module_of(file)} for file in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_torch_only_where_the_table_says() -> None:
    allowed = {room for rooms, torch in LAYERS if torch for room in rooms}
    early = []
    for file in FILES:
        if room_of(module_of(file)) in allowed:
            continue
        for node in parse(file).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(str(node.module))
            early += [module_of(file) for name in names if name.split(".")[0] in ("torch", "triton")]
    assert not early


def test_libraries_of_others_are_imported_by_their_integrations_alone() -> None:
    """Whoever has none of them must be able to import everything else; a short module is one that can be read first."""
    others = {"accelerate", "fsspec", "lightning", "lightning_fabric", "obstore", "pytorch_lightning", "transformers"}
    for file in FILES:
        found = set()
        for node in ast.walk(parse(file)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(str(node.module))
            found |= {name.split(".")[0] for name in names} & others
        if file.parent.name == "remote" and file.stem.endswith("_store"):
            assert found == {file.stem.removesuffix("_store")}
        elif room_of(module_of(file)) != "integrations":
            assert not found, file
        else:
            assert found <= {file.stem, "fsspec"}, file
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 80, file


def test_packages_hold_no_code() -> None:
    """A package's ``__init__`` has a docstring, and at most the lazy names of the three faces."""
    for file in FILES:
        if file.name == "__init__.py" and file.parent.name not in ("fastckpt", "nanochat", "dcp"):
            assert [type(node) for node in parse(file).body] == [ast.Expr], file


def test_a_public_function_is_in_a_file_of_its_name() -> None:
    homes: dict[str, str] = {**fastckpt._HOMES, **fastckpt.nanochat._HOMES}
    for name, home in homes.items():
        if name[0].islower() and "nanochat" not in home:
            assert home.rsplit(".", 1)[1] == name, home
