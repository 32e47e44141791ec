"""Does the model have the sizes that it is loaded with? And if not, with which ones was it made?

Names and shapes of a model's tensors tell all sizes but one: the number of
query heads follows only from the size of a head, which nanochat takes from its
options (128 unless told otherwise).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.doctor.versions import PADDED, model_shapes
from fastckpt.nanochat.model_tensors import model_tensors, padded_vocabulary
from fastckpt.text import collapse

HEAD_SIZE: Final = 128
"""nanochat's --head-dim, unless told otherwise."""
ASPECT_RATIO: Final = 64
"""nanochat's --aspect-ratio: width per layer, before it is rounded up to whole heads."""

_LAYER: Final = re.compile(r"transformer\.h\.(\d+)\.")
_SHOWN: Final = 3

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a nanochat model; None is not known, or does not matter.

    Attributes:
        n_layer: Depth.
        n_embd: Width.
        n_head: Query heads.
        n_kv_head: Key and value heads.
        rows: Rows of the embeddings: the vocabulary, after padding if there is any.
        padded: Whether ``rows`` is a multiple of 64, as since December 2025.
    """

    n_layer: int
    n_embd: int
    n_head: int | None
    n_kv_head: int | None
    rows: int | None

    @property
    def padded(self) -> bool:
        """Whether the embeddings have a whole multiple of 64 rows."""
        return self.rows is not None and self.rows == padded_vocabulary(self.rows)

    def __str__(self) -> str:
        parts = [f"depth {self.n_layer}", f"n_embd {self.n_embd}"]
        parts += [f"{self.n_head} heads"] if self.n_head is not None else []
        if self.n_kv_head not in (None, self.n_head):
            parts.append(f"{self.n_kv_head} kv heads")
        parts += [f"vocab {self.rows}"] if self.rows is not None else []
        return ", ".join(parts)


def sizes_of_depth(depth: int) -> Sizes:
    """What ``base_train --depth N`` makes, with its other options left alone."""
    width = -(-depth * ASPECT_RATIO // HEAD_SIZE) * HEAD_SIZE
    return Sizes(depth, width, width // HEAD_SIZE, width // HEAD_SIZE, None)


def sizes_of_config(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes in a ``model_config``; None if it is not one."""
    values = [config.get(key) for key in ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size")]
    if not all(type(value) is int and 0 < value < 2**31 for value in values):
        return None
    layers, width, heads, kv_heads, vocabulary = (int(str(value)) for value in values)
    return Sizes(layers, width, heads, kv_heads, padded_vocabulary(vocabulary))


def sizes_of_model(shapes: Shapes, config: Mapping[str, Any]) -> Sizes | None:
    """The sizes that a model was made with.

    Args:
        shapes: Of its tensors by name.
        config: Its ``model_config``, for the size of a head; may be empty.
    """
    layers = {int(match[1]) for name in shapes if (match := _LAYER.match(name))}
    embedding = shapes.get("transformer.wte.weight", ())
    if not layers or len(embedding) != 2:
        return None
    rows, width = embedding
    kv_heads = next((s[0] for name, s in shapes.items() if name.endswith("attn.ve_gate.weight") and s), None)
    head = _head_size(shapes, kv_heads, sizes_of_config(config))
    return Sizes(max(layers) + 1, width, _heads(shapes, "c_q", head), kv_heads or _heads(shapes, "c_k", head), rows)


def _head_size(shapes: Shapes, kv_heads: int | None, declared: Sizes | None) -> int:
    """Columns of a head: gates tell it exactly, the config may be another model's."""
    keys = next((s[0] for name, s in shapes.items() if name.endswith("attn.c_k.weight") and s), 0)
    if kv_heads and keys % kv_heads == 0:
        return keys // kv_heads
    if declared is not None and declared.n_head and declared.n_embd % declared.n_head == 0:
        return declared.n_embd // declared.n_head
    return HEAD_SIZE


def _heads(shapes: Shapes, name: str, head: int) -> int | None:
    shape = next((shape for key, shape in shapes.items() if key.endswith(f"attn.{name}.weight")), ())
    return shape[0] // head if len(shape) == 2 and head and shape[0] % head == 0 else None


def diagnose_sizes(
    step: StepFacts, asked: Sizes | None, asked_as: str, go_on: str | None, fallback: StepFacts | None
) -> Iterator[Diagnosis]:
    """Whether the model fits what it is to be loaded with, and what its own meta says.

    Args:
        step: The step.
        asked: The sizes that the user wants to load it with.
        asked_as: What the user calls them: ``--depth 12``.
        go_on: The command that resumes with the sizes of the file.
        fallback: Another step that training can go on from.
    """
    shapes, model = model_shapes(step), step.model
    config = step.meta.section("model_config") if step.meta is not None else {}
    made = sizes_of_model(shapes, config)
    if made is None or model is None:
        return
    declared = sizes_of_config(config)
    if asked is not None and not _fits(made, asked):
        yield Diagnosis(
            "size",
            "bad",
            model.path,
            step.number,
            f"{model.name} has {made}, and {asked_as} means {asked}",
            _differences(shapes, _complete(asked, made)),
            go_on or shlex.join(["fastckpt", "inspect", model.path]),
        )
    if declared is not None and step.meta is not None and not _fits(made, declared):
        unpadded = made.rows is not None and not made.padded and config.get("vocab_size") == made.rows
        if unpadded and _fits(made, Sizes(declared.n_layer, declared.n_embd, None, None, made.rows)):
            return  # As all models before December 2025: the version says so.
        yield Diagnosis(
            "config",
            "bad",
            step.meta.path,
            step.number,
            f"{step.meta.name} describes another model: {declared}, where {model.name} has {made}",
            f"{_differences(shapes, declared)}; its place in the data and its loop state are that model's, too"
            + (f"; {fallback.standing}" if fallback is not None else ""),
            commands.set_step_aside(step.directory, step.number),
            loss=fallback is None,
        )


def _fits(made: Sizes, wanted: Sizes) -> bool:
    pairs = [
        (made.n_layer, wanted.n_layer),
        (made.n_embd, wanted.n_embd),
        (made.n_head, wanted.n_head),
        (made.n_kv_head, wanted.n_kv_head),
        (made.rows, wanted.rows),
    ]
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _complete(wanted: Sizes, made: Sizes) -> Sizes:
    """What the user did not ask for is as in the file."""
    return Sizes(
        wanted.n_layer,
        wanted.n_embd,
        wanted.n_head or made.n_head,
        wanted.n_kv_head or made.n_kv_head,
        wanted.rows or made.rows,
    )


def _differences(shapes: Shapes, wanted: Sizes) -> str:
    """Which parameters differ, the first few of them, and how."""
    if not wanted.n_head or not wanted.n_kv_head or not wanted.rows or wanted.n_layer > 10_000:
        return ""
    config = {
        "n_layer": wanted.n_layer,
        "n_embd": wanted.n_embd,
        "n_head": wanted.n_head,
        "n_kv_head": wanted.n_kv_head,
        "vocab_size": wanted.rows,
    }
    expected = {name: shape for name, shape, _ in model_tensors(config)}
    differ = [(name, (shape, expected[name])) for name, shape in shapes.items() if expected.get(name, shape) != shape]
    more = [name for name in shapes if _LAYER.match(name) and name not in expected]
    less = [name for name in expected if _LAYER.match(name) and name not in shapes]
    parts = []
    if differ:
        groups = collapse(differ)
        shown = [f"{group.name} is {_text(group.like[0])}, not {_text(group.like[1])}" for group in groups[:_SHOWN]]
        rest = len(differ) - sum(group.times for group in groups[:_SHOWN])
        shown += [f"and {rest} more"] if rest else []
        parts.append(f"{len(differ)} of {len(shapes)} parameters differ: {'; '.join(shown)}")
    if more:
        parts.append(f"{len(more)} parameters are of layers that this model would not have")
    if less:
        parts.append(f"{len(less)} parameters of its layers are not there")
    rows = shapes.get("transformer.wte.weight", (0,))[0]
    if rows and wanted.rows and rows != wanted.rows and padded_vocabulary(rows) == wanted.rows:
        parts.append(f"the vocabulary is not padded to a multiple of 64, as before {PADDED.date} ({PADDED.commit})")
    return ". ".join(parts)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
