"""A web server on this computer for the objects of a benchmark: whole ones and ranges, sent by the kernel.

    python benchmarks/object_server.py DIRECTORY

prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    directory: Path

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send an object, or a range of it."""
        path = self.directory / Path(self.path).name
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


def main() -> None:
    """Serve."""
    Handler.directory = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
