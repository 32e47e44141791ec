"""``fastckpt plot --text``: bytes, norms, bad numbers and damage as a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Final

from fastckpt.cli.render import Styled, columns
from fastckpt.constants import CHUNK_SIZE
from fastckpt.plotting.chunk_states import DAMAGED, INTACT, LOST, UNPROVEN, ChunkState, worst
from fastckpt.plotting.markup import quantity, shortened
from fastckpt.plotting.numbers import ChunkMap, PlottedDirectory, PlottedFile, PlottedStep, PlottedTensor
from fastckpt.plotting.summary import (
    KindOfTensor,
    bad_numbers,
    healing_words,
    kinds_of,
    proven_words,
    rate_words,
    size_words,
    total_norm,
    val_bpb_words,
    verdict,
)
from fastckpt.stored.optimizer_words import group_rows, heading
from fastckpt.text import count_text, size_text
from fastckpt.verdicts import Verdict

_MAX_KINDS: Final = 24
_MAX_REMARKS: Final = 12
_MAX_LABEL: Final = 44
_BAR: Final = 24
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_MAP_WIDTH: Final = 64
_MAP_ROWS: Final = 16
_SIGNS: Final = {INTACT: "·", UNPROVEN: "?", DAMAGED: "x", LOST: "!"}
_STYLES: Final = {"good": "good", "warning": "warn", "bad": "bad"}


def file_lines(facts: PlottedFile) -> Iterator[str | Styled]:
    """The text about a file."""
    yield Styled(f"{facts['path']}: {size_words(facts)}", "bold")
    words, kind = verdict(facts)
    yield Styled(f"  {words}", _STYLES[kind])
    for optimizer in facts["optimizers"]:
        yield f"  {heading(optimizer)}"
        yield from columns(group_rows(optimizer))
    yield from _kind_lines(kinds_of(facts["tensors"]))
    noted = [_remark(tensor) for tensor in facts["tensors"] if bad_numbers(tensor) or tensor["reason"]]
    for words in noted[:_MAX_REMARKS]:
        yield Styled(f"  {words}", "bad")
    if len(noted) > _MAX_REMARKS:
        yield Styled(f"  ... and {count_text(len(noted) - _MAX_REMARKS, 'more tensor')}", "bad")
    if facts["chunks"] is not None:
        yield from _map_lines(facts["chunks"])
    if facts["healing"] is not None:
        yield f"  {healing_words(facts['healing'])}"
    if facts["next"]:
        yield f"  next: {facts['next']}"


def _remark(tensor: PlottedTensor) -> str:
    if tensor["reason"]:
        return f"{tensor['name']}: not measured: {tensor['reason']}"
    numbers = tensor["numbers"]
    assert numbers is not None, "a tensor without numbers has a reason"
    return f"{tensor['name']}: {numbers['nan']:,} NaN, {numbers['inf']:,} inf"


def _kind_lines(kinds: Sequence[KindOfTensor]) -> Iterator[str]:
    if not kinds:
        return
    largest = max(kind.nbytes for kind in kinds) or 1
    rows = [["kind", "size", "", "norm", "zeros", "norm by layer, from the lowest to the highest"]]
    for kind in kinds[:_MAX_KINDS]:
        bar = "█" * round(_BAR * kind.nbytes / largest)
        zeros = f"{100 * kind.zeros / kind.count:.3g}%" if kind.zeros else "-"
        norms = [norm for _, norm in sorted(kind.norms.items()) if isfinite(norm)]
        norm = "-" if kind.unmeasured else quantity(kind.norm)
        rows.append(
            [
                shortened(kind.label, _MAX_LABEL, keep_end=True),
                size_text(kind.nbytes),
                bar,
                norm,
                zeros,
                by_layer(norms),
            ]
        )
    yield ""
    yield from columns(rows, right=(1, 3, 4))
    if len(kinds) > _MAX_KINDS:
        yield f"  ... and {count_text(len(kinds) - _MAX_KINDS, 'more kind')}"
    yield ""


def by_layer(norms: Sequence[float]) -> str:
    """Norms as blocks, with the numbers that the lowest and the highest block stand for."""
    if len(norms) < 2:
        return ""
    low, high = quantity(min(norms)), quantity(max(norms))
    # What reads as the same number must not look like a difference.
    return f"{sparkline(norms)}  {low} to {high}" if low != high else f"{sparkline([1.0] * len(norms))}  {low}"


def sparkline(values: Sequence[float]) -> str:
    """A value per character, from the smallest to the largest; at most 48 of them."""
    if len(values) < 2:
        return ""
    values = values[:: -(-len(values) // 48)]
    low, high = min(values), max(values)
    if high == low:
        return _BLOCKS[0] * len(values)
    return "".join(_BLOCKS[int((value - low) / (high - low) * (len(_BLOCKS) - 1))] for value in values)


def _map_lines(chunks: ChunkMap) -> Iterator[str | Styled]:
    """The damage map: as many bytes for every sign, the worst of them."""
    cells = chunks["cells"]
    total = sum(cell.nbytes for cell in cells)
    if not total:
        return
    signs = _signs(cells, total)
    legend = ", ".join(f"{_SIGNS[state]} {state}" for state in _SIGNS if _SIGNS[state] in signs)
    yield f"  {proven_words(chunks)}"
    yield f"  {legend}; each sign is the worst of {size_text(-(-total // len(signs)))}:"
    for at in range(0, len(signs), _MAP_WIDTH):
        row = signs[at : at + _MAP_WIDTH]
        is_intact = set(row) == {_SIGNS[Verdict.INTACT]}
        yield Styled(f"  {row}", "good" if is_intact else "bad" if _SIGNS[LOST] in row else "warn")


def _signs(cells: Sequence[ChunkState], total: int) -> str:
    count = min(-(-total // CHUNK_SIZE), _MAP_WIDTH * _MAP_ROWS)
    states = [INTACT] * count
    at = 0
    for cell in cells:
        end = at + cell.nbytes
        for place in range(at * count // total, -(-end * count // total)):
            states[place] = worst((states[place], cell.state))
        at = end
    return "".join(_SIGNS[state] for state in states)


def directory_lines(facts: PlottedDirectory) -> Iterator[str | Styled]:
    """The text about a directory: its steps, then the files of the newest one."""
    yield Styled(f"{facts['path']}: {count_text(len(facts['steps']), 'step')}", "bold")
    has_loss = any(step["val_bpb"] is not None for step in facts["steps"])
    rows = [
        ["step", "model", *(["val_bpb"] if has_loss else []), "lr", "norm", "largest relative change", "NaN, inf", ""]
    ]
    styles = []
    for step in facts["steps"]:
        rows.append(_step_row(step, has_loss=has_loss))
        styles.append("bad" if step["model"] is None else _STYLES[verdict(step["model"])[1]])
    head, *lines = columns(rows, right=range(len(rows[0]) - 1))
    yield head
    for line, style in zip(lines, styles, strict=True):
        yield line if style == "good" else Styled(line, style)
    if facts["left_out"]:
        yield f"  {count_text(facts['left_out'], 'step')} in between left out"
    for file in facts["newest"]["files"]:
        yield ""
        yield from file_lines(file)
    for failed in facts["newest"]["failed"]:
        yield Styled(f"{failed['path']}: {failed['error']}", "bad")


def _step_row(step: PlottedStep, *, has_loss: bool) -> list[str]:
    said = (*([val_bpb_words(step["val_bpb"])] if has_loss else []), rate_words(step["lr"]))
    model = step["model"]
    if model is None:
        return [f"{step['step']:,}", "-", *said, "-", "-", "-", step["error"] or ""]
    bad = sum(map(bad_numbers, model["tensors"]))
    largest = _largest((step["changes"] or {}).items())
    return [
        f"{step['step']:,}",
        size_text(model["size"]),
        *said,
        total_norm(model),
        largest,
        f"{bad:,}",
        verdict(model)[0],
    ]


def _largest(changes: Iterable[tuple[str, float | None]]) -> str:
    """The module that changed most, and by how much."""
    known = [(value, module) for module, value in changes if value is not None]
    if not known:
        return "-"
    value, module = max(known)
    return f"{module} {quantity(value)}"
