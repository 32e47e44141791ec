"""Processes that have torch already: forked from one that imported it, which costs more than most tests do.

`Forked` and `run` take the arguments of ``python``: ``-c CODE``, ``-m MODULE`` or a script. A test whose claim is about
a fresh interpreter (what it imports, how it ends on an exception) starts one itself.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any


@cache
def _template() -> socket.socket:
    """The connection to the process that is forked; it ends when this one does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            pass_fds=[its.fileno()],
            cwd="/",  # which stays, other than the directory of the test that comes first
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


class Forked:
    """A process in a session of its own: as much of `subprocess.Popen` as the tests need."""

    def __init__(self, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        (stdin, to_it), (from_it, stdout) = os.pipe(), os.pipe()
        self._status, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its, open(stdin, "rb"), open(stdout, "wb"):
            fds = [stdin, stdout, self._errors.fileno(), its.fileno()]
            socket.send_fds(_template(), [json.dumps(request).encode()], fds)
            self.pid = int(self._status.recv(32))
        self.stdin: IO[str] = open(to_it, "w", encoding="utf-8")  # noqa: SIM115
        self.stdout: IO[str] = open(from_it, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, as `subprocess` says it."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            self.returncode = int(self._status.recv(32))
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of stdout, and stderr, when it has ended. To be called once."""
        rest: list[str] = []
        reader = threading.Thread(target=lambda: rest.append(self.stdout.read()))
        with self.stdin, self.stdout, self._errors:
            self.stdin.close()
            reader.start()
            try:
                self.wait(timeout)
            finally:
                self.kill()
                reader.join()
            self._errors.seek(0)
            return rest[0], self._errors.read()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*arguments: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a process to its end."""
    process = Forked(*arguments, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


PROGRAM = f"""#!{sys.executable} -SE
import json, os, socket, sys
status, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
request = {{"arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
template = socket.socket(fileno=int(os.environ["FORKED"]))
socket.send_fds(template, [json.dumps(request).encode()], [0, 1, 2, its.fileno()])
its.close()
status.recv(32)
code = int(status.recv(32))
os._exit(code if code >= 0 else 128 - code)
"""
"""A program ``python`` for shells, whose every run is forked. It needs `environment`, and its ``FORKED`` to be open."""


def environment() -> dict[str, str]:
    return {"FORKED": str(_template().fileno())}


# --- in the process that is forked -----------------------------------------------------------------------------------


def _requests(connection: socket.socket) -> dict[str, Any]:
    """Forks for each request, and tells how each child ended; returns in the children, with the request."""
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not connection:
                child, status = key.data
                selector.unregister(key.fileobj)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with suppress(BrokenPipeError):
                    os.write(status, b"%d" % code)
                os.close(status)
                continue
            text, fds, _, _ = socket.recv_fds(connection, 1 << 20, 4)
            if not text:
                os._exit(0)
            child = os.fork()
            if child == 0:
                for at, fd in enumerate(fds[:3]):
                    os.dup2(fd, at)
                selector.close()  # or its end, whenever that comes, closes the number of another file
                connection.close()
                os.closerange(3, 1 << 16)
                request: dict[str, Any] = json.loads(text)
                return request
            os.write(fds[3], b"%d" % child)
            selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, fds[3]))
            for fd in fds[:3]:
                os.close(fd)


def _become(arguments: list[str], cwd: str, env: dict[str, str], paths: list[str]) -> None:
    """Go on as ``python ARGUMENTS``."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    unbuffered = arguments[0] == "-u"
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False, buffering=1 if unbuffered else -1)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace", buffering=1)
    how, *rest = arguments[unbuffered:]
    first = {"-c": "", "-m": cwd}.get(how, os.path.dirname(os.path.abspath(how)))
    given = list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:] = [first, *given, *(path for path in paths if path not in given)]
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *rest]
        runpy.run_path(how, run_name="__main__")


def main() -> None:
    import torch
    import torch._dynamo  # noqa: F401  Optimizers import it, and it takes longer still.

    import fastckpt.cli.main
    import fastckpt.nanochat  # noqa: F401

    paths = [path for path in sys.path[1:] if path.startswith((sys.prefix, sys.base_prefix))]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    gc.freeze()
    request = _requests(socket.socket(fileno=int(sys.argv[1])))
    code: object = 0
    try:
        _become(**request, paths=paths)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # As an interpreter ends, but for the modules: to take down all that was imported takes as long as to import it.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int):
        print("" if code is None else code, end="\n" if code else "", file=sys.stderr)
        code = 1 if code else 0
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


if __name__ == "__main__":
    main()
