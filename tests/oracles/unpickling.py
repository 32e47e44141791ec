"""Who unpickles what: an audit hook that sees each class that a pickle asks for, and knows whose bytes these are."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_MESSAGES = (
    ("distributed_c10d.py", "_tensor_to_object"),  # what another rank sent
    ("connection.py", "recv"),  # what another process of this program sent
    ("queues.py", "get"),
    ("spawn.py", "_main"),
)
"""Functions that unpickle messages, none of which has ever been in a file."""

_found: list[str] = []
_directories: list[Path] = []
_watching = False
_installed = False


@contextmanager
def watched(*directories: Path) -> Iterator[list[str]]:
    """Classes that pickles ask for meanwhile in this process, but for messages and what our reader has pickled itself.

    Args:
        directories: Where the files are whose bytes must not be unpickled.
    """
    global _watching, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _found.clear()
    _directories[:] = directories
    _watching = True
    try:
        yield _found
    finally:
        _watching = False


def watch_into(path: str) -> None:
    """From now on, write every such class into a file."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class" and not _is_allowed(sys._getframe()):
            with open(path, "a") as file:
                file.write(f"{arguments}\n")

    sys.addaudithook(hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "pickle.find_class" and not _is_allowed(sys._getframe()):
        _found.append(".".join(map(str, arguments)))


def _is_allowed(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if (os.path.basename(code.co_filename), code.co_name) in _MESSAGES:
            return True
        if code.co_name == "load_bytes" and code.co_filename.endswith("default_planner.py"):
            return _is_own(frame)
        frame = frame.f_back
    return False


def _is_own(frame: FrameType) -> bool:
    """Whether `FastckptReader` gave these bytes to the planner, and they are in no file of the checkpoint."""
    caller, value = frame.f_back, frame.f_locals["value"]
    if caller is None or not caller.f_code.co_filename.endswith(os.path.join("fastckpt", "dcp", "reader.py")):
        return False
    assert type(value) is io.BytesIO
    content = value.getvalue()
    files = [path for directory in _directories for path in directory.iterdir() if path.is_file()]
    return bool(files) and not any(content in path.read_bytes() for path in files)
