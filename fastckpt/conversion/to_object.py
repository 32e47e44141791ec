"""A conversion to an object in a store."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.send_file import send_file
from fastckpt.io.source import Source
from fastckpt.io.transfer import thread_count
from fastckpt.remote.path import RemotePath


def convert_to_object(source: Source, destination: RemotePath, request: Request, *, to: Format) -> Conversion:
    """Convert one open file; see `convert`.

    What becomes a ``.fckpt`` is sent as it is made. All else is made in a temporary directory first.
    """
    if to == "fckpt" and kind_of(source) not in (None, "fckpt") and not request.strip_prefix:
        return convert_file(source, destination, request, to=to)
    with (
        typed_os_errors(destination, doing=f"use a temporary directory in {tempfile.gettempdir()}"),
        tempfile.TemporaryDirectory(prefix="fastckpt-") as room,
    ):
        made = os.path.join(room, os.path.basename(os.fspath(destination)))
        done = convert_file(source, made, replace(request, durable=False), to=to)
        with Source(made) as whole:
            send_file(whole, destination, threads=thread_count(request.threads))
    return replace(done, destination=os.fspath(destination))
