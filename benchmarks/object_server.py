"""A server on this computer for the objects of a benchmark: whole ones and ranges, sent by the kernel, and uploads.

    python benchmarks/object_server.py DIRECTORY

prints its port, and serves until its standard input ends. Of S3's protocol it knows what an upload in parts needs.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

_PIECE: Final = 2**20
_numbers = itertools.count()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; PUT of an object or a part, and the POSTs that begin and complete an upload."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 0  # What is read ahead of a body would have to be copied.
    directory: Path

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send an object, or a range of it."""
        path, _ = self._asked()
        if not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            start, stop = 0, status.st_size
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if found is not None and found[1]:
                start, stop = int(found[1]), min(int(found[2] or stop) + 1, stop)
            elif found is not None:
                start = max(0, stop - int(found[2]))
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{status.st_mtime_ns:x}"')
            if found:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{status.st_size}")
            self.end_headers()
            self.wfile.flush()
            while start < stop and self.command == "GET":
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Take an object, or a part of an upload."""
        path, query = self._asked()
        if "uploadId" in query:
            path = path.with_name(f"{path.name}.{query['uploadId'][0]}.{int(query['partNumber'][0]):06d}")
        left = int(self.headers["Content-Length"])
        memory = memoryview(bytearray(min(left, _PIECE)))
        with path.open("wb", buffering=0) as file:
            while left:
                count = self.connection.recv_into(memory[:left], 0, socket.MSG_WAITALL)
                file.write(memory[:count])
                left -= count
        self._say("", ETag='"part"')

    def do_POST(self) -> None:
        """Begin an upload, or put its parts together: behind the first one, as little is copied as can be."""
        path, query = self._asked()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "uploads" in query:
            self._say(
                f"<InitiateMultipartUploadResult><UploadId>{next(_numbers)}</UploadId></InitiateMultipartUploadResult>"
            )
            return
        first, *others = sorted(path.parent.glob(f"{path.name}.{query['uploadId'][0]}.*"))
        with first.open("r+b") as whole:
            whole.seek(0, os.SEEK_END)
            for part in others:
                with part.open("rb") as file:
                    while os.sendfile(whole.fileno(), file.fileno(), None, _PIECE):
                        pass
                part.unlink()
        first.rename(path)
        self._say("<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>")

    def _asked(self) -> tuple[Path, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return self.directory / Path(parts.path).name, parse_qs(parts.query, keep_blank_values=True)

    def _say(self, text: str, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def main() -> None:
    """Serve."""
    Handler.directory = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
