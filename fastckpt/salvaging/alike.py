"""Names, shapes and dtypes for storages whose own structure is lost: from a checkpoint built alike.

The given ``--like``, a sibling in the same directory (another rank or step of
the same training), or what nanochat's model config implies. One is used only
if every storage that was found has the size it says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

from fastckpt.errors import FastckptError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.tree import TensorRef
from fastckpt.nanochat.model_tensors import model_tensors, read_model_config
from fastckpt.nanochat.names import META, MODEL, Stem, parse_name
from fastckpt.sets.steps import series_of_name, step_in
from fastckpt.surveying.blueprint import Blueprint, FindBlueprint, does_not_fit, read_blueprint
from fastckpt.surveying.survey import survey
from fastckpt.surveying.wreck import Wreck

MAX_SIBLINGS = 8
"""Files of a directory that are looked at for a structure that fits."""


def blueprint_finder(path: str, like: str | None) -> FindBlueprint:
    """A search for a structure for the file ``path``.

    Raises (the search, not this call):
        FastckptError: ``like`` was given and cannot be read.
    """

    def find(found: Mapping[str, int], notes: list[str]) -> Blueprint | None:
        if like is not None:
            blueprint = read_blueprint(like, "like")
            matching = blueprint.matches(found)
            if blueprint.fits(found):
                return blueprint
            if blueprint.fits(found, share=0.5):
                blueprint.doubt = f"names and shapes are not certain: {like} has {matching} of {len(found)} storages"
                return blueprint
            notes.append(does_not_fit(like, matching, len(found)))
        for sibling in siblings(path):
            try:
                blueprint = read_blueprint(sibling, "sibling")
            except FastckptError:
                continue
            if blueprint.fits(found):
                return blueprint
        return _from_config(path, found)

    return find


def survey_as_named(path: str, *, threads: int) -> Wreck:
    """What stands of a file, with the structure that its name and its directory imply where its own is lost.

    Raises what `survey` raises.
    """
    return survey(path, threads=threads, find_blueprint=blueprint_finder(path, None))


def siblings(path: str) -> Iterator[str]:
    """Files in the same directory that should have the same structure, the closest first."""
    directory, name = os.path.split(path)
    parsed = parse_name(name)
    if parsed is None:
        yield from _of_other_steps(directory, name)
        return
    own = parsed[0]
    ranked: list[tuple[tuple[int, int, int], str]] = []
    for other_name in os.listdir(directory or os.curdir):
        other = parse_name(other_name)
        if other is None or other_name == name or other[0].role != own.role:
            continue
        stem = other[0]
        # Other ranks of the same step have the same plain values too.
        rank_distance = abs((stem.rank or 0) - (own.rank or 0))
        if stem.step != own.step and rank_distance:
            continue
        ranked.append(((abs(stem.step - own.step), stem.step, rank_distance), os.path.join(directory, other_name)))
    for _, other_path in sorted(ranked)[:MAX_SIBLINGS]:
        yield other_path


def _of_other_steps(directory: str, name: str) -> Iterator[str]:
    """Files of which the name is the same but for the step that it says."""
    series, own = series_of_name(name), step_in(name)
    if series is None or own is None or not os.path.isdir(directory or os.curdir):
        return
    ranked = []
    for other in os.listdir(directory or os.curdir):
        step = step_in(other)
        if other != name and step is not None and series_of_name(other) == series:
            ranked.append((abs(step - own), step, os.path.join(directory, other)))
    for _, _, path in sorted(ranked)[:MAX_SIBLINGS]:
        yield path


def _from_config(path: str, found: Mapping[str, int]) -> Blueprint | None:
    """What nanochat's model config says, if ``path`` is a model file and its meta file is whole."""
    directory, name = os.path.split(path)
    parsed = parse_name(name)
    if parsed is None or parsed[0].role != MODEL:
        return None
    meta = os.path.join(directory, f"{Stem(META, parsed[0].step)}.json")
    config = read_model_config(meta)
    return model_blueprint(config, found, meta) if config is not None else None


def model_blueprint(config: Mapping[str, int], found: Mapping[str, int], meta: str) -> Blueprint | None:
    """The structure of a model with this config, if the storages that were found fit it."""
    # Without a single storage, nothing says that the config and the file belong together.
    if not found:
        return None
    candidates = [_with_embeddings(config, dtype, meta) for dtype in ("float32", "bfloat16")]
    best = max(candidates, key=lambda blueprint: blueprint.matches(found))
    return best if best.fits(found) else None


def _with_embeddings(config: Mapping[str, int], embedding: str, meta: str) -> Blueprint:
    entries = []
    sizes = []
    for number, (name, shape, is_embedding) in enumerate(model_tensors(config)):
        dtype = embedding if is_embedding else "float32"
        entries.append(Entry(name, dtype, shape, contiguous_stride(shape), number, 0))
        sizes.append((str(number), math.prod(shape) * BY_NAME[dtype].itemsize))
    tree = {entry.name: TensorRef(number) for number, entry in enumerate(entries)}
    note = f"names, shapes and dtypes follow from the model config in {meta}"
    return Blueprint("nanochat order", tree, entries, sizes, notes=[note])
