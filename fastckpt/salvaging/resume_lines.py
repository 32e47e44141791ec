"""The lines of Python with which training goes on from a file, as its structure suggests them."""

from __future__ import annotations

import json
import keyword
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import is_optimizer

_LIGHTNING: Final = "pytorch-lightning_version"
_COUNTERS: Final = ("step", "global_step", "iter", "iteration", "iter_num", "epoch")
_MOST_LINES: Final = 8


def resume_lines(destination: str, tree: Any) -> list[str]:
    """What to type in the training script, where model and optimizer are made; [] if the structure does not say.

    Args:
        destination: The file; its suffix says what loads it.
        tree: The state in it.
    """
    path, suffix = json.dumps(destination, ensure_ascii=False), os.path.splitext(destination)[1]
    load = f"fastckpt.load({path})" if FORMAT_OF[suffix] == "fckpt" else f'torch.load({path}, map_location="cpu")'
    if FORMAT_OF[suffix] == "safetensors" or not isinstance(tree, dict):
        return []
    if _LIGHTNING in tree and suffix == ".ckpt":
        return [f"trainer.fit(model, ckpt_path={path})"]
    if is_optimizer(tree):
        return [f"optimizer.load_state_dict({load})"]
    if _is_state_dict(tree):
        return [f"model.load_state_dict({load})"]
    lines = list(_parts(tree))
    if not lines:
        return []
    counted = [f"state[{json.dumps(key)}] is {tree[key]}" for key in _COUNTERS if type(tree.get(key)) is int]
    return [f"state = {load}{f'  # {counted[0]}' if counted else ''}", *lines[:_MOST_LINES]]


def _parts(tree: dict[Any, Any]) -> Iterator[str]:
    for key, part in tree.items():
        if type(key) is str and (is_optimizer(part) or _is_state_dict(part)):
            kind = "optimizer" if is_optimizer(part) else "model"
            yield f"{_variable(key, kind)}.load_state_dict(state[{json.dumps(key)}])"


def _is_state_dict(part: Any) -> bool:
    """Whether a part is what ``Module.state_dict()`` gives: tensors by dotted names."""
    return isinstance(part, dict) and bool(part) and all(type(value) is TensorRef for value in part.values())


def _variable(key: str, kind: str) -> str:
    """What a training script calls it: ``model`` for ``model_state_dict``."""
    name = re.sub(r"_?(state_dict|state|dict|sd)$", "", key)
    return name if name.isidentifier() and not keyword.iskeyword(name) else kind
