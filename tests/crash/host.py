"""Runs a save script many times, each in a forked child, with the shim armed in the child.

Usage: ``LD_PRELOAD=shim.so python host.py SCRIPT``. The script defines
``save(path, version)``. One JSON request per line comes in on stdin, one JSON
answer per line goes out on stdout. Forking costs milliseconds where starting
Python and importing the script again would cost seconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

from fastckpt.errors import CheckpointIOError, FastckptError

Save = Callable[[str, int], None]


def run(save: Save, request: dict[str, Any]) -> dict[str, Any]:
    """Save once in a child. Its outcome is "killed" or what the child says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(attempt(save, request)).encode())
        os._exit(0)
    os.close(writer)
    text = b"".join(iter(lambda: os.read(reader, 65536), b""))
    os.close(reader)
    os.waitpid(child, 0)
    return json.loads(text) if text else {"outcome": "killed", "message": "", "hit": "?"}


def attempt(save: Save, request: dict[str, Any]) -> dict[str, Any]:
    shim = ctypes.CDLL(None)
    shim.shim_hit.restype = ctypes.c_char_p
    log = request["log"]
    arguments = (request["action"], ctypes.c_long(request["number"]), request["error"], log and os.fsencode(log))
    outcome, message = "saved", ""
    try:
        shim.shim_arm(*arguments)
        save(request["path"], request["version"])
    except FastckptError as error:
        outcome, message = "typed error", str(error)
        if not isinstance(error, CheckpointIOError):
            outcome = f"the wrong error: {type(error).__name__}"
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)
    shim.shim_arm(0, ctypes.c_long(0), 0, None)
    return {"outcome": outcome, "message": message, "hit": shim.shim_hit().decode()}


def main() -> None:
    save: Save = runpy.run_path(sys.argv[1])["save"]
    for line in sys.stdin:
        print(json.dumps(run(save, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
    # To take down all that torch has imported takes seconds, and there is nothing to flush.
    os._exit(0)
