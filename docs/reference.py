"""Makes docs/python.md from the docstrings of the public names, so that nothing about them is written twice.

`docs/pages.py` writes it; a test compares the page with the docstrings.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Final

import fastckpt
import fastckpt.dcp
import fastckpt.integrations
import fastckpt.nanochat

PAGE: Final = Path(__file__).parent / "python.md"

INTRODUCTION: Final = """# Python

Made from the docstrings by `docs/pages.py`; each example runs as a test. Errors are in `fastckpt.errors`: each has
the file, byte offset, tensor, chunk, expected and actual, and the next step. [state.md](state.md) says what of a state
is kept.

A tensor's *flat name* is the keys on the way to it, joined with `.`: `optimizer.state.0.exp_avg`. Codecs are `none`
(can be mapped), `planes` (smaller, made for numbers: [recipes.md](recipes.md#smaller-files)), `zstd` and `zstd:1` to
`zstd:22`. `device`, `ring` and `engine` are explained in [gpu.md](gpu.md).
"""

# What people look for together stands together; names that are in no group come last.
GROUPS: Final = {
    "Save": ("save", "save_async", "Pending", "EmergencySave", "register", "Placeholder", "rng_state", "set_rng_state"),
    "Load": ("load", "load_into", "stream", "open", "Checkpoint", "Part", "TensorInfo", "Ring"),
    "Check": ("verify", "verify_tensors", "seal", "Sealed", "repair", "RepairReport", "Report", "Finding"),
    "Convert and salvage": ("convert", "salvage", "SalvageReport"),
    "Directories": ("CheckpointDirectory", "find_last_whole", "Retention", "backup"),
}

_SECTION: Final = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example)( [^\n:]*)?:\n")


def _signature(module: ModuleType, name: str) -> str:
    """How it is called, one argument a line if that is long."""
    found = getattr(module, name)
    called = f"{module.__name__}.{name}"
    parameters = list(inspect.signature(found).parameters.values())
    parts: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is parameter.empty else f"={_written(parameter.default)}"
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        parts.append(f"{star}{parameter.name}{default}")
    line = f"{called}({', '.join(parts)})"
    if len(line) <= 110:
        return line
    return textwrap.fill(line, 110, subsequent_indent=" " * (len(called) + 1), break_long_words=False)


def _written(default: object) -> str:
    """A default as people would write it: members of an enum by their names."""
    if isinstance(default, tuple):
        return f"({', '.join(_written(member) for member in default)})"
    return default.name if isinstance(default, Enum) else repr(default)


def _items(body: str) -> str:
    """The entries of a section as a list; what is no ``name: text`` stays a paragraph."""
    joined = re.sub(r"\n {4,}", " ", body)
    lines = []
    for line in joined.splitlines():
        name, colon, text = line.partition(": ")
        lines.append(f"- `{name}`: {text}" if colon and re.fullmatch(r"[\w, .]+", name) else line)
    return "\n".join(lines)


def _sections(text: str) -> str:
    """A docstring in Markdown."""
    out: list[str] = []
    for paragraph in text.split("\n\n"):
        head = _SECTION.match(paragraph)
        if head is None:
            out.append(paragraph)
            continue
        body = textwrap.dedent(paragraph[head.end() :]).strip()
        title = head[1] + (head[2] or "")
        if head[1] == "Example":
            out.append(f"```pycon\n{body}\n```")
        else:
            out.append(f"*{title}*\n\n{_items(body)}")
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", "\n\n".join(out))


def _entry(module: ModuleType, name: str) -> str:
    documentation = inspect.getdoc(getattr(module, name))
    assert documentation is not None
    code = f"```python\n{_signature(module, name)}\n```\n\n" if not _is_made_for_you(name) else ""
    return f"### {name}\n\n{code}{_sections(documentation)}\n"


def _is_made_for_you(name: str) -> bool:
    """Whether people get such objects and never make one."""
    return name in ("Checkpoint", "Finding", "Pending", "Report", "SalvageReport", "Sealed", "TensorInfo")


def _integrations() -> list[str]:
    """The libraries that fastckpt is given to, from the sources: rendering the page needs none of them."""
    parts = []
    for file in sorted((Path(fastckpt.__file__).parent / "integrations").glob("[a-z]*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parts.append(f"### fastckpt.integrations.{file.stem}\n\n{_sections(str(ast.get_docstring(tree)))}\n")
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                made = next((each for each in node.body if getattr(each, "name", "") == "__init__"), node)
                taken = ast.unparse(made.args).removeprefix("self, ") if isinstance(made, ast.FunctionDef) else "..."
                code = f"```python\n{node.name}({taken})\n```"
                parts.append(f"{code}\n\n{_sections(str(ast.get_docstring(node)))}\n")
    return parts


def render() -> str:
    """The page in Markdown."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(name for name in fastckpt.__all__ if name not in grouped)}
    parts = [INTRODUCTION]
    for title, names in groups.items():
        if names:
            parts += [f"## {title}\n", *(_entry(fastckpt, name) for name in names)]
    parts.append(f"## torch.distributed.checkpoint\n\n{_sections(str(inspect.getdoc(fastckpt.dcp)))}\n")
    parts += [_entry(fastckpt.dcp, name) for name in fastckpt.dcp.__all__]
    parts.append(f"## Training with a library\n\n{_sections(str(inspect.getdoc(fastckpt.integrations)))}\n")
    parts += _integrations()
    parts.append("## nanochat\n\n`fastckpt.nanochat` has nanochat's own functions, see [nanochat.md](nanochat.md).\n")
    parts += [_entry(fastckpt.nanochat, name) for name in fastckpt.nanochat.__all__]
    return "\n".join(parts)
