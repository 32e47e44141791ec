"""``fastckpt diff`` as text: what changed in the structure, the most different tensors, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt.cli.inspect_text import FORMATS
from fastckpt.cli.render import Facts, Styled, columns, value_text
from fastckpt.text import count_text, duration_text, size_text

_OBJECT_WORDS = {"differs": "differs", "damaged": "damaged", "unread": "not compared", "unknown": "not compared"}


def pair_lines(facts: Facts, limit: int | None) -> Iterator[str | Styled]:
    """The text about two files: at most ``limit`` lines of each kind, or all.

    Args:
        facts: See `fastckpt.cli.diff_facts.pair_facts`.
        limit: None for all.
    """
    if "role" in facts and facts["same"] and not facts["notes"]:
        # Of many pairs, those that are the same take a line each.
        verdict = _verdict(facts)
        yield Styled(f"{facts['role']}: {verdict.text}", verdict.style)
        return
    if "role" in facts:
        yield Styled(facts["role"], "bold")
    if "error" in facts:
        yield Styled(f"  {facts['shown']}", "bad")
        return
    yield from columns([_side(letter, facts[letter.lower()]) for letter in "AB"])
    yield from _structure_lines(facts, limit)
    yield from _table(facts, limit)
    for name, tensor in facts["tensors"].items():
        if tensor["status"] == "differs" and tensor["numbers"] is None and not tensor["changes"]:
            yield f"  differs  {name}: by how much cannot be said"
        if tensor["error"] is not None:
            error = tensor["error"]
            yield Styled(f"  damaged  {name}: {error['message']} ({error['path']}, byte {error['offset']})", "bad")
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "dim")
    yield _verdict(facts)


def _side(letter: str, side: Facts) -> list[str]:
    size = f"{FORMATS[side['format']]}, {size_text(side['size'])}, {count_text(side['tensors'], 'tensor')}"
    return [letter, side["path"], size]


def _structure_lines(facts: Facts, limit: int | None) -> Iterator[str]:
    groups = [
        [["only in A", name, _kind(tensor)] for name, tensor in facts["only_in_a"].items()],
        [["only in B", name, _kind(tensor)] for name, tensor in facts["only_in_b"].items()],
        [
            [what, name, _arrow(change)]
            for name, tensor in facts["tensors"].items()
            for what, change in tensor["changes"].items()
        ],
        [
            ["object", place, f"{_OBJECT_WORDS[part['status']]}: {part['reason']}"]
            for place, part in facts["objects"].items()
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
            groups.append([[word, name, f"only in {side}: {_text(v)}"] for name, v in named[key].items()])
    rows: list[list[str]] = []
    for group in groups:
        rows += group[:limit]
        if limit is not None and len(group) > limit:
            rows.append([group[0][0], f"... and {len(group) - limit} more (--all lists them)", ""])
    if rows:
        yield ""
        yield from columns(rows)


def _kind(tensor: Facts) -> str:
    return f"{tensor['dtype']} {_shape(tensor['shape'])}"


def _shape(shape: list[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _arrow(change: Facts) -> str:
    a, b = _text(change["a"]), _text(change["b"])
    if a == b and "type_a" in change:
        a, b = f"{a} ({change['type_a']})", f"{b} ({change['type_b']})"
    return f"{a} -> {b}"


def _text(value: Any) -> str:
    """A value on one line; text without quotes, since names of types are text too."""
    if not isinstance(value, str):
        return value_text(value, 60)
    return value if len(value) <= 60 else value[:57] + "..."


def _table(facts: Facts, limit: int | None) -> Iterator[str]:
    differing = [item for item in facts["tensors"].items() if item[1]["numbers"] is not None]
    if not differing:
        return
    differing.sort(key=lambda item: _rank(item[1]["numbers"]))
    rows = [["most different", "dtype", "shape", "rel. L2", "max abs", "cosine", "elements that differ", ""]]
    for name, tensor in differing[:limit]:
        numbers = tensor["numbers"]
        rows.append(
            [
                name,
                tensor["dtype"],
                _shape(tensor["shape"]),
                _number(numbers["relative_l2"]),
                _number(numbers["max_abs"]),
                "-" if numbers["cosine"] is None else _number(numbers["cosine"], "{:.6f}"),
                _share(numbers["differing"], numbers["elements"]),
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


def _share(count: int, total: int) -> str:
    """``1,234 (1.9%)``: neither 0% nor 100% unless it is exactly that."""
    percent = 100 * count / total
    if 0 < percent < 0.1:
        return f"{count:,} (<0.1%)"
    if 99.9 < percent < 100:
        return f"{count:,} (>99.9%)"
    return f"{count:,} ({percent:.3g}%)"


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
    total = sum(count for count, _ in counts)
    tensors = count_text(total, "tensor")
    if totals["objects"]:
        objects = count_text(totals["objects"], "other object")
        tensors = f"{tensors} and {objects}" if total else objects
    by_digests = f"; {totals['by_digests']:,} by digests, not by data" if totals["by_digests"] else ""
    if facts["same"] is None:
        unknown = f"{count_text(totals['objects_unknown'], 'object')} of them cannot be compared"
        return Styled(f"not all compared: {tensors}, no difference found; {unknown}{by_digests}{time_text}", "warn")
    if facts["same"]:
        if totals["unread"] or facts["objects"]:
            return Styled(f"same structure: {tensors}; what is in them was not compared{time_text}", "good")
        return Styled(f"identical: {tensors}, every bit{by_digests}{time_text}", "good")
    parts = [f"{count:,} {word}" for count, word in counts if count]
    text = (
        "; ".join(
            [f"{count_text(total, 'tensor')}: {', '.join(parts)}" if parts else "no tensors", *_other_changes(facts)]
        )
        + by_digests
        + time_text
    )
    damaged = totals["damaged"] or any(part["status"] == "damaged" for part in facts["objects"].values())
    return Styled(f"{'damaged' if damaged else 'different'}: {text}", "bad" if damaged else "warn")


def _other_changes(facts: Facts) -> list[str]:
    counts: list[tuple[int, str]] = [
        (sum(map(len, facts["values"].values())), "plain value"),
        (sum(map(len, facts["metadata"].values())), "metadata value"),
        (sum(part["status"] == "differs" for part in facts["objects"].values()), "object"),
        (len(facts["containers"]), "container"),
        (sum(bool(tensor["changes"]) for tensor in facts["tensors"].values()), "tensor type"),
        (len(facts["shared_only_in_a"]) + len(facts["shared_only_in_b"]), "shared storage"),
    ]
    parts = [count_text(count, noun) for count, noun in counts if count]
    damaged = sum(part["status"] == "damaged" for part in facts["objects"].values())
    texts = [f"{', '.join(parts)} changed"] if parts else []
    return [*texts, f"{count_text(damaged, 'object')} damaged"] if damaged else texts


def summary_lines(facts: Facts) -> Iterator[str | Styled]:
    """One line about all pairs of two directories."""
    for side, key in (("A", "only_in_a"), ("B", "only_in_b")):
        if facts[key]:
            yield Styled(f"only in {side}: {', '.join(facts[key])}", "warn")
    files: list[dict[str, Any]] = facts["files"]
    same = sum(file["same"] is True for file in files)
    failed = sum("error" in file for file in files)
    open_ = sum(file["same"] is None for file in files) - failed
    different = len(files) - same - failed - open_
    parts = [(same, "the same"), (different, "different"), (open_, "not all compared"), (failed, "not comparable")]
    text = ", ".join(f"{count} {word}" for count, word in parts if count) or "none"
    style = "good" if facts["same"] else "bad" if failed else "warn"
    yield Styled(f"{count_text(len(files), 'pair')} of files: {text}", style)
