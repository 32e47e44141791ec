"""Why a seal that differs from its file is of another one: then the file must not become again what it was."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.io.source import Source
from fastckpt.seals.standing import Standing
from fastckpt.stored.own_digests import proven_where_it_differs
from fastckpt.stored.verify import verify_source
from fastckpt.stored.written_anew import why_written_anew


def why_another(source: Source, standing: Standing, *, threads: int) -> str:
    """Why an open file was written anew since it was sealed; empty if it was damaged, or is as it was sealed.

    One that was written anew and damaged then is another one, too: the bytes of it that its own digests prove must not
    become again what they were before.
    """
    if standing.stale or standing.is_as_sealed:
        return standing.stale
    if proven_where_it_differs(source, standing, threads=threads) == []:
        return ""  # Damage explains all that differs: the rest of the file need not be read to know that.
    try:
        report = verify_source(source, threads=threads, sealed=False)
    except FastckptError:
        return ""
    return why_written_anew(report, standing, source, threads=threads)
