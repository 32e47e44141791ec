"""The sections of a page: each a heading, a sentence that says how to read it, and a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from fastckpt.plotting.charts import MAX_LINES, Line, are_wide, heatmap, lines
from fastckpt.plotting.chunk_states import (
    DAMAGED,
    HEALS,
    INTACT,
    LOST,
    MAX_CELLS,
    STATES,
    UNPROVEN,
    ChunkState,
    chunk_map,
    merged,
)
from fastckpt.plotting.histograms import MAX_PANELS, Panel, histograms
from fastckpt.plotting.markup import COLOURS, element, escaped, quantity, quiet, shape_words, shortened, table
from fastckpt.plotting.naming import counts_layers, parse, ranked_families
from fastckpt.plotting.numbers import ChunkMap, Healing, PlottedFile, PlottedStep, PlottedTensor
from fastckpt.plotting.summary import KindOfTensor, healing_words, kinds_of, proven_words, weights_of
from fastckpt.plotting.treemap import Leaf, tree_of, treemap
from fastckpt.text import count_text, size_text, some

_MAX_ROWS: Final = 2000
_MAX_NAME: Final = 100
_MAX_FINDINGS: Final = 30
_MAX_MODULES: Final = 60
_MEANING: Final = {
    INTACT: "proven",
    UNPROVEN: "nothing to prove it by",
    DAMAGED: "a part is wrong or missing",
    LOST: "nothing of it is left",
}
_HEALING: Final = {
    INTACT: "as sealed",
    HEALS: "comes back by parity",
    LOST: "more damage than parity",
}
_MAX_NAMED: Final = 4


def treemap_section(files: Sequence[PlottedFile]) -> Iterator[str]:
    """Bytes by module, of several files in one figure."""
    own = [tensor for file in files for tensor in file["tensors"] if not tensor["tied_to"] and tensor["nbytes"]]
    if not own:
        return
    ranked = ranked_families([tensor["name"] for tensor in own], [tensor["nbytes"] for tensor in own])
    shown = ranked[: len(COLOURS)]
    groups = {
        file["path"].rpartition("/")[2]: [
            Leaf(
                tensor["name"],
                tensor["nbytes"],
                _about(tensor),
                whole=tensor["name"] not in file["not_whole"],
                of=(tensor["of"] or "").removesuffix(".weight"),
            )
            for tensor in file["tensors"]
            if not tensor["tied_to"]
        ]
        for file in files
    }
    yield element("h2", "Bytes by module")
    tied = sum(tensor["tied_to"] is not None for file in files for tensor in file["tensors"])
    marked = " What is damaged has a red frame." if any(file["not_whole"] for file in files) else ""
    note = f" Left out: {count_text(tied, 'tensor')} in the memory of another." if tied else ""
    yield quiet(f"Areas are in proportion to bytes; {size_text(sum(t['nbytes'] for t in own))} in all.{marked}{note}")
    keys = [_key(f"k{place}", family) for place, family in enumerate(shown)]
    if len(ranked) > len(shown):
        keys.append(_key(f"k{len(COLOURS)}", f"{len(ranked) - len(shown)} more"))
    yield element("div", *keys, class_="keys")
    yield treemap(tree_of(groups), {family: place for place, family in enumerate(shown)})


def _about(tensor: PlottedTensor) -> str:
    reason = f"; {tensor['reason']}" if tensor["reason"] else ""
    of = f"; of {tensor['of']}" if tensor["of"] else ""
    return f"{tensor['dtype']} ({', '.join(map(str, tensor['shape']))}){of}{reason}"


def _key(class_: str, words: str) -> str:
    # Not self-closing: HTML would leave the element open.
    return element("span", element("i", "", class_=class_), element("bdi", escaped(words)))


def norm_section(file: PlottedFile, suffix: str) -> Iterator[str]:
    """The norm of each kind of tensor, layer by layer."""
    kinds = [kind for kind in kinds_of(file["tensors"]) if counts_layers(kind.kind)]
    layered = [kind for kind in kinds if sum(map(_drawable, kind.norms.values())) > 1]
    if not layered:
        return
    yield element("h2", escaped(f"Norms by layer{suffix}"))
    more = len(layered) - MAX_LINES
    rest = f" The {MAX_LINES} largest kinds are shown, {more} more are in the table." if more > 0 else ""
    yield quiet(f"L2 norm of each tensor, NaN and infinities left out, by the first number in its name.{rest}")
    series = [
        Line(kind.label, sorted((layer, norm) for layer, norm in kind.norms.items() if _drawable(norm)))
        for kind in layered[:MAX_LINES]
    ]
    yield lines("Norms by layer", "layer (the first number in the name)", "L2 norm", series, log=are_wide(series))


def _drawable(value: float) -> bool:
    return 0 < value < math.inf


def histogram_section(file: PlottedFile, suffix: str) -> Iterator[str]:
    """How large the numbers are, kind by kind."""
    kinds = [kind for kind in kinds_of(file["tensors"]) if any(kind.octaves)]
    if not kinds:
        return
    yield element("h2", escaped(f"Magnitudes{suffix}"))
    more = len(kinds) - MAX_PANELS
    rest = f" The {MAX_PANELS} largest kinds are shown, {more} more are not." if more > 0 else ""
    yield quiet(
        "How many numbers have which magnitude, a bar for each power of two, all layers together. All panels have the "
        f"same logarithmic axis, and the first bar holds all that is smaller; each is as high as its highest bar.{rest}"
    )
    panels = [Panel(kind.label, kind.octaves, kind.zeros, _odd(kind)) for kind in kinds[:MAX_PANELS]]
    yield histograms(panels, file["first_octave"])


def _odd(kind: KindOfTensor) -> str:
    counts = [(kind.nan, "NaN"), (kind.inf, "inf")]
    return ", ".join(f"{count:,} {word}" for count, word in counts if count)


def tensor_section(file: PlottedFile, suffix: str) -> Iterator[str]:
    """All tensors in a table, behind a fold if there are many."""
    tensors = file["tensors"]
    if not tensors:
        return
    yield element("h2", escaped(f"Tensors{suffix}"))
    names = ("name", "dtype", "shape", "size", "norm", "rms", "largest", "zeros", "NaN", "inf", "")
    head = [element("th", name, class_="left" if name in ("name", "dtype") else None) for name in names]
    rows = [_row(tensor) for tensor in tensors[:_MAX_ROWS]]
    shown = table(head, rows)
    if len(tensors) > _MAX_ROWS:
        shown = quiet(f"The first {_MAX_ROWS:,} of {len(tensors):,}; fastckpt plot --json has all.") + shown
    is_open = "open" if len(tensors) <= 60 else None
    yield element("details", element("summary", count_text(len(tensors), "tensor")), shown, open=is_open)


def _row(tensor: PlottedTensor) -> str:
    numbers = tensor["numbers"]
    cells = [
        element("td", element("bdi", escaped(shortened(tensor["name"], _MAX_NAME))), class_="left name"),
        element("td", escaped(tensor["dtype"]), class_="left"),
        element("td", shape_words(tensor["shape"])),
        element("td", size_text(tensor["nbytes"])),
    ]
    if numbers is None:
        cells.append(element("td", escaped(f"not measured: {tensor['reason']}"), colspan=7, class_="left bad why"))
    else:
        rms = "-" if numbers["rms"] is None else quantity(numbers["rms"])
        cells += [element("td", words) for words in (quantity(numbers["norm"]), rms, quantity(numbers["max_abs"]))]
        share = 100 * numbers["zeros"] / numbers["count"] if numbers["count"] else 0.0
        cells.append(element("td", f"{share:.3g}%" if numbers["zeros"] else "0"))
        for count in (numbers["nan"], numbers["inf"]):
            cells.append(element("td", f"{count:,}", class_="bad" if count else None))
        note = f"of {shortened(tensor['of'], _MAX_NAME)}" if tensor["of"] else ""
        note = f"is {shortened(tensor['tied_to'], _MAX_NAME)}" if tensor["tied_to"] else note
        cells.append(element("td", element("bdi", escaped(note)), class_="left why"))
    return element("tr", *cells)


def damage_section(file: PlottedFile, chunks: ChunkMap) -> Iterator[str]:
    """What is wrong with a damaged file, and where."""
    cells, per_cell = chunks["cells"], chunks["per_cell"]
    yield element("h2", "Damage in ", element("bdi", escaped(file["path"].rpartition("/")[2])))
    findings = [element("li", element("bdi", escaped(finding["message"]))) for finding in file["findings"]]
    if len(findings) > _MAX_FINDINGS:
        findings[_MAX_FINDINGS:] = [element("li", escaped(f"... and {len(findings) - _MAX_FINDINGS} more"))]
    yield element("ul", *findings)
    yield from _not_whole(file)
    if file["next"]:
        yield element("p", "Next: ", element("code", escaped(file["next"])))
    if not cells:
        yield quiet("Nothing in the file says what it held, so there is no map of it.")
        return
    each = "a run" if per_cell == 1 else f"{per_cell} runs, as bad as the worst of them,"
    yield quiet(
        f"{proven_words(chunks)}. Each cell is {each} of chunks in one state, as wide as it has bytes, in file order. "
        "Point at one to see whose it is."
    )
    yield _state_keys(cells, (INTACT, DAMAGED, LOST), _MEANING)
    yield chunk_map(cells, "Damage map")


def _state_keys(cells: Sequence[ChunkState], always: Collection[str], meaning: Mapping[str, str]) -> str:
    """What the colours of a map mean, and how many bytes have each; some of them even if none has."""
    counts: Counter[str] = Counter()
    for cell in cells:
        counts[cell.state] += cell.nbytes
    present = [state for state in STATES if counts[state] or state in always]
    keys = [_key(f"k-{state}", f"{state} ({meaning[state]}): {size_text(counts[state])}") for state in present]
    return element("div", *keys, class_="keys")


def healing_section(file: PlottedFile, healing: Healing) -> Iterator[str]:
    """What the parity of a damaged file brings back, and what it does not."""
    yield element("h2", "What would heal in ", element("bdi", escaped(file["path"].rpartition("/")[2])))
    runs = [run for run in healing["runs"] if run.state != INTACT]
    items = [
        element("li", escaped(f"{run.place}: {_HEALING[run.state]}: "), _names(run.tensors))
        for run in runs[:_MAX_FINDINGS]
    ]
    if len(runs) > _MAX_FINDINGS:
        items.append(element("li", escaped(f"... and {len(runs) - _MAX_FINDINGS} more")))
    words = healing_words(healing)
    yield quiet(f"{words[0].upper()}{words[1:]}.")
    yield element("ul", *items)
    cells, per_cell = merged(healing["runs"], MAX_CELLS)
    each = "a run" if per_cell == 1 else f"{per_cell} runs, as bad as the worst of them,"
    yield quiet(f"Each cell is {each} of leaves of 16 KiB in one state, in the order of the file as it was sealed.")
    yield _state_keys(cells, (INTACT, HEALS, LOST), _HEALING)
    yield chunk_map(cells, "Healing map")


def _names(tensors: Sequence[str]) -> str:
    names = [element("bdi", escaped(shortened(name, _MAX_NAME))) for name in tensors]
    return some(names, _MAX_NAMED, "tensor") if names else "no tensor"


def _not_whole(file: PlottedFile) -> Iterator[str]:
    """Which tensors the damage is in, where none of the findings that are shown says so."""
    told = {name for finding in file["findings"][:_MAX_FINDINGS] for name in finding["tensors"]}
    names = [element("bdi", escaped(shortened(name, _MAX_NAME))) for name in file["not_whole"] if name not in told]
    if names:
        yield element("p", "Not whole: ", some(names, _MAX_FINDINGS, "tensor"))


def drift_section(steps: Sequence[PlottedStep]) -> Iterator[str]:
    """How the norms of the models moved over the steps, and by how much the weights changed."""
    measured = [(step["step"], kinds_of(weights_of(step["model"]))) for step in steps if step["model"] is not None]
    series = _drift_lines(measured)
    if series:
        yield element("h2", "Norms over the steps")
        yield quiet(f"L2 norm of each kind of tensor, all layers together, over its norm at step {measured[0][0]:,}.")
        yield lines("Norms over the steps", "step", "norm over the first", series, log=are_wide(series))
    changes = [(step["step"], step["changes"]) for step in steps if step["changes"] is not None]
    rows = _change_rows(changes)
    values = [value for row in rows.values() for value in row if value]
    if not values:
        return
    yield element("h2", "Change from step to step")
    note = "L2 norm of the difference to the step before, over the norm of the step before, by module."
    if any(value is None for row in rows.values() for value in row):
        note += " A dash: damage, NaN or infinities left no number."
    yield quiet(note)
    yield heatmap(
        "Change from step to step",
        [f"{step:,}" for step, _ in changes],
        rows,
        low=min(values),
        high=max(values) * 1.0001,
        x_label="step",
        words=quantity,
    )


def _drift_lines(measured: Sequence[tuple[int, Sequence[KindOfTensor]]]) -> list[Line]:
    if len(measured) < 2:
        return []
    series = []
    for kind in measured[-1][1]:
        points = [
            (step, found.norm)
            for step, kinds in measured
            for found in kinds
            if found.kind == kind.kind and not found.unmeasured
        ]
        first = points[0][1] if points else 0.0
        ratios = [(step, norm / first) for step, norm in points if first > 0]
        if len(ratios) > 1 and all(_drawable(ratio) for _, ratio in ratios):
            series.append(Line(kind.label, ratios))
    return series[:MAX_LINES]


def _change_rows(changes: Sequence[tuple[int, Mapping[str, float | None]]]) -> dict[str, list[float | None]]:
    modules = dict.fromkeys(module for _, change in changes for module in change)
    ordered = sorted(modules, key=lambda module: (parse(module).kind, parse(module).layer or 0))
    rows = {module: [change.get(module) for _, change in changes] for module in ordered}
    finite = {m: [v for v in row if v is not None and math.isfinite(v)] for m, row in rows.items()}
    most = sorted((m for m in ordered if finite[m]), key=lambda m: -max(finite[m]))[:_MAX_MODULES]
    return {module: row for module, row in rows.items() if module in set(most)}
