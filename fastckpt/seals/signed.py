"""The digests that a ``model.sig`` of OpenSSF model signing states. Its signature is not checked here.

Such a file is a Sigstore bundle, or only the DSSE envelope in one, around an in-toto statement. That names files, from
the directory of the ``model.sig`` on, with the SHA-256 of each.
"""

from __future__ import annotations

import binascii
import json
import os
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fastckpt.constants import MODEL_SIGNATURE
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.io.os_errors import exists
from fastckpt.io.source import read_small

_MOST_BYTES: Final = 64 * 2**20
_DIRECTORIES: Final = 4
"""Directories that a ``model.sig`` is looked for in: that of the file, and those above it."""
_STATEMENT: Final = "application/vnd.in-toto+json"
_MODEL: Final = "https://model_signing/signature/v1.0"
_SHA256: Final = "sha256"


@dataclass(slots=True)
class Signed:
    """What a ``model.sig`` states.

    Attributes:
        path: The ``model.sig``.
        sha256: SHA-256 in hex, by the name of a file from its directory on.
        others: Files of which it states another digest.
    """

    path: str
    sha256: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)


def signed_digest(path: str) -> tuple[Signed, str] | None:
    """The nearest ``model.sig`` that names a file, in its directory or above it, and the SHA-256 that it states of it.

    Returns:
        None if there is none that names the file.

    Raises:
        DamagedError: It is none, or is damaged.
        CheckpointIOError: It cannot be read.
    """
    directory, name = os.path.split(os.path.abspath(path))
    for _ in range(_DIRECTORIES):
        beside = os.path.join(directory, MODEL_SIGNATURE)
        if name != MODEL_SIGNATURE and exists(beside):
            signed = read_signed(beside)
            if name in signed.others:
                raise DamagedError("it states another digest than SHA-256, which is not compared", path=beside)
            if name in signed.sha256:
                return signed, signed.sha256[name]
        directory, last = os.path.split(directory)
        name = f"{last}/{name}"
    return None


def read_signed(path: str) -> Signed:
    """What a ``model.sig`` states. Raises DamagedError, CheckpointIOError."""
    try:
        statement = _statement(json.loads(read_small(path, limit=_MOST_BYTES)))
        signed = Signed(path)
        for name, algorithm, digest in _rows(statement):
            if algorithm == _SHA256:
                signed.sha256[name] = digest.lower()
            else:
                signed.others.add(name)
        return signed
    except FastckptError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        why = f"{type(error).__name__}: {error}"[:80]
        raise DamagedError(f"this is no model.sig that is understood ({why})", path=path) from None


def _statement(bundle: Any) -> Any:
    envelope = bundle.get("dsseEnvelope", bundle)
    if envelope["payloadType"] != _STATEMENT:
        raise ValueError(f"its payload is {envelope['payloadType']!r}")
    return json.loads(b64decode(envelope["payload"], validate=True))


def _rows(statement: Any) -> Iterator[tuple[str, str, str]]:
    """Name, algorithm and digest of each file; of a statement of another kind those of its subjects."""
    if statement["predicateType"] == _MODEL:
        predicate = statement["predicate"]
        # Cut into shards, a file has no digest of its own.
        whole = predicate.get("serialization", {}).get("method", "files") == "files"
        for row in predicate["resources"]:
            name = str(row["name"]) if whole else str(row["name"]).rsplit(":", 2)[0]
            yield name, str(row["algorithm"]) if whole else "shards", str(row["digest"])
        return
    for row in statement["subject"]:
        algorithm = _SHA256 if _SHA256 in row["digest"] else next(iter(row["digest"]))
        yield str(row["name"]), algorithm, str(row["digest"][algorithm])
