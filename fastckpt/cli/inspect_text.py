"""``fastckpt inspect`` of one file as text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice, takewhile
from typing import Any

from fastckpt.cli.file_facts import InspectDocument, KeyFacts, TensorFacts
from fastckpt.cli.nanochat_facts import config_line, nanochat_line
from fastckpt.cli.render import Styled, columns, value_text
from fastckpt.stored.optimizer_facts import OptimizerFacts
from fastckpt.stored.optimizer_words import MOST_OPTIONS, group_rows, heading, option_names
from fastckpt.text import collapse, count_text, size_text, some

_SHOWN_TENSORS = 60
_SHOWN_NAMES = 8
_SHOWN_KEYS = 200
_SHOWN_VALUES = 1000
FORMATS = {
    "fckpt": ".fckpt",
    "torch-zip": "torch .pt (zip)",
    "torch-legacy": "torch .pt (before 1.6)",
    "safetensors": ".safetensors",
    "shards": "model in shards",
    "set": "set of .fckpt shards",
    "dcp": "torch.distributed.checkpoint",
    "json": "JSON",
}
_CHECKSUMS = {
    "xxh3": "XXH3 of every 16 KiB; the structure was verified, tensors are by fastckpt verify",
    "crc32": "CRC-32 of every record, compared by fastckpt verify, never by torch.load",
    "crc32 (partly)": "CRC-32 of some records only",
    "none": "none: what is in this file cannot be proven",
}

_SEALS = {
    "there": "XXH3 of every 16 KiB, beside the file; not compared here, but by fastckpt verify and load",
    "stale": "there is one beside the file, and it is of another name or size",
    "damaged": "there is one beside the file, and it is damaged",
}


def file_lines(facts: InspectDocument, *, tree: bool, each: bool) -> Iterator[str | Styled]:
    """The text about one file.

    Args:
        facts: See `fastckpt.cli.file_facts.file_facts`.
        tree: All values as a tree, in place of the list of tensors.
        each: One line for each tensor, and nothing else.
    """
    if each:
        yield from _tensor_lines(facts, collapsed=False)
        return
    yield Styled(facts["path"], "bold")
    yield from columns(list(_summary(facts)))
    for note in _warnings(facts):
        yield Styled(f"  {note}", "warn")
    for optimizer in facts["optimizers"]:
        yield ""
        yield from _optimizer_lines(optimizer)
    if tree:
        yield ""
        yield from _tree_lines(facts)
    elif facts["tensors"]:
        yield ""
        yield from _tensor_lines(facts, collapsed=True)


def _optimizer_lines(facts: OptimizerFacts) -> Iterator[str | Styled]:
    yield Styled(heading(facts), "bold")
    if facts["groups"]:
        yield from columns(group_rows(facts))
    more = len(option_names(facts)) - MOST_OPTIONS
    if more > 0:
        yield f"  {more} more options (--json lists all)"


def _summary(facts: InspectDocument) -> Iterator[list[str]]:
    totals = facts["totals"]
    version = f" version {facts['version']}" if facts["version"] is not None else ""
    saved = f", saved as {facts['saved_as']}" if facts["saved_as"] else ""
    yield ["format", f"{FORMATS[facts['format']]}{version}, {size_text(facts['size'])}{saved}"]
    if facts["how_to_pack"] is not None:
        yield ["unpacked", f"this is a folder, read as the .pt it was; to pack it: {facts['how_to_pack']}"]
    if facts["program"] is not None:
        what = f"{facts['program']}: a program, which was not run, and its tensors"
        yield ["archive", f"{what}; convert carries all of it and gives it back byte for byte"]
    if facts["root"] is not None:
        yield ["root digest", facts["root"]]
    is_sealed = facts["seal"] == "there"
    yield [
        "checksums",
        "none of its own" if is_sealed and facts["checksums"] == "none" else _CHECKSUMS[facts["checksums"]],
    ]
    if facts["seal"] is not None:
        yield ["seal", _SEALS[facts["seal"]]]
    if facts["parity"] is not None:
        yield ["parity", f"{facts['parity']} inside: fastckpt repair heals damage by it"]
    for name, codec in facts["codecs"].items():
        raw, stored = codec["raw"], codec["stored"]
        smaller = f" as {size_text(stored)}, {raw / stored:.2f} times smaller" if stored != raw else ""
        yield ["codec", f"{name}, {size_text(raw)}{smaller}"]
    if facts["original"] is not None:
        kind, size = facts["original"]["format"], facts["original"]["size"]
        if kind == "damaged":
            yield [
                "converted",
                "the bytes that only the original file had are damaged; convert --no-exact does without them",
            ]
        else:
            yield ["converted", f"from {FORMATS.get(kind, kind)}, {size_text(size)}; can be given back byte for byte"]
    for key, value in facts["metadata"].items():
        yield ["metadata", f"{key} = {value_text(value)}"]
    structure = facts["structure"]
    attributes = "".join(f", with {name} ({what})" for name, what in structure["attributes"].items())
    yield ["structure", structure["type"] + attributes]
    if any(item["type"] != "Tensor" for item in structure["keys"].values()):
        below = _Below(facts["scalars"])
        for name, item in islice(structure["keys"].items(), _SHOWN_KEYS):
            yield ["", f"{name}: {_top_level(name, item, below)}"]
        rest = len(structure["keys"]) - _SHOWN_KEYS
        if rest > 0:
            yield ["", f"... and {rest} more (--json lists all)"]
    elements = count_text(totals["elements"], "element")
    if totals["params"]:
        elements = count_text(totals["params"], "parameter")
    unique = f" in {totals['storages']} storages" if totals["storages"] != totals["tensors"] else ""
    yield ["tensors", f"{totals['tensors']:,}{unique}, {elements}, {size_text(totals['storage_nbytes'])}"]
    for dtype, total in totals["dtypes"].items():
        count = f"{count_text(total['tensors'], 'tensor')}, {count_text(total['elements'], 'element')}"
        yield ["", f"{dtype}: {count}, {size_text(total['nbytes'])}"]
    if facts["locations"]:
        yield [
            "saved on",
            ", ".join(f"{place} ({count_text(n, 'storage')})" for place, n in facts["locations"].items()),
        ]
    if facts["nanochat"] is not None:
        yield ["nanochat", nanochat_line(facts["nanochat"])]
        config = config_line(facts["nanochat"])
        if config is not None:
            yield ["config", config]


class _Below:
    """The plain values of a file, to be found by the beginning of their names without looking at all of them."""

    def __init__(self, scalars: Mapping[str, Any]) -> None:
        self.scalars = scalars
        self._sorted = sorted((name, place) for place, name in enumerate(scalars))

    def below(self, name: str) -> Iterator[tuple[str, Any]]:
        """Names and values of those below ``name``, in their order; of very many not the last ones."""
        first = bisect_left(self._sorted, (f"{name}.", 0))
        found = takewhile(lambda item: item[0].startswith(f"{name}."), islice(self._sorted, first, None))
        for key, _ in sorted(islice(found, _SHOWN_VALUES), key=lambda item: item[1]):
            yield key, self.scalars[key]


def _top_level(name: str, item: KeyFacts, values: _Below) -> str:
    if item["tensors"]:
        return f"{item['type']}, {count_text(item['tensors'], 'tensor')}, {size_text(item['nbytes'])}"
    if name in values.scalars:
        return value_text(values.scalars[name])
    if item["type"].startswith("list"):
        return str(item["type"])
    inner = ", ".join(f"{key[len(name) + 1 :]} {value_text(value, 40)}" for key, value in values.below(name))
    shown = inner if len(inner) <= 400 else inner[:397] + "..."
    return f"{item['type']}: {shown}" if inner else str(item["type"])


def _warnings(facts: InspectDocument) -> Iterator[str]:
    for names in facts["shared_storages"][:_SHOWN_NAMES]:
        yield f"shared storage: {some(names, _SHOWN_NAMES)}"
    rest = len(facts["shared_storages"]) - _SHOWN_NAMES
    if rest > 0:
        yield f"shared storage: {rest} more"
    for item in facts["opaque"][:_SHOWN_NAMES]:
        yield f"opaque: {item['at']} is a {item['what']}, which was not imported or run"
    rest = len(facts["opaque"]) - _SHOWN_NAMES
    if rest > 0:
        yield f"opaque: {rest} more (--json lists all)"
    if facts["nanochat"] is not None:
        yield from facts["nanochat"]["notes"]


def _like(tensor: TensorFacts) -> tuple[str, str, int, str]:
    """What a tensor has in common with its numbered siblings."""
    shape = ", ".join(map(str, tensor["shape"])) + ("," if len(tensor["shape"]) == 1 else "")
    marks = [] if tensor["contiguous"] else [f"stride {tuple(tensor['stride'])}"]
    marks += ["requires_grad"] if tensor["requires_grad"] else []
    return f"({shape})", tensor["dtype"], tensor["nbytes"], ", ".join(marks)


def _tensor_lines(facts: InspectDocument, *, collapsed: bool) -> Iterator[str]:
    tensors = [(name, _like(tensor)) for name, tensor in facts["tensors"].items()]
    rows = []
    if collapsed:
        # Counters, such as those of an optimizer, stand behind what has a shape: they would be every other line.
        for group in collapse(sorted(tensors, key=lambda item: item[1][0] == "()")):
            shape, dtype, nbytes, marks = group.like
            times = f"{group.times} x" if group.times > 1 else ""
            rows.append([group.name, times, shape, dtype, size_text(nbytes * group.times), marks])
    else:
        rows = [[name, "", *like[:2], size_text(like[2]), like[3]] for name, like in tensors]
    limit = _SHOWN_TENSORS if collapsed else len(rows)
    yield from columns(rows[:limit], right=(1, 4))
    if len(rows) > limit:
        yield f"  ... and {len(rows) - limit} more lines (--tree or --keys GLOB shows them)"


def _tree_lines(facts: InspectDocument) -> Iterator[str]:
    leaves: list[tuple[str, Any]] = [(name, _like(tensor)) for name, tensor in facts["tensors"].items()]
    leaves += [(name, value_text(value)) for name, value in facts["scalars"].items()]
    root: dict[str, Any] = {}
    for group in collapse(leaves):
        node = root
        for segment in group.segments[:-1]:
            node = node.setdefault(segment, {})
            if not isinstance(node, dict):
                break
        else:
            node.setdefault(group.segments[-1], (group.times, group.like))
            continue
        root[group.name] = (group.times, group.like)
    yield from _nodes(root, 1)


def _nodes(node: dict[str, Any], depth: int) -> Iterator[str]:
    rows = []
    for name, item in node.items():
        # A chain of only children stands on one line.
        while isinstance(item, dict) and len(item) == 1:
            ((inner, item),) = item.items()
            name = f"{name}.{inner}"
        rows.append((name, item))
    width = min(max((len(name) for name, _ in rows), default=0), 40)
    for name, item in rows:
        if isinstance(item, dict):
            yield "  " * depth + name
            yield from _nodes(item, depth + 1)
            continue
        count, like = item
        text = f"= {like}" if isinstance(like, str) else f"{like[0]} {like[1]}  {size_text(like[2] * count)}  {like[3]}"
        times = f"{count} x " if count > 1 else ""
        yield f"{'  ' * depth}{name.ljust(width)}  {times}{text}".rstrip()
