"""What the name of a nanochat checkpoint file, its tensors and the JSON beside it tell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, Final, TypedDict

from fastckpt.errors import FastckptError
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.nanochat.checks import world_size_by_shapes
from fastckpt.nanochat.meta import made_anew, read_meta
from fastckpt.nanochat.model_tensors import padded_vocabulary
from fastckpt.nanochat.names import META, OPTIM, Stem, parse_name, parse_stem
from fastckpt.stored.inspection import Inspection
from fastckpt.text import some

_LAYER: Final = re.compile(r"(?:^|\.)transformer\.h\.(\d+)\.")


class MetaFacts(TypedDict):
    path: str
    step: Any
    val_bpb: Any
    model_config: Any


class ModelShape(TypedDict, total=False):
    depth: int
    n_embd: int | None
    vocab_size: int | None


class NanochatFacts(ModelShape):
    role: str | None
    step: int | None
    rank: int | None
    world_size: int | None
    meta: MetaFacts | None
    notes: list[str]


def nanochat_facts(inspection: Inspection) -> NanochatFacts | None:
    """The facts about one file; None if nothing about it says nanochat."""
    directory, name = os.path.split(inspection.path)
    parsed = parse_name(name)
    shape = _model_shape(inspection)
    if parsed is None and shape is None:
        return None
    facts: NanochatFacts = {"role": None, "step": None, "rank": None, "world_size": None, "meta": None, "notes": []}
    if shape is not None:
        facts["depth"], facts["n_embd"], facts["vocab_size"] = shape
    if parsed is not None:
        stem = parsed[0]
        facts |= {"role": stem.role, "step": stem.step, "rank": stem.rank}
        facts["meta"] = meta_facts(os.path.join(directory, f"{Stem(META, stem.step)}.json"))
        saved = parse_stem(inspection.saved_as or "")
        if saved is not None and saved != stem:
            facts["notes"].append(f"this file was saved under the name {saved}: renamed, or swapped?")
    if facts["role"] == OPTIM and facts["meta"] is not None:
        facts["world_size"] = _world_size(inspection, facts["meta"].get("model_config"))
    return facts


def _model_shape(inspection: Inspection) -> tuple[int, int | None, int | None] | None:
    """Depth, width and vocabulary as the names and shapes of a model's tensors tell them."""
    layers = {int(match[1]) for entry in inspection.entries if (match := _LAYER.search(entry.name))}
    if not layers:
        return None
    embedding = next((e for e in inspection.entries if e.name.endswith("transformer.wte.weight")), None)
    vocabulary, width = embedding.shape if embedding is not None and len(embedding.shape) == 2 else (None, None)
    return max(layers) + 1, width, vocabulary


def _world_size(inspection: Inspection, model_config: Any) -> int | None:
    """How many ranks shared the first parameter, lm_head, as the file beside and this one tell."""
    vocab = model_config.get("vocab_size") if isinstance(model_config, dict) else None
    if type(vocab) is not int or vocab < 1:
        return None
    for _, optimizer in find_optimizers(inspection.tree):
        first = optimizer["state"].get(0)
        ref = first.get("exp_avg") if isinstance(first, dict) else None
        if type(ref) is not TensorRef:
            return None
        return world_size_by_shapes(padded_vocabulary(vocab), inspection.entries[ref.entry].shape)
    return None


def meta_facts(path: str) -> MetaFacts | None:
    """Step, val_bpb and model_config of a ``meta_000500.json``; None if there is none that can be read."""
    try:
        meta = read_meta(path)
    except FastckptError:
        return None
    return {
        "path": path,
        "step": meta.get("step"),
        "val_bpb": meta.get("val_bpb"),
        "model_config": meta.get("model_config"),
    }


def notes_on_meta(paths: Iterable[str]) -> dict[str, str]:
    """What is said of the meta files beside files of steps: by path, those that are not as their save wrote them."""
    notes: dict[str, str] = {}
    for path in paths:
        directory, name = os.path.split(path)
        parsed = parse_name(name)
        meta_path = os.path.join(directory, f"{Stem(META, parsed[0].step)}.json") if parsed is not None else ""
        if not meta_path or meta_path in notes:
            continue
        try:
            names = made_anew(read_meta(meta_path))
        except FastckptError:
            continue  # Whether a step is whole is what doctor says.
        if names:
            notes[meta_path] = f"{some(names, 3)} made anew, not those of its save"
    return notes


def nanochat_line(facts: NanochatFacts) -> str:
    """The facts about one file on one line."""
    parts = []
    if facts["role"] is not None:
        rank = f" of rank {facts['rank']}" if facts["rank"] is not None else ""
        world = f" (of {facts['world_size']} by its shapes)" if facts["world_size"] is not None else ""
        role = "optimizer" if facts["role"] == OPTIM else "model"
        parts += [f"{role}{rank}{world}", f"step {facts['step']}"]
    if facts.get("depth") is not None:
        parts += [f"depth {facts['depth']}", f"n_embd {facts['n_embd']}", f"vocab {facts['vocab_size']}"]
    meta = facts["meta"]
    if meta is not None:
        parts.append(f"val_bpb {meta['val_bpb']:.4f}" if isinstance(meta["val_bpb"], float) else "val_bpb not known")
    return ", ".join(parts)


def config_line(facts: NanochatFacts) -> str | None:
    """The model_config of the JSON beside the file, on one line."""
    config = facts["meta"].get("model_config") if facts["meta"] is not None else None
    if not isinstance(config, dict):
        return None
    return ", ".join(f"{key} {value}" for key, value in config.items())
