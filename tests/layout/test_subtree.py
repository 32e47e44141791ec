"""Parts of a tree by name: what the names of all tensors that begin so stand for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastckpt.layout.entries import Entry
from fastckpt.layout.prefixes import Named, with_names
from fastckpt.layout.subtree import NOTHING, at, below, part_of
from fastckpt.layout.tree import NamedRef, TensorRef, walk_tree

TREE = {
    "model": OrderedDict({"blocks.0.w": TensorRef(0), "blocks.0.b": TensorRef(1), "blocks.10.w": TensorRef(2)}),
    "optimizer": {"state": {0: {"exp_avg": TensorRef(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "object": NamedRef("object", ("Net", {"state": {"weight": TensorRef(4)}})),
    "none": None,
}


def test_below() -> None:
    assert below(TREE, "model") is TREE["model"]
    assert below(TREE, "model.blocks.0") == {"w": TensorRef(0), "b": TensorRef(1)}
    assert below(TREE, "model.blocks") == {"0.w": TensorRef(0), "0.b": TensorRef(1), "10.w": TensorRef(2)}
    assert below(TREE, "optimizer.state.0.exp_avg") == TensorRef(3)
    assert below(TREE, "optimizer.param_groups.0.lr") == 0.1
    assert below(TREE, "object.weight") == TensorRef(4)
    assert below(TREE, "none") is None
    for name in ("mode", "model.block", "model.blocks.1", "none.x", "optimizer.state.1", "", "."):
        assert below(TREE, name) is NOTHING, name


def test_at() -> None:
    assert at(TREE, ()) is TREE
    assert at(TREE, ("optimizer", "param_groups", 0, "lr")) == 0.1
    assert at(TREE, ("none",)) is None
    for path in (("none", 0), ("optimizer", "state", "0"), ("optimizer", "param_groups", -1), ("model", "blocks")):
        assert at(TREE, path) is NOTHING


keys = st.one_of(st.sampled_from(["a", "b", "a.b", "a.b.c"]), st.integers(0, 3))
trees = st.recursive(
    st.just(None), lambda inner: st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=3), max_leaves=12
)


def numbered(tree: Any, count: list[int]) -> Any:
    if isinstance(tree, dict):
        return {key: numbered(item, count) for key, item in tree.items()}
    if isinstance(tree, list):
        return [numbered(item, count) for item in tree]
    count.append(len(count))
    return TensorRef(len(count) - 1)


def is_clear(tree: Any) -> bool:
    """Whether no key of a dict begins as another one does: of ``a`` and ``a.b`` the first one counts."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    texts = [str(key) for key, _ in items]
    joined = any(a.startswith(f"{b}.") for a in texts for b in texts)
    return len(set(texts)) == len(texts) and not joined and all(is_clear(item) for _, item in items)


@given(trees.filter(is_clear))
def test_parts_have_the_tensors_whose_names_begin_so(shape: Any) -> None:
    count: list[int] = []
    tree = numbered(shape, count)
    entries = with_names([Entry("", "uint8", (), (), number, 0, 0) for number in count], tree)
    whole = Named(entries, lambda: tree)
    for entry in entries:
        words = entry.name.split(".")
        for size in range(1, len(words)):
            prefix = ".".join(words[:size])
            part = part_of(whole, prefix)
            assert part is not None
            numbers = {e.storage for e in part.entries}
            assert numbers == {e.storage for e in entries if e.name.startswith(f"{prefix}.")}
            assert [leaf.entry for _, leaf in walk_tree(part.tree())] == list(range(len(part.entries)))
            for own in part.entries:
                assert f"{prefix}.{own.name}" == entries[own.storage].name
