"""The recipes for training with a library run as they stand in docs/recipes.md, twice: the second run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import needs

import fastckpt

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the page is not beside these tests")


def for_lightning() -> dict[str, Any]:
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

    return {"model": BoringModel(), "loader": torch.utils.data.DataLoader(RandomDataset(32, 8))}


def for_transformers() -> dict[str, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32))
    return {"model": model, "rows": [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (16, 8))]}


def for_accelerate() -> dict[str, Any]:
    return {}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("prepare", "newest"),
    [
        pytest.param(for_lightning, "lightning-run/epoch=3.ckpt", marks=needs("lightning")),
        pytest.param(for_transformers, "trainer-run/checkpoint-4", marks=needs("transformers")),
        pytest.param(for_accelerate, "accelerate-run/step_500", marks=needs("accelerate")),
    ],
)
def test_the_recipe_runs(
    prepare: Callable[[], dict[str, Any]], newest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    library = prepare.__name__.removeprefix("for_")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    (block,) = [block for block in blocks if f"fastckpt.integrations.{library} " in block]
    exec(compile(block, PAGE.name, "exec"), prepare())
    assert fastckpt.find_last_whole(Path(newest).parent) == newest
    if library == "accelerate":  # It saves the same step, which it does not save over.
        with pytest.raises(fastckpt.errors.UsageError):
            exec(compile(block, PAGE.name, "exec"), prepare())
    else:
        exec(compile(block, PAGE.name, "exec"), prepare())
