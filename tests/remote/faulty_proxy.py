"""A proxy before a server of S3's protocol: it counts requests, and fails when it is told to.

    proxy.fail("get", 2, "wrong bit")       the third GET of an object comes with one bit that is another one
    proxy.fail("complete", 0, "no answer")  the server does what it is asked, and nobody hears of it
    proxy.serve_only(5)                     five requests are served; then the client is as good as dead

Kinds of requests: head, get, list, put, create, part, complete, abort, delete, delete many, other.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal[
    "drop", "no answer", "500", "slow down", "denied", "short body", "fewer bytes", "other range", "wrong bit", "hang"
]
"""How a request fails.

``drop``: the connection is closed before the server hears of it; ``no answer``: after it did what was asked. ``500``,
``slow down`` (503), ``denied`` (403): an answer of that kind. ``short body``: the answer ends in its middle; ``fewer
bytes``: it is shorter, and says so. ``other range``: it says that it has the next bytes. ``wrong bit``: one bit of the
body is another one, of the request's if it has one, else of the answer's. ``hang``: nothing comes until the proxy is
closed.
"""

EVERY = -1
"""Instead of a number: all requests of a kind."""

_ANSWERS = {"500": (500, "InternalError"), "slow down": (503, "SlowDown"), "denied": (403, "AccessDenied")}


class Request(NamedTuple):
    """What was asked for: its kind, the key, and the header ``Range`` (empty without)."""

    kind: str
    key: str
    range: str


class FaultyProxy:
    """A proxy on a port of its own; a context manager.

    Attributes:
        requests: All that came, in order.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._faults: dict[tuple[str, int], Fault | Callable[[], object]] = {}
        self._served_at_most: int | None = None
        self._closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, server))
        self._http.daemon_threads = True

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def counts(self) -> Counter[str]:
        """How many requests of each kind came."""
        return Counter(request.kind for request in list(self.requests))

    def fail(self, kind: str, number: int, fault: Fault | Callable[[], object]) -> None:
        """Let the ``number``-th request of a kind from now on (from 0; EVERY) fail; or call something before it."""
        with self._lock:
            at = number if number == EVERY else self.counts[kind] + number
            self._faults[kind, at] = fault

    def serve_only(self, count: int) -> None:
        """Serve so many more requests; then close every connection."""
        self._served_at_most = len(self.requests) + count

    def reset(self) -> None:
        """Forget what came, and fail no more."""
        with self._lock:
            self.requests.clear()
            self._faults.clear()
            self._served_at_most = None

    def expect(self, request: Request) -> Fault | Callable[[], object] | None:
        """Count a request; what is to become of it."""
        with self._lock:
            number = self.counts[request.kind]
            self.requests.append(request)
            if self._served_at_most is not None and len(self.requests) > self._served_at_most:
                return "drop"
            return self._faults.get((request.kind, number)) or self._faults.get((request.kind, EVERY))

    def hang(self) -> None:
        """Wait until the proxy is closed."""
        self._closed.wait()


def kind_of(method: str, path: str) -> Request:
    """What a request is, without its range."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    kinds = {
        "HEAD": "head",
        "GET": "list" if "list-type" in query else "get" if key else "other",
        "PUT": "part" if "uploadId" in query else "put",
        "POST": "create" if "uploads" in query else "complete" if "uploadId" in query else "delete many",
        "DELETE": "abort" if "uploadId" in query else "delete",
    }
    return Request(kinds.get(method, "other"), key, "")


def _handler(proxy: FaultyProxy, server: tuple[str, int]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        _to_server: HTTPConnection | None = None

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = kind_of(self.command, self.path)._replace(range=self.headers.get("Range") or "")
            fault = proxy.expect(request)
            if callable(fault):
                fault()
                fault = None
            if fault == "hang":
                proxy.hang()
            if fault in ("drop", "hang"):
                self.close_connection = True
            elif fault in _ANSWERS:
                self._answer(*_error(fault))
            else:
                self._pass_on(body, fault)

        do_HEAD = do_GET = do_PUT = do_POST = do_DELETE = do_any

        def _pass_on(self, body: bytes, fault: str | None) -> None:
            if fault == "wrong bit" and body:
                body, fault = _with_wrong_bit(body), None
            status, headers, data = self._ask(body)
            if fault == "no answer":
                self.close_connection = True
                return
            if fault == "wrong bit" and data:
                data = _with_wrong_bit(data)
            if fault == "fewer bytes":
                data = data[: len(data) // 2]
            if fault == "other range" and "Content-Range" in headers:
                headers["Content-Range"] = re.sub(
                    r"\d+(?=[-/])", lambda at: str(int(at[0]) + 1), headers["Content-Range"]
                )
            self._answer(status, headers, data, cut=fault == "short body")

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            headers = dict(self.headers.items())
            for attempt in range(2):
                connection = self._to_server or HTTPConnection(*server)
                try:
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    data = answer.read()
                    self._to_server = connection
                    return answer.status, dict(answer.getheaders()), data
                except (OSError, HTTPException):
                    connection.close()
                    self._to_server = None
                    if attempt:  # A connection that was kept may have been closed meanwhile; a new one was not.
                        raise
            raise AssertionError

        def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response_only(status)
            hidden = {"content-length", "transfer-encoding", "connection"}
            size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            for name, value in headers.items():
                if name.lower() not in hidden:
                    self.send_header(name, value)
            self.send_header("Content-Length", size)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        def handle(self) -> None:
            with suppress(OSError):  # The client went away.
                super().handle()

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            if self._to_server is not None:
                self._to_server.close()

    return Handler


def _error(fault: str) -> tuple[int, dict[str, str], bytes]:
    status, code = _ANSWERS[fault]
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>'
    return status, {"Content-Type": "application/xml"}, body.encode()


def _with_wrong_bit(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
