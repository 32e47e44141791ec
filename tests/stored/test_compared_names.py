"""diff of names: renamed models and another order are paired, or said to differ."""

from __future__ import annotations

import pytest
import torch
from in_format import FORMATS, write

from fastckpt.stored.comparison import compare

# Structure


def test_names_types_and_flags(compared):
    a = {
        "t": torch.ones(3),
        "d": torch.ones(2),
        "s": torch.ones(2, 3),
        "p": torch.nn.Parameter(torch.ones(2)),
        "a": torch.ones(1),
    }
    b = {"t": torch.ones(3), "d": torch.ones(2).half(), "s": torch.ones(3, 2), "p": torch.ones(2), "b": torch.ones(1)}
    found = compared(a, b).structure
    assert list(found.pairs) == ["t", "d", "s", "p"]
    assert [entry.name for entry in found.only_a] == ["a"]
    assert [entry.name for entry in found.only_b] == ["b"]
    assert found.tensors == {
        "d": {"dtype": ("float32", "float16")},
        "s": {"shape": ([2, 3], [3, 2])},
        "p": {"requires_grad": (True, False), "parameter": (True, False)},
    }


def prefixed(state, prefix):
    return type(state)((f"{prefix}{name}", value) for name, value in state.items())


PREFIXES = ["_orig_mod.", "module.", "model.", "_orig_mod.module.", "module._orig_mod."]


@pytest.mark.parametrize(
    ("prefix", "format_a", "format_b"),
    [
        *((prefix, "pt", "fckpt") for prefix in PREFIXES),
        *(("_orig_mod.", a, b) for a in FORMATS for b in FORMATS if "safetensors" in (a, b) or a == b),
    ],
)
def test_a_renamed_set_is_paired(tmp_path, prefix, format_a, format_b):
    state = {"h.0.w": torch.arange(6.0), "h.1.w": torch.ones(2), "head": torch.zeros(3)}
    a = write(prefixed(state, prefix), tmp_path / f"a.{format_a}")
    b = write({**state, "head": torch.ones(3)}, tmp_path / f"b.{format_b}")
    for one, other, sides, start in ((a, b, (prefix, ""), prefix), (b, a, ("", prefix), "")):
        found = compare(one, other)
        assert found.structure.renamed == sides
        assert not found.structure.only_a
        assert not found.structure.only_b
        assert {name: tensor.status for name, tensor in found.tensors.items()} == {
            f"{start}h.0.w": "identical",
            f"{start}h.1.w": "identical",
            f"{start}head": "differs",
        }
        assert found.same is False


@pytest.mark.parametrize("format_", ["fckpt", "pt"])
def test_a_renamed_model_inside_a_state_is_paired(tmp_path, format_):
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    compiled = torch.nn.Module()  # As torch.compile wraps it.
    compiled._orig_mod = net
    a = {"model": compiled.state_dict(), "ema": compiled.state_dict(), "step": 3}
    b = {"model": net.state_dict(), "ema": net.state_dict(), "step": 3}
    found = compare(write(a, tmp_path / f"a.{format_}"), write(b, tmp_path / f"b.{format_}"))
    assert found.structure.renamed == ("_orig_mod.", "")
    assert {tensor.status for tensor in found.tensors.values()} == {"identical"}
    assert not found.structure.values  # The versions of modules have the prefix, too.
    assert not found.structure.containers
    assert found.same is False


def test_two_different_prefixes_are_paired(compared):
    state = {"w": torch.ones(2), "b": torch.ones(1)}
    found = compared(prefixed(state, "_orig_mod."), prefixed(state, "module."))
    assert found.structure.renamed == ("_orig_mod.", "module.")
    found = compared(prefixed(state, "model.model."), prefixed(state, "model."))
    assert found.structure.renamed == ("model.", "")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["module.w"], ["v"]),
        (["module.w", "x"], ["w", "y"]),
        (["module.w", "w"], ["w", "v"]),
        (["encoder.w"], ["w"]),
        (["module.w", "module.v"], ["w"]),
        (["module."], [""]),
    ],
)
def test_other_names_are_not_paired(compared, a, b):
    found = compared(*({name: torch.ones(1) for name in names} for names in (a, b)))
    assert found.structure.renamed is None
    assert found.same is False


def test_keys_find_renamed_tensors_by_either_name(compared):
    state = {"h.w": torch.ones(2), "h.b": torch.ones(1), "o": torch.ones(1)}
    for keys in ("h.*", "module.h.*"):
        found = compared(prefixed(state, "module."), state, keys=keys)
        assert list(found.tensors) == ["module.h.w", "module.h.b"]
        assert found.same is False


def test_another_order_is_only_noted(compared):
    found = compared({"a": torch.ones(1), "b": torch.zeros(1)}, {"b": torch.zeros(1), "a": torch.ones(1)})
    assert found.same
    assert "another order" in found.structure.notes[0]
