"""A web server that tells versions apart by a time in whole seconds: what replaces an object is noticed, too."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastckpt.errors import DamagedError
from fastckpt.io.remote_source import RemoteSource
from fastckpt.remote.path import located

pytest.importorskip("obstore", reason="needs obstore, of the extra remote")

SIZE = 3 * 2**20


class Handler(BaseHTTPRequestHandler):
    """Answers GET with a range of what was written last."""

    protocol_version = "HTTP/1.1"
    content: tuple[bytes, float]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Send it."""
        data, when = self.content
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"])
        assert found is not None
        start = int(found[1]) if found[1] else len(data) - int(found[2])
        part = data[start : int(found[2]) + 1 if found[1] else None]
        self.send_response(206)
        self.send_header("Last-Modified", formatdate(when, usegmt=True))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}/x.bin"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("age", [0.0, 1000.0])
def test_replaced_right_after_it_was_opened(url: str, age: float) -> None:
    Handler.content = b"a" * SIZE, time.time() - age
    begun = time.monotonic()
    with RemoteSource(located(url)) as source:
        assert time.monotonic() - begun < (1 if age else 10), "an older one needs no waiting"
        Handler.content = b"b" * SIZE, time.time()
        with pytest.raises(DamagedError, match="replaced while it was read"):
            source.read(2**19, 2**19)
