"""A page as a tree of its elements, and a model to draw."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import torch

SVG = "{http://www.w3.org/2000/svg}"
HTML = "{http://www.w3.org/1999/xhtml}"


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


def rects(root: ElementTree.Element, class_: str) -> list[ElementTree.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if class_ in rect.get("class", "").split()]


def title_of(item: ElementTree.Element) -> str:
    found = item.find(f"{SVG}title")
    assert found is not None
    assert found.text is not None
    return found.text


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(3000, 64).bfloat16()}
    for layer in range(4):
        state[f"h.{layer}.attn.c_q.weight"] = torch.randn(64, 64) * (layer + 1)
        state[f"h.{layer}.mlp.c_fc.weight"] = torch.randn(700, 700) * 0.01
    state["lm_head.weight"] = state["wte.weight"]
    return state
