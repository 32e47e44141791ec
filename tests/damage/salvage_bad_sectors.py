"""Salvages a file of which pages cannot be read: run with ``LD_PRELOAD`` of bad_sectors.c.

Each line of the input is a request as JSON (``source``, ``destination``, ``pages``, ``include``, and ``steps``, a
directory in which a decision is asked for; with ``replace`` the source, or with ``directory`` the one of this name, is
converted to the destination instead, to go then); each line of the output the report, or the name of the typed error.
"""

from __future__ import annotations

import ctypes
import json
import sys

import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.runs.checkpoint_directory import CheckpointDirectory


def main() -> None:
    """Answer every request."""
    shim = ctypes.CDLL(None)
    for line in sys.stdin:
        request = json.loads(line)
        pages = request["pages"]
        shim.bad_pages(request["source"].encode(), len(pages), (ctypes.c_long * len(pages))(*pages))
        try:
            if request["replace"]:
                source = request["destination"] if request["directory"] else request["source"]
                fastckpt.convert(source, request["destination"], replace=True)
                print(json.dumps({}), flush=True)
                continue
            report = fastckpt.salvage(request["source"], request["destination"], include=request["include"])
            answer = report.as_dict() | {"verified": fastckpt.verify(request["source"]).exit_code}
            if request["steps"]:
                answer["pruned"] = CheckpointDirectory(request["steps"], keep_last=1).prune()
                answer["last"] = fastckpt.find_last_whole(request["steps"])
        except FastckptError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
