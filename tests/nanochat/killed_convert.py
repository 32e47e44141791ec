"""Converts a directory and is killed: ``killed_convert.py REQUEST``, a JSON object.

``at`` is the change (rename or removal) to be killed at, ``when`` "before" or
"after" it. Without them it says "ready" and waits to be killed from outside.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable

import fastckpt


def main() -> None:
    request = json.loads(sys.argv[1])
    count = 0

    def killing(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: object, **named: object) -> None:
            nonlocal count
            count += 1
            if count == request["at"] and request["when"] == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            call(*args, **named)
            if count == request["at"]:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    if "at" in request:
        os.rename = killing(os.rename)
        os.unlink = killing(os.unlink)
    else:
        print("ready", flush=True)
    fastckpt.convert(request["source"], request["destination"], replace=request["replace"], threads=1)


main()
