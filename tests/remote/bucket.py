"""A bucket on a local server of S3's protocol (`moto`), behind a proxy that can be told to fail."""

from __future__ import annotations

import itertools
import logging
import re
import time
from datetime import timedelta
from http.client import HTTPConnection

from faulty_proxy import FaultyProxy
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3 import models

KEY_ID, SECRET = "KEY-ID-THAT-NOBODY-SEES", "SECRET-THAT-NOBODY-SEES"
"""Credentials: whoever finds one of them in a message has found a leak."""

QUICK = {
    "retry_config": {
        "max_retries": 2,
        "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2},
    }
}
"""``storage_options`` that try again soon and not often."""

_SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request"}
_numbers = itertools.count()


def moto_server() -> tuple[str, int]:
    """Start a server that keeps objects in this process and ends with it; its host and port."""
    logging.getLogger("werkzeug").setLevel(
        logging.CRITICAL
    )  # A line for each request, and for what a fault does to it.
    models.S3_UPLOAD_PART_MIN_SIZE = 1  # With 5 MiB every upload of the tests would have to be a large one.
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return host, port


class Bucket:
    """An empty bucket. What the methods do goes past the proxy; all others come through it.

    Attributes:
        proxy: What `environment` leads to.
    """

    def __init__(self, server: tuple[str, int], proxy: FaultyProxy) -> None:
        self._server = server
        self.proxy = proxy
        self.name = f"bucket-{next(_numbers)}"
        self._ask("PUT", "")

    def url(self, key: str) -> str:
        """The URL of an object, as users write it."""
        return f"s3://{self.name}/{key}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads whoever opens such a URL to the proxy."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ALLOW_HTTP": "true",
        }

    def put(self, key: str, data: bytes) -> None:
        """Make or replace an object."""
        self._ask("PUT", f"/{key}", data)

    def get(self, key: str) -> bytes | None:
        """What is in an object; None if there is none."""
        return self._ask("GET", f"/{key}", missing=True)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._ask("DELETE", f"/{key}")

    def names(self) -> list[str]:
        """The keys of all objects, in order."""
        return _texts("Key", self._ask("GET", "?list-type=2"))

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that were begun, and neither completed nor aborted."""
        return _texts("Key", self._ask("GET", "?uploads"))

    def uploads_left(self) -> list[str]:
        """The same, as soon as there are none, or after some seconds: on a busy computer they end a little later."""
        deadline = time.monotonic() + 5
        while (left := self.uploads()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def _ask(self, method: str, rest: str, body: bytes = b"", *, missing: bool = False) -> bytes | None:
        connection = HTTPConnection(*self._server)
        try:
            connection.request(method, f"/{self.name}{rest}", body, _SIGNED)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if missing and answer.status == 404:
            return None
        assert answer.status < 300, (method, rest, answer.status, data)
        return data


def _texts(tag: str, answer: bytes | None) -> list[str]:
    return re.findall(f"<{tag}>(.*?)</{tag}>", (answer or b"").decode())
