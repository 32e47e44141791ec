"""Starts ranks through ``nanochat_forked.py`` and waits for them, or kills them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent


class Forker:
    """A process that forks ranks; a context manager."""

    def __enter__(self) -> Forker:
        paths = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nanochat_forked.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def start(self, job: str, directory: Path, ranks: int, **more: Any) -> list[int]:
        """Fork the ranks of a run; returns their process ids. The first one is that of their group."""
        assert self.process.stdin is not None
        request = {"job": job, "directory": str(directory), "ranks": ranks, **more}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> list[int]:
        """The status of every rank, as waitpid gives it, when all have ended."""
        return self._answer()

    def kill(self, ranks: list[int]) -> list[int]:
        """Kill all ranks at once; returns how they ended."""
        os.killpg(ranks[0], signal.SIGKILL)
        return self.wait()

    def _answer(self) -> list[int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the forking process ended"
        answer: list[int] = json.loads(line)
        return answer
