"""A ``model.sig`` as model signing writes it, with a signature that means nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def statement(
    directory: Path, names: Iterable[str], *, method: str = "files", algorithm: str = "sha256"
) -> dict[str, Any]:
    """The in-toto statement about files of a directory."""
    digests = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
    resources = [{"name": name, "algorithm": algorithm, "digest": digest} for name, digest in digests.items()]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": directory.name, "digest": {"sha256": "00" * 32}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": {"method": method, "hash_type": algorithm}, "resources": resources},
    }


def envelope(said: object) -> dict[str, Any]:
    """A DSSE envelope around a statement."""
    return {
        "payload": base64.b64encode(json.dumps(said).encode()).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "AAAA", "keyid": ""}],
    }


def sign(directory: Path, *names: str, bundle: bool = True) -> Path:
    """Write a ``model.sig`` that names files of a directory."""
    dsse = envelope(statement(directory, names))
    media = "application/vnd.dev.sigstore.bundle.v0.3+json"
    written = {"mediaType": media, "verificationMaterial": {}, "dsseEnvelope": dsse} if bundle else dsse
    (directory / "model.sig").write_text(json.dumps(written))
    return directory / "model.sig"
