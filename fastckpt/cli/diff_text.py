"""``fastckpt diff`` as text: what changed in the structure, the most different tensors, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastckpt.cli.diff_facts import (
    ChangeFacts,
    ComparedFiles,
    DiffDirectoriesDocument,
    DiffDocument,
    DifferenceNumbers,
    NamedChanges,
    Prefixes,
    TensorType,
)
from fastckpt.cli.inspect_text import FORMATS
from fastckpt.cli.render import Styled, columns, value_text
from fastckpt.stored.comparison import Side
from fastckpt.stored.plain import plain
from fastckpt.text import count_text, duration_text, size_text
from fastckpt.verdicts import Verdict

_OBJECT_WORDS = {"differs": "differs", "unknown": "not compared", "damaged": "damaged"}


def pair_lines(facts: DiffDocument, limit: int | None, *, role: str | None = None) -> Iterator[str | Styled]:
    """The text about two files: at most ``limit`` lines of each kind, or all.

    Args:
        facts: See `fastckpt.cli.diff_facts.pair_facts`.
        limit: None for all.
        role: What the two are, if they are not the only ones.
    """
    if role is not None and facts["same"] and not facts["notes"]:
        # Of many pairs, those that are the same take a line each.
        verdict = verdict_line(facts)
        yield Styled(f"{role}: {verdict.text}", verdict.style)
        return
    if role is not None:
        yield Styled(role, "bold")
    yield from columns([_side("A", facts["a"]), _side("B", facts["b"])])
    yield from _structure_lines(facts, limit)
    yield from _table(facts, limit)
    unknown = [
        name
        for name, tensor in facts["tensors"].items()
        if tensor["status"] == "differs" and tensor["numbers"] is None and not tensor["changes"]
    ]
    yield from (f"  differs  {name}: by how much cannot be said" for name in unknown[:limit])
    if limit is not None and len(unknown) > limit:
        yield f"  ... and {len(unknown) - limit} more that differ (--top N or --all shows them)"
    for name, tensor in facts["tensors"].items():
        if tensor["error"] is not None:
            error = tensor["error"]
            yield Styled(f"  damaged  {name}: {error['message']} ({error['path']}, byte {error['offset']})", "bad")
    for note in facts["notes"]:
        yield Styled(f"  note: {note}", "dim")
    yield _timed(facts)


def _side(letter: str, side: Side) -> list[str]:
    size = f"{FORMATS[side.format]}, {size_text(side.size)}, {count_text(side.tensors, 'tensor')}"
    return [letter, side.path, size]


def _structure_lines(facts: ComparedFiles, limit: int | None) -> Iterator[str]:
    groups = [
        [["only in A", name, _kind(tensor)] for name, tensor in facts["only_in_a"].items()],
        [["only in B", name, _kind(tensor)] for name, tensor in facts["only_in_b"].items()],
        [
            [what, name, _arrow(change)]
            for name, tensor in facts["tensors"].items()
            for what, change in tensor["changes"].items()
        ],
        [["object", place, f"{_OBJECT_WORDS[part.status]}: {part.reason}"] for place, part in facts["objects"].items()],
        [["container", place, _arrow(change)] for place, change in facts["containers"].items()],
        [["shared", ", ".join(names), "in one storage only in A"] for names in facts["shared_only_in_a"]],
        [["shared", ", ".join(names), "in one storage only in B"] for names in facts["shared_only_in_b"]],
    ]
    for word, named in (("value", facts["values"]), ("metadata", facts["metadata"])):
        groups.append([[word, name, _arrow(change)] for name, change in named["changed"].items()])
        groups.append([[word, name, f"only in A: {_text(value)}"] for name, value in named["only_in_a"].items()])
        groups.append([[word, name, f"only in B: {_text(value)}"] for name, value in named["only_in_b"].items()])
    rows: list[list[str]] = []
    for group in groups:
        rows += group[:limit]
        if limit is not None and len(group) > limit:
            rows.append([group[0][0], f"... and {len(group) - limit} more (--all lists them)", ""])
    if rows:
        yield ""
        yield from columns(rows)


def _kind(tensor: TensorType) -> str:
    return f"{tensor['dtype']} {_shape(tensor['shape'])}"


def _shape(shape: list[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _arrow(change: ChangeFacts) -> str:
    a, b = _text(change["a"]), _text(change["b"])
    if a == b and "type_a" in change:
        a, b = f"{a} ({change['type_a']})", f"{b} ({change['type_b']})"
    return f"{a} -> {b}"


def _text(value: Any) -> str:
    """A value on one line; text without quotes, since names of types are text too."""
    if not isinstance(value, str):
        return value_text(value, 60)
    return value if len(value) <= 60 else value[:57] + "..."


def _table(facts: ComparedFiles, limit: int | None) -> Iterator[str]:
    differing = [
        (name, tensor, tensor["numbers"]) for name, tensor in facts["tensors"].items() if tensor["numbers"] is not None
    ]
    if not differing:
        return
    differing.sort(key=lambda item: _rank(item[2]))
    rows = [["most different", "dtype", "shape", "rel. L2", "max abs", "cosine", "elements that differ", ""]]
    for name, tensor, numbers in differing[:limit]:
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


def _rank(numbers: DifferenceNumbers) -> tuple[float, ...]:
    """Sorts NaN before infinity before all numbers, larger ones first."""
    relative = numbers["relative_l2"]
    if not math.isfinite(relative):
        return (-2.0 if math.isnan(relative) else -1.0,)
    return 0.0, -relative, -numbers["differing"]


def _number(value: float, form: str = "{:.3g}") -> str:
    return form.format(value) if math.isfinite(value) else str(plain(value))


def _share(count: int, total: int) -> str:
    """``1,234 (1.9%)``: neither 0% nor 100% unless it is exactly that."""
    percent = 100 * count / total
    if 0 < percent < 0.1:
        return f"{count:,} (<0.1%)"
    if 99.9 < percent < 100:
        return f"{count:,} (>99.9%)"
    return f"{count:,} ({percent:.3g}%)"


def _remark(numbers: DifferenceNumbers) -> str:
    remarks = []
    if numbers["values_equal"]:
        bits = numbers["differing_bits"]
        remarks.append("equal values" + (f", other bits in {count_text(bits, 'element')}" if bits else ""))
    for what, counts in (("NaN", numbers["nan"]), ("inf", numbers["inf"])):
        if counts["a"] or counts["b"]:
            remarks.append(f"{what} {counts['a']:,} -> {counts['b']:,}")
    return ", ".join(remarks)


def _timed(facts: DiffDocument) -> Styled:
    line = verdict_line(facts)
    return Styled(f"{line.text} ({duration_text(facts['seconds'])})", line.style)


def verdict_line(facts: DiffDocument) -> Styled:
    """What is said of two files in a sentence."""
    totals = facts["totals"]
    if facts["roots_equal"]:
        tensors = f"{count_text(totals['identical'], 'tensor')} and " if totals["identical"] else ""
        text = f"{Verdict.EQUAL_DIGESTS}: {tensors}all values were saved the same"
        return Styled(f"{text}; what is there now was not read", "good")
    counts = [(totals["identical"], "identical"), (totals["differs"], "differ"), (totals["damaged"], "damaged")]
    counts += [(totals["unread"], "not read"), (totals["only_in_a"], "only in A"), (totals["only_in_b"], "only in B")]
    total = sum(count for count, _ in counts)
    tensors = count_text(total, "tensor")
    if totals["objects"]:
        objects = count_text(totals["objects"], "other object")
        tensors = f"{tensors} and {objects}" if total else objects
    by_digests = f"; {totals['by_digests']:,} by digests, not by data" if totals["by_digests"] else ""
    if facts["same"] is None:
        open_ = [f"{count_text(totals['objects_unknown'], 'object')} of them cannot be compared"]
        reasons = open_ if totals["objects_unknown"] else []
        if facts["uncompared"]:
            reasons.append(f"a .safetensors cannot hold {', '.join(facts['uncompared'])}")
        why = "; ".join(reasons)
        return Styled(f"not all compared: {tensors}, no difference found; {why}{by_digests}", "warn")
    if facts["same"]:
        if totals["unread"] or facts["objects"]:
            return Styled(f"{Verdict.SAME_STRUCTURE}: {tensors}; what is in them was not compared", "good")
        if totals["by_digests"]:
            return Styled(f"{Verdict.EQUAL_DIGESTS}: {tensors}{by_digests}", "good")
        every = f"{tensors}, every bit" if total or totals["objects"] else "no tensors, and the same plain values"
        return Styled(f"{Verdict.IDENTICAL}: {every}", "good")
    parts = [f"{count:,} {word}" for count, word in counts if count]
    texts = [f"{count_text(total, 'tensor')}: {', '.join(parts)}" if parts else "no tensors", *_other_changes(facts)]
    if facts["renamed"]:
        texts.insert(0, f"the same names under the prefix {_prefixes(facts['renamed'])}")
    text = "; ".join(texts) + by_digests
    damaged = totals["damaged"]
    return Styled(f"{'damaged' if damaged else 'different'}: {text}", "bad" if damaged else "warn")


def _prefixes(renamed: Prefixes) -> str:
    """``_orig_mod. (A)``: the prefix, and which file has it."""
    sides = [(renamed["prefix_a"], "A"), (renamed["prefix_b"], "B")]
    return " and ".join(f"{prefix} ({side})" for prefix, side in sides if prefix)


def _other_changes(facts: ComparedFiles) -> list[str]:
    counts: list[tuple[int, str]] = [
        (_count(facts["values"]), "plain value"),
        (_count(facts["metadata"]), "metadata value"),
        (sum(part.status == "differs" for part in facts["objects"].values()), "object"),
        (len(facts["containers"]), "container"),
        (sum(bool(tensor["changes"]) for tensor in facts["tensors"].values()), "tensor type"),
        (len(facts["shared_only_in_a"]) + len(facts["shared_only_in_b"]), "shared storage"),
    ]
    parts = [count_text(count, noun) for count, noun in counts if count]
    return [f"{', '.join(parts)} changed"] if parts else []


def _count(named: NamedChanges) -> int:
    return len(named["only_in_a"]) + len(named["only_in_b"]) + len(named["changed"])


def summary_lines(facts: DiffDirectoriesDocument) -> Iterator[str | Styled]:
    """One line about all pairs of two directories."""
    if facts["only_in_a"]:
        yield Styled(f"only in A: {', '.join(facts['only_in_a'])}", "warn")
    if facts["only_in_b"]:
        yield Styled(f"only in B: {', '.join(facts['only_in_b'])}", "warn")
    files = facts["files"]
    same = sum(file["same"] is True for file in files)
    failed = sum("error" in file for file in files)
    open_ = sum(file["same"] is None for file in files) - failed
    different = len(files) - same - failed - open_
    parts = [(same, "the same"), (different, "different"), (open_, "not all compared"), (failed, "not comparable")]
    text = ", ".join(f"{count} {word}" for count, word in parts if count) or "none"
    # What "the same" means of each pair, its own line says.
    style = "bold" if facts["same"] else "bad" if failed else "warn"
    yield Styled(f"{count_text(len(files), 'pair')} of files: {text}", style)
