"""The page: a file, or the steps of a directory, in one HTML document that is well-formed XML as well.

It loads nothing and runs nothing, and a policy in its head forbids both to
whatever might have found its way in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fastckpt.plotting.kinds import kind_section
from fastckpt.plotting.markup import element, escaped, quiet, shortened, style_sheet, table, tiles
from fastckpt.plotting.numbers import PlottedDirectory, PlottedFile
from fastckpt.plotting.optimizers import optimizer_section
from fastckpt.plotting.sections import (
    damage_section,
    drift_section,
    healing_section,
    histogram_section,
    norm_section,
    tensor_section,
    treemap_section,
)
from fastckpt.plotting.summary import bad_numbers, rate_words, total_norm, val_bpb_words, verdict
from fastckpt.text import count_text, size_text, some

_MAX_NAMED: Final = 4
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def file_page(facts: PlottedFile) -> str:
    """The page of a file; see `fastckpt.plotting.survey.measure_file`."""
    body = [*_heading(facts["path"], [facts]), *_damage([facts])]
    body += _measurements([facts], group_names=False)
    return document(facts["path"], body)


def directory_page(facts: PlottedDirectory) -> str:
    """The page of a directory; see `fastckpt.plotting.survey.measure_directory`."""
    files, newest = facts["newest"]["files"], facts["newest"]["step"]
    count = len(facts["steps"])
    which = "the only one" if count == 1 else f"the newest of {count_text(count, 'step')}"
    body = _heading(facts["path"], files, of=f"Step {newest:,}, {which}")
    body += _steps_table(facts)
    models = [step["model"] for step in facts["steps"] if step["model"] is not None]
    # The newest model is among both.
    body += _damage({id(file): file for file in (*models, *files)}.values())
    body += drift_section(facts["steps"])
    if files:
        body.append(element("h1", escaped(f"Step {newest:,}")))
        body += _measurements(files, group_names=len(files) > 1)
    return document(facts["path"], body)


def _measurements(files: Sequence[PlottedFile], *, group_names: bool) -> Iterator[str]:
    yield from treemap_section(files)
    for file in files:
        suffix = f" of {file['path'].rpartition('/')[2]}" if group_names else ""
        yield from optimizer_section(file, suffix)
        yield from kind_section(file, suffix)
        yield from norm_section(file, suffix)
        yield from histogram_section(file, suffix)
        yield from tensor_section(file, suffix)


def document(path: str, body: Iterable[str]) -> str:
    """A page with this title and what is in it."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", escaped(f"{path} - fastckpt plot")),
        element("style", style_sheet()),
    )
    content = element("body", "\n".join(body))
    page = element("html", "\n", head, "\n", content, "\n", xmlns="http://www.w3.org/1999/xhtml", lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _heading(path: str, files: Sequence[PlottedFile], of: str | None = None) -> list[str]:
    tensors = [tensor for file in files for tensor in file["tensors"]]
    own = [tensor for tensor in tensors if tensor["tied_to"] is None]
    bad = sum(map(bad_numbers, tensors))
    counted = [
        (size_text(sum(file["size"] for file in files)), "in " + count_text(len(files), "file"), None),
        (f"{len(tensors):,}", "tensors", None),
        (f"{sum(tensor['elements'] for tensor in own):,}", "elements", None),
        (f"{bad:,}", "NaN and infinities", "bad" if bad else None),
    ]
    parts = [element("h1", element("bdi", escaped(path)))]
    if of is not None:
        parts.append(quiet(of))
    parts.append(tiles(counted))
    for file in files:
        words, kind = verdict(file)
        name = f"{file['path'].rpartition('/')[2]}: " if len(files) > 1 else ""
        parts.append(element("p", element("bdi", escaped(name)), element("b", escaped(words), class_=kind)))
    spoilt = [tensor for tensor in tensors if bad_numbers(tensor)]
    if spoilt:
        names = [element("bdi", escaped(f"{shortened(t['name'], 60)} ({bad_numbers(t):,})")) for t in spoilt]
        parts.append(element("p", "NaN or infinities in ", some(names, _MAX_NAMED, "tensor"), class_="bad"))
    return parts


def _steps_table(facts: PlottedDirectory) -> Iterator[str]:
    yield element("h2", "Steps")
    if facts["left_out"]:
        left_out = count_text(facts["left_out"], "step")
        yield quiet(f"{left_out} in between are not shown.")
    has_loss = any(step["val_bpb"] is not None for step in facts["steps"])
    names = ("step", "model", "tensors", *(["val_bpb"] if has_loss else []), "lr", "norm", "NaN, inf", "verified")
    head = [element("th", name, class_="left" if name == "verified" else None) for name in names]
    rows = []
    for step in facts["steps"]:
        model = step["model"]
        said = (*([val_bpb_words(step["val_bpb"])] if has_loss else []), rate_words(step["lr"]))
        if model is None:
            cells = ["-", "-", *said, "-", "-", step["error"] or ""]
            kind = "bad"
        else:
            words, kind = verdict(model)
            bad = sum(map(bad_numbers, model["tensors"]))
            count, norm = f"{len(model['tensors']):,}", total_norm(model)
            cells = [size_text(model["size"]), count, *said, norm, f"{bad:,}", words]
        last = element("td", escaped(cells.pop()), class_=f"left {kind}")
        others = [element("td", escaped(cell)) for cell in (f"{step['step']:,}", *cells)]
        rows.append(element("tr", *others, last))
    yield table(head, rows)
    for failed in facts["newest"]["failed"]:
        yield element("p", element("bdi", escaped(failed["path"])), escaped(f": {failed['error']}"), class_="bad")


def _damage(files: Iterable[PlottedFile]) -> Iterator[str]:
    for file in files:
        if file["chunks"] is not None:
            yield from damage_section(file, file["chunks"])
        if file["healing"] is not None:
            yield from healing_section(file, file["healing"])
