"""The numbers of one tensor, for ``fastckpt inspect --values``. torch shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypedDict

from fastckpt.cli.render import Styled, columns
from fastckpt.errors import UsageError
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select
from fastckpt.needs import needs_torch
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.text import count_text, quoted

if TYPE_CHECKING:
    import torch

MOST_VALUES: Final = 10_000
"""More than these are not printed as JSON: whoever wants them loads the tensor."""

_ROWS: Final = re.compile(r"(.+)\[(-?\d+)?(:)?(-?\d+)?\]", re.DOTALL)
_WHOLE_NUMBERS: Final = ("int", "uint", "bool")


class ValuesDocument(TypedDict):
    path: str
    name: str
    dtype: str
    shape: list[int]
    rows: list[int] | None
    numbers: int
    nan: int
    inf: int
    zeros: int
    max_abs: float
    rms: float | None
    values: Any


def values_facts(path: str, wanted: str) -> tuple[ValuesDocument, str]:
    """What the numbers of a tensor or of some of its rows are, and how torch shows them.

    Only what is asked for is read, and that is proven, as far as the format can.

    Args:
        path: A checkpoint file.
        wanted: The flat name of a tensor; rows may stand behind it: ``head.weight[0:4]``, ``bias[3]``.

    Raises:
        TensorNotFoundError: No tensor has this name.
        UsageError: It has no such rows.
        DamagedError: The bytes are not what was written.
        MissingPackageError: torch is not installed.
    """
    with open_file(path) as opened:
        entry, rows = _chosen(opened, path, wanted)
        with needs_torch("inspect --values"):
            from fastckpt.tensor.profile import Profile, profile
        start, end = entry.span
        raw = opened.read(entry.storage, start, end)
    from fastckpt.tensor.difference import Elements

    elements = Elements(raw, entry.dtype, entry.shape, entry.stride, entry.flags)
    found, numbers = profile(elements) if len(raw) else Profile(), _numbers(elements)
    document: ValuesDocument = {
        "path": path,
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "rows": list(rows) if rows is not None else None,
        "numbers": found.numbers,
        "nan": found.nan,
        "inf": found.inf,
        "zeros": found.zeros,
        "max_abs": found.max_abs,
        "rms": found.rms,
        "values": numbers.tolist() if numbers.numel() <= MOST_VALUES else None,
    }
    # In float64 are numbers of every dtype: it is not that of the tensor.
    return document, re.sub(r",\s*dtype=torch\.(float64|complex128)", "", str(numbers))


def _chosen(opened: Opened, path: str, wanted: str) -> tuple[Entry, tuple[int, int] | None]:
    """The entry that is meant, narrowed to its rows, and which these are."""
    match = _ROWS.fullmatch(wanted)
    if wanted in opened.by_name or match is None or match[2] is match[3] is match[4] is None:
        return _one(opened, path, wanted), None
    name, first, is_range, last = match.groups()
    entry = _one(opened, path, name)
    length = entry.shape[0] if entry.shape else 0
    begin, end, _ = slice(int(first or 0), int(last) if last else None).indices(length)
    if not is_range:
        begin = int(first) + (length if int(first) < 0 else 0)
        end = begin + 1
    if not 0 <= begin < end <= length:
        raise UsageError(
            "there are no such rows",
            path=path,
            tensor=name,
            expected=f"rows of 0 to {length - 1}" if length else "no rows: it has none",
            actual=wanted[len(name) :],
            next_step=f"fastckpt inspect {quoted(path)} --values {quoted(name)}",
        )
    offset = entry.storage_offset + begin * entry.stride[0]
    return entry._replace(shape=(end - begin, *entry.shape[1:]), storage_offset=offset), (begin, end)


def _one(opened: Opened, path: str, name: str) -> Entry:
    entries = select(opened.entries, name, path)
    if len(entries) > 1:
        raise UsageError(
            f"{name!r} matches {len(entries)} tensors",
            path=path,
            expected="one",
            next_step=f"fastckpt inspect {quoted(path)} --keys {quoted(name)}",
        )
    return entries[0]


def _numbers(elements: Any) -> torch.Tensor:
    """The numbers in their shape: exact, for float64 has all of them but some integers of 64 bits."""
    import torch

    from fastckpt.tensor.difference import values_of
    from fastckpt.tensor.dtypes import torch_dtype

    if not len(elements.raw):
        return torch.empty(elements.shape)
    if elements.dtype.startswith(_WHOLE_NUMBERS):
        flat = torch.frombuffer(elements.raw, dtype=torch_dtype(elements.dtype))
        return flat.as_strided(elements.shape, elements.stride)
    numbers = values_of(elements)
    if elements.dtype.startswith("complex"):
        return torch.view_as_complex(numbers).reshape(elements.shape)
    return numbers.reshape(*elements.shape[:-1], -1) if elements.shape else numbers.reshape(())


def values_lines(document: ValuesDocument, shown: str) -> Iterator[str | Styled]:
    """The text about the numbers of a tensor."""
    shape = ", ".join(map(str, document["shape"])) + ("," if len(document["shape"]) == 1 else "")
    rows = document["rows"]
    which = ""
    if rows is not None:
        which = f", row {rows[0]}" if rows[1] - rows[0] == 1 else f", rows {rows[0]} to {rows[1] - 1}"
    yield Styled(document["name"], "bold")
    facts = [["of", f"{document['path']}"], ["is", f"({shape}) {document['dtype']}{which}"]]
    rms = f", root mean square {document['rms']:.4g}" if document["rms"] is not None else ""
    facts.append(["numbers", f"{document['numbers']:,}, largest magnitude {document['max_abs']:.4g}{rms}"])
    marks = [
        count_text(document["zeros"], "zero") if document["zeros"] else "",
        f"{document['nan']:,} NaN" if document["nan"] else "",
        f"{document['inf']:,} infinite" if document["inf"] else "",
    ]
    if any(marks):
        facts.append(["among them", ", ".join(filter(None, marks))])
    yield from columns(facts)
    yield ""
    yield from shown.splitlines()
