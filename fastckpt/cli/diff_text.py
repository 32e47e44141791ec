"""``fastckpt diff`` as text: what changed in the structure, the most different tensors, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastckpt.cli.inspect_text import FORMATS
from fastckpt.cli.render import Facts, Styled, columns, count_text, duration_text, size_text, value_text


class Shown(NamedTuple):
    """How many lines of each kind are shown; None for all."""

    limit: int | None


def pair_lines(facts: Facts, shown: Shown) -> Iterator[str | Styled]:
    """The text about two files; see `fastckpt.cli.diff_facts.pair_facts`."""
    if "role" in facts:
        yield Styled(facts["role"], "bold")
    if "error" in facts:
        yield Styled(f"  {facts['shown']}", "bad")
        return
    yield from columns([_side(letter, facts[letter.lower()]) for letter in "AB"])
    yield from _structure_lines(facts, shown)
    yield from _table(facts, shown)
    for name, tensor in facts["tensors"].items():
        if tensor["error"] is not None:
            error = tensor["error"]
            yield Styled(f"  damaged  {name}: {error['message']} ({error['path']}, byte {error['offset']})", "bad")
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "dim")
    yield _verdict(facts)


def _side(letter: str, side: Facts) -> list[str]:
    size = f"{FORMATS[side['format']]}, {size_text(side['size'])}, {count_text(side['tensors'], 'tensor')}"
    return [letter, side["path"], size]


def _structure_lines(facts: Facts, shown: Shown) -> Iterator[str]:
    groups = [
        [["only in A", name, _kind(tensor)] for name, tensor in facts["only_in_a"].items()],
        [["only in B", name, _kind(tensor)] for name, tensor in facts["only_in_b"].items()],
        [
            [what, name, _arrow(change)]
            for name, tensor in facts["tensors"].items()
            for what, change in tensor["changes"].items()
        ],
        [["container", place, _arrow(change)] for place, change in facts["containers"].items()],
        *(
            [["shared", ", ".join(names), f"in one storage only in {side}"] for names in facts[f"shared_only_in_{key}"]]
            for side, key in (("A", "a"), ("B", "b"))
        ),
    ]
    for label in ("values", "metadata"):
        named, word = facts[label], label.removesuffix("s")
        groups.append([[word, name, _arrow(change)] for name, change in named["changed"].items()])
        for side, key in (("A", "only_in_a"), ("B", "only_in_b")):
            groups.append([[word, name, f"only in {side}: {value_text(v, 60)}"] for name, v in named[key].items()])
    rows: list[list[str]] = []
    for group in groups:
        rows += group[: shown.limit]
        if shown.limit is not None and len(group) > shown.limit:
            rows.append([group[0][0], f"... and {len(group) - shown.limit} more (--all lists them)", ""])
    if rows:
        yield ""
        yield from columns(rows)


def _kind(tensor: Facts) -> str:
    return f"{tensor['dtype']} {_shape(tensor['shape'])}"


def _shape(shape: list[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _arrow(change: Facts) -> str:
    a, b = (value if isinstance(value, str) else value_text(value, 60) for value in (change["a"], change["b"]))
    if a == b and "type_a" in change:
        a, b = f"{a} ({change['type_a']})", f"{b} ({change['type_b']})"
    return f"{a} -> {b}"


def _table(facts: Facts, shown: Shown) -> Iterator[str]:
    differing = [item for item in facts["tensors"].items() if item[1]["numbers"] is not None]
    if not differing:
        return
    differing.sort(key=lambda item: _rank(item[1]["numbers"]))
    rows = [["most different", "dtype", "shape", "rel. L2", "max abs", "cosine", "elements that differ", ""]]
    for name, tensor in differing[: shown.limit]:
        numbers = tensor["numbers"]
        share = numbers["differing"] / numbers["elements"]
        rows.append(
            [
                name,
                tensor["dtype"],
                _shape(tensor["shape"]),
                _number(numbers["relative_l2"]),
                _number(numbers["max_abs"]),
                "-" if numbers["cosine"] is None else _number(numbers["cosine"], "{:.6f}"),
                f"{numbers['differing']:,} ({share:.1%})",
                _remark(numbers),
            ]
        )
    if len(rows) > 1:
        yield ""
        yield from columns(rows, right=(3, 4, 5, 6))
    if len(differing) >= len(rows):
        yield f"  ... and {len(differing) - len(rows) + 1} more that differ (--top N or --all shows them)"


def _rank(numbers: Facts) -> tuple[float, ...]:
    """Sorts NaN before infinity before all numbers, larger ones first."""
    relative = numbers["relative_l2"]
    if isinstance(relative, str):
        return (-2.0 if relative == "NaN" else -1.0,)
    return 0.0, -relative, -numbers["differing"]


def _number(value: float | str, form: str = "{:.3g}") -> str:
    return value if isinstance(value, str) else form.format(value)


def _remark(numbers: Facts) -> str:
    remarks = []
    if numbers["values_equal"]:
        bits = numbers["differing_bits"]
        remarks.append("equal values" + (f", other bits in {count_text(bits, 'element')}" if bits else ""))
    for what, key in (("NaN", "nan"), ("inf", "inf")):
        a, b = numbers[key]["a"], numbers[key]["b"]
        if a or b:
            remarks.append(f"{what} {a:,} -> {b:,}")
    return ", ".join(remarks)


def _verdict(facts: Facts) -> Styled:
    totals = facts["totals"]
    time_text = f" ({duration_text(facts['seconds'])})"
    if facts["roots_equal"]:
        text = f"identical: equal root digests, {count_text(totals['identical'], 'tensor')} and all values"
        return Styled(f"{text}; digests were compared, not the data{time_text}", "good")
    counts = [(totals["identical"], "identical"), (totals["differs"], "differ"), (totals["damaged"], "damaged")]
    counts += [(totals["unread"], "not read"), (totals["only_in_a"], "only in A"), (totals["only_in_b"], "only in B")]
    tensors = sum(count for count, _ in counts)
    parts = [f"{count:,} {word}" for count, word in counts if count]
    text = f"{count_text(tensors, 'tensor')}: {', '.join(parts)}" if parts else "no tensors"
    others = _other_changes(facts)
    if others:
        text += f"; {', '.join(others)}"
    if totals["by_digests"]:
        text += f"; {totals['by_digests']:,} by their digests alone"
    if totals["damaged"]:
        return Styled(f"damaged: {text}{time_text}", "bad")
    if not facts["same"]:
        return Styled(f"different: {text}{time_text}", "warn")
    return Styled(f"{'same structure' if totals['unread'] else 'identical'}: {text}{time_text}", "good")


def _other_changes(facts: Facts) -> Iterator[str] | list[str]:
    counts: list[tuple[int, str]] = [
        (sum(map(len, facts["values"].values())), "plain value"),
        (sum(map(len, facts["metadata"].values())), "metadata value"),
        (len(facts["containers"]), "container"),
        (sum(bool(tensor["changes"]) for tensor in facts["tensors"].values()), "tensor type"),
        (len(facts["shared_only_in_a"]) + len(facts["shared_only_in_b"]), "shared storage"),
    ]
    return [f"{count_text(count, noun)} changed" for count, noun in counts if count]


def summary_lines(facts: Facts) -> Iterator[str | Styled]:
    """One line about all pairs of two directories."""
    for side, key in (("A", "only_in_a"), ("B", "only_in_b")):
        if facts[key]:
            yield Styled(f"only in {side}: {', '.join(facts[key])}", "warn")
    files: list[dict[str, Any]] = facts["files"]
    same = sum(file["same"] is True for file in files)
    failed = sum("error" in file for file in files)
    parts = [(same, "the same"), (len(files) - same - failed, "different"), (failed, "not comparable")]
    text = ", ".join(f"{count} {word}" for count, word in parts if count) or "none"
    style = "good" if facts["same"] else "bad" if failed else "warn"
    yield Styled(f"{count_text(len(files), 'pair')} of files: {text}", style)
