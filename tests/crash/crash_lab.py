"""A laboratory for crashes: any save function, killed or failed at each of its file system calls.

The calls are counted by ``shim.c`` (LD_PRELOAD), in processes started by ``host.py``.
"""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TEMP_SUFFIX = ".fckpt-tmp"


class Action(enum.IntEnum):
    """What the shim does at the Nth call; the numbers are those of ``shim.c``."""

    NOTHING = 0
    LOG = 1
    KILL = 2
    TEAR = 3
    INTERRUPT = 4
    FAIL = 5
    FAIL_FROM = 6
    SHORT = 7


class Outcome(NamedTuple):
    """How one save ended.

    Attributes:
        how: "saved", "killed", "typed error" or the name of another exception.
        message: Of the exception.
        hit: The function that was hit; "" if the save made fewer calls.
    """

    how: str
    message: str
    hit: str


class Call(NamedTuple):
    """A call that succeeded. For open, ``offset`` holds the flags; for the others see the man page."""

    name: str
    path: str
    offset: int
    size: int
    second_path: str


def read_calls(log: Path) -> list[Call]:
    """What `Action.LOG` has written."""
    calls = []
    for line in log.read_text().splitlines():
        name, path, offset, size, second_path = line.split("\t")
        name = name.removesuffix("64").removesuffix("at")
        calls.append(Call({"pwrite": "write"}.get(name, name), path, int(offset), int(size), second_path))
    return calls


def compile_shim(directory: Path) -> Path:
    """Build the shim with the compiler that the extension needs as well."""
    library = directory / "shim.so"
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(HERE / "shim.c"), "-ldl"], check=True)
    return library


class Host:
    """A process that runs a script as often as it is asked to, each time in a child; a context manager.

    Args:
        script: A file that defines ``save(path: str, version: int)``.
        root: Calls for files below it are counted.
        shim: From `compile_shim`.
        reads: Count the calls that only look or read, too.
    """

    def __init__(self, script: Path, root: Path, shim: Path, *, reads: bool = False) -> None:
        environment = dict(os.environ, LD_PRELOAD=str(shim), SHIM_ROOT=str(root))
        environment |= {"SHIM_READS": "1"} if reads else {}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._host = subprocess.Popen(
            [sys.executable, str(HERE / "host.py"), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._host.stdin is not None
        assert self._host.stdout is not None
        self._requests, self._answers = self._host.stdin, self._host.stdout

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._host.wait(timeout=10)
        self._answers.close()

    def run(
        self,
        path: Path,
        version: int,
        *,
        action: Action = Action.NOTHING,
        number: int = 0,
        error: int = 0,
        log: Path | None = None,
    ) -> Outcome:
        """Run the script once, with something happening at call ``number``."""
        request: dict[str, Any] = {"path": str(path), "version": version, "number": number}
        request |= {"action": int(action), "error": error, "log": str(log) if log is not None else None}
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        line = self._answers.readline()
        assert line, "the host process died"
        answer = json.loads(line)
        return Outcome(answer["outcome"], answer["message"], answer["hit"])


class CrashLab:
    """One save script under test; a context manager.

    Args:
        script: A file that defines ``save(path: str, version: int)``.
        directory: An empty directory on the file system to test.
        shim: From `compile_shim`.
        target: The name of the file that the script writes.
    """

    def __init__(self, script: Path, directory: Path, shim: Path, target: str = "model.fckpt") -> None:
        self.directory = directory.resolve() / "files"
        self.directory.mkdir()
        self.log = directory.resolve() / "calls"
        self.target = self.directory / target
        self._host = Host(script, self.directory, shim)
        try:
            self.old, self.new = self.content_of(1), self.content_of(2)
            assert self.old != self.new
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CrashLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the host process."""
        self._host.close()

    def save(self, version: int = 2, *, action: Action = Action.NOTHING, number: int = 0, error: int = 0) -> Outcome:
        """Save a version to the target, with something happening at call ``number``."""
        log = self.log if action is Action.LOG else None
        return self._host.run(self.target, version, action=action, number=number, error=error, log=log)

    def content_of(self, version: int) -> bytes:
        """The bytes of a version, saved undisturbed."""
        outcome = self.save(version)
        assert outcome.how == "saved", outcome
        return self.target.read_bytes()

    def reset(self) -> None:
        """The old version at the target, and nothing else."""
        for path in self.directory.iterdir():
            path.unlink()
        self.target.write_bytes(self.old)

    def temp_files(self) -> list[str]:
        return [path.name for path in self.directory.iterdir() if path.name.endswith(TEMP_SUFFIX)]

    def at_every_call(self, action: Action, *, error: int = 0, every: int = 1) -> Iterator[Outcome]:
        """Save over the old version with the action at call 1, then 2, or further on, ... until a save is not hit."""
        for number in range(1, 10_000, every):
            self.reset()
            outcome = self.save(action=action, number=number, error=error)
            if not outcome.hit:
                assert outcome.how == "saved", outcome
                assert self.target.read_bytes() == self.new
                assert number > 10, "the shim sees too few calls to prove anything"
                return
            yield outcome
        raise AssertionError("the save makes no end of calls")

    def calls(self) -> list[Call]:
        """The calls of an undisturbed save over the old version."""
        self.reset()
        outcome = self.save(action=Action.LOG)
        assert outcome.how == "saved", outcome
        return read_calls(self.log)

    # --- the laws every save must keep -------------------------------------------------

    def check_after_kill(self) -> None:
        """Old or new, whole; and the next save removes what is left over."""
        assert self.target.read_bytes() in (self.old, self.new), "neither the old nor the new file"
        self.check_next_save()

    def check_next_save(self) -> None:
        """A save without disturbance works and leaves no temp file."""
        assert self.save().how == "saved"
        assert self.target.read_bytes() == self.new
        assert not self.temp_files()

    def check_after_error(self, outcome: Outcome) -> None:
        """Either saved, or an error of ours with the old file as it was; no temp file in either case."""
        found = self.target.read_bytes()
        if outcome.how == "saved":
            assert found == self.new
        else:
            assert outcome.how == "typed error", outcome
            # Only the directory's fsync comes after the commit point; the message says so then.
            assert found == (self.new if "in place" in outcome.message else self.old)
        assert not self.temp_files(), outcome


OpenLab = Callable[..., CrashLab]
"""Opens the laboratory of a script in this directory."""
