"""What a ``.safetensors`` holds of a state, and what of it it does not: one rule for all that write one.

The format knows contiguous tensors by flat names, and pairs of text. All else of a state is left out, or is there in
another form. Both are said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG, ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.plain_texts import json_text, plain_texts
from fastckpt.foreign.safetensors_table import DTYPE_NAMES
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.tree import path_text
from fastckpt.layout.walk import tensors_in
from fastckpt.text import count_text, size_text, some

_SHOWN: Final = 5
_ENOUGH: Final = 64 * 2**20
_MOST: Final = 16
"""Tensors that share bytes are written each for itself, into at most so many bytes for each of the source's, and
`_ENOUGH`. A mask that is expanded from one number stays below; thousands of views of one storage do not."""


class SafetensorsContent(NamedTuple):
    """What goes into a ``.safetensors``.

    Attributes:
        tensors: By the name that each has there.
        texts: The pairs of text.
        left_out: What is not in it in any form.
        changed: What is in it in another form, in words: whoever loads it does not get this back.
    """

    tensors: dict[str, Entry]
    texts: dict[str, str]
    left_out: list[str]
    changed: list[str]

    @property
    def is_all(self) -> bool:
        """Whether loading it gives the state."""
        return not self.left_out and not self.changed

    @property
    def notes(self) -> list[str]:
        """What is not there, or not as it was."""
        count = len(self.left_out)
        left = f"{count} left out, which a .safetensors cannot hold: {some(self.left_out, _SHOWN)}"
        return [*([left] if count else []), *self.changed]


def is_plain(entry: Entry) -> bool:
    """Whether the bytes of a tensor are its values in order, as the format has them."""
    return entry.is_contiguous and not entry.flags & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)


def content_of(
    tree: Any,
    entries: Sequence[Entry],
    sizes: Sequence[int],
    metadata: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    copy_shared: bool = False,
) -> SafetensorsContent:
    """What a ``.safetensors`` of a state has.

    Args:
        tree: The nesting; an empty dict where only some tensors are wanted.
        entries: The tensors.
        sizes: Bytes of each storage.
        metadata: The checkpoint's.
        names: The names that the tensors shall have; their own without it.
        copy_shared: Write tied tensors once for each of their names.

    Raises:
        UnsupportedStateError: The tensors share bytes, and would take many times as much without.
    """
    left_out = [f"{entry.name}: {entry.dtype}" for entry in entries if entry.dtype not in DTYPE_NAMES]
    tensors: dict[str, Entry] = {}
    tied: dict[str, str] = {}
    first: dict[Entry, str] = {}
    for entry, name in zip(entries, names or [entry.name for entry in entries], strict=True):
        if entry.dtype in DTYPE_NAMES:
            kept = first.setdefault(entry._replace(name="", flags=0), name) if entry.nbytes else name
            if kept == name or copy_shared:
                tensors[name] = entry
            else:
                tied[name] = kept
    found = by_storage(tensors.values())
    after = sum(entry.nbytes for entries in found.values() for entry in entries)
    require_in_proportion(sum(sizes[storage] for storage in found), after, form="a .safetensors")
    texts = {"format": "pt"}
    as_json = []
    for key, value in metadata.items():
        text = value if type(value) is str else json_text(value)
        if text is None or key in tied:
            left_out.append(f"metadata {key!r}")
            continue
        texts[key] = text
        as_json += [] if type(value) is str else [f"metadata {key!r}"]
    texts |= tied
    plain = plain_texts(tree, dict.fromkeys(tensors, "") | texts)
    changed = []
    as_json = [*plain.texts, *as_json]
    if as_json:
        count = count_text(len(as_json), "plain value")
        changed.append(f"in __metadata__ as JSON: {count} ({some(as_json, _SHOWN)})")
    copied = [name for name, entry in tensors.items() if not is_plain(entry)]
    changed += [f"strided or conjugated lazily, and written contiguous: {some(copied, _SHOWN)}"] if copied else []
    changed += [f"tied, and written once: {some([f'{a} is {b}' for a, b in tied.items()], _SHOWN)}"] if tied else []
    changed += _other_forms(tree, entries, list(tensors.values()), sizes)
    return SafetensorsContent(tensors, texts | plain.texts, left_out + plain.left_out, changed)


def _other_forms(tree: Any, entries: Sequence[Entry], written: Sequence[Entry], sizes: Sequence[int]) -> Iterator[str]:
    """What a loaded tensor would have lost besides its strides."""
    nested = [path_text(path) for path, ref in tensors_in(tree) if path != (entries[ref.entry].name,)]
    if nested:
        yield f"in dicts, lists or objects, and flat by name: {some(nested, _SHOWN)}"
    flagged = [e.name for e in written if e.flags & (ENTRY_FLAG_REQUIRES_GRAD | ENTRY_FLAG_PARAMETER)]
    if flagged:
        yield f"a Parameter or with requires_grad, and written as a plain tensor: {some(flagged, _SHOWN)}"
    views = []
    for storage, users in by_storage(entry for entry in written if entry.nbytes).items():
        if len(users) > 1 or users[0].nbytes != sizes[storage]:
            views += [entry.name for entry in users]
    if views:
        yield f"views of memory that is shared or larger, and written each for itself: {some(views, _SHOWN)}"


def require_in_proportion(before: int, after: int, *, form: str) -> None:
    """Raise UnsupportedStateError if tensors that share ``before`` bytes take far more of them, each for itself."""
    if after > _MOST * before + _ENOUGH:
        raise UnsupportedStateError(
            f"its tensors share {size_text(before)}, and would take {size_text(after)} in {form}, which cannot share",
            next_step="choose some of them with --keys, or write a .fckpt or .pt",
        )
