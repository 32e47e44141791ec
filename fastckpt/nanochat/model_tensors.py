"""The tensors of a nanochat model, in the order in which they are saved, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastckpt.errors import FastckptError
from fastckpt.nanochat.meta import read_meta

VOCAB_MULTIPLE: Final = 64
"""nanochat pads the vocabulary to a multiple of this, since December 2025."""
_MAX_LAYERS: Final = 10_000
_KEYS: Final = ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")

Shape = tuple[int, ...]


def read_model_config(path: str) -> dict[str, int] | None:
    """The sizes in a ``meta_*.json``; None if it is not there or not whole."""
    try:
        config: Any = read_meta(path)["model_config"]
        sizes = {key: config[key] for key in _KEYS}
    except (FastckptError, KeyError, TypeError):
        return None
    valid = all(type(value) is int and 0 < value < 2**31 for value in sizes.values())
    return sizes if valid and sizes["n_layer"] <= _MAX_LAYERS else None


def padded_vocabulary(size: int) -> int:
    """Rows of the embeddings of a model with this many tokens."""
    return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def model_tensors(config: Mapping[str, int]) -> Iterator[tuple[str, Shape, bool]]:
    """Name, shape, and whether it is an embedding (which may be bfloat16) of every tensor of the current layout."""
    layers, width = config["n_layer"], config["n_embd"]
    head = width // config["n_head"]
    kv_heads = config["n_kv_head"]
    vocabulary = padded_vocabulary(config["vocab_size"])
    with_values = [layer for layer in range(layers) if layer % 2 == (layers - 1) % 2]
    yield "resid_lambdas", (layers,), False
    yield "x0_lambdas", (layers,), False
    yield "smear_lambda", (1,), False
    yield "backout_lambda", (1,), False
    yield "transformer.wte.weight", (vocabulary, width), True
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        yield f"{block}.attn.c_q.weight", (config["n_head"] * head, width), False
        yield f"{block}.attn.c_k.weight", (kv_heads * head, width), False
        yield f"{block}.attn.c_v.weight", (kv_heads * head, width), False
        yield f"{block}.attn.c_proj.weight", (width, width), False
        if layer in with_values:
            yield f"{block}.attn.ve_gate.weight", (kv_heads, 12), False
        yield f"{block}.mlp.c_fc.weight", (4 * width, width), False
        yield f"{block}.mlp.c_proj.weight", (width, 4 * width), False
    yield "lm_head.weight", (vocabulary, width), False
    yield "smear_gate.weight", (1, 24), False
    for layer in with_values:
        yield f"value_embeds.{layer}.weight", (vocabulary, kv_heads * head), True
