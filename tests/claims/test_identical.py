"""``identical``: two checkpoints of which every bit was compared, and is the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from claim_inputs import PROVEN, module_state, tensors, write
from claim_pairs import (
    ACROSS,
    WITH_VALUES,
    Records,
    beside,
    damaged_pair,
    flat_nested,
    in_a_row,
    metadata_pair,
    namespace,
    nested,
    one_bit,
    ordered,
    other_value,
    pair,
    pairs,
    prefixed,
    sign_of_zero,
    tied,
    too_deep,
    too_deep_to_see,
    untied,
    with_,
    with_folders,
)
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.stored.comparison import compare
from fastckpt.verdicts import Verdict

CODE = {"code/a.py": b"AAAA", "code/b.py": b"BBBB"}
STORAGES = {"data/98": b"ab", "data/99": b"ac"}


def swapped(records: dict[str, bytes]) -> dict[str, bytes]:
    return dict(zip(records, reversed(records.values()), strict=True))


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("diff", *inputs)
    return any(line.startswith("identical: ") for line in told.text.splitlines())


def by_code(tell: Tell, inputs: list[Path]) -> bool:
    return tell("diff", *inputs).code == 0


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("diff", *inputs, "--json").json.get("same") is True)


CLAIM = Claim(
    Verdict.IDENTICAL,
    {"text": by_text, "code": by_code, "json": by_json},
    {
        **{f"{one} and {other}": pair(tensors, tensors, (one, other)) for one, other in ACROSS},
        "objects": pair(namespace(0.1), namespace(0.1), ("pt", "pt")),
        "values": pair(with_(step=3), with_(step=3), ("pt", "fckpt")),
        "records that nothing refers to": beside(CODE | STORAGES, CODE | STORAGES),
        "and of a converted one": beside(STORAGES, STORAGES, ("pt", "fckpt")),
        "and of one with other keys": beside(STORAGES, swapped(STORAGES), ("pt", "fckpt")),
        "and of several archives": in_a_row([CODE, STORAGES], [CODE, STORAGES]),
        "pt and pt: the folders are records, too": with_folders,
    },
    [
        Row(
            "every bit of every tensor is the same",
            {
                **pairs("one bit", tensors, other_value("w", one_bit)),
                **pairs("the sign of a zero", tensors, other_value("small", sign_of_zero)),
            },
        ),
        Row(
            "they have the same tensors, of the same types, under the same names",
            {
                **pairs("a tensor more", tensors, with_(more=torch.ones(1))),
                **pairs("an empty tensor more", tensors, with_(more=torch.empty(0))),
                **pairs("another shape", tensors, other_value("w", lambda tensor: tensor.view(60, 100))),
                **pairs("another type of the same bytes", tensors, other_value("w", lambda t: t.view(torch.int32))),
                **pairs("a prefix", tensors, prefixed("_orig_mod.")),
            },
        ),
        Row(
            "they have the same values",
            {
                **pairs("another value", with_(step=1), with_(step=2), WITH_VALUES),
                **pairs("another type of value", with_(step=1), with_(step=1.0), WITH_VALUES),
                **pairs(
                    "a value that only one can have", with_(step=1), tensors, (("pt", "safetensors"), *WITH_VALUES)
                ),
                **{f"fckpt and {form}: metadata": metadata_pair(form) for form in ("fckpt", "pt", "safetensors")},
                "pt: a value of an object": pair(namespace(0.1), namespace(0.2), ("pt", "pt")),
                "pt and safetensors: an object": pair(namespace(0.1), tensors, ("pt", "safetensors")),
            },
        ),
        Row(
            "they are built in the same way",
            {
                **pairs("nested and flat", nested, flat_nested, WITH_VALUES),
                **pairs("another kind of dict", tensors, ordered, WITH_VALUES),
                **pairs("tied and not", tied, untied, WITH_VALUES),
            },
        ),
        Row(
            "what nothing refers to is the same",
            {
                **{
                    f"{one} and {other}: {what}": beside(a, b, (one, other))
                    for one, other in (("pt", "pt"), ("pt", "fckpt"), ("fckpt", "pt"), ("fckpt", "fckpt"))
                    for what, a, b in (
                        ("a storage of other bytes", {"data/99": b"ab"}, {"data/99": b"ac"}),
                        ("a storage only in one", {"data/99": b"ab"}, {}),
                        ("a storage only in the other", {}, {"data/99": b"ab"}),
                        ("an empty storage only in one", {"data/99": b""}, {}),
                    )
                },
                **{
                    f"{form} and {form}: storages swapped": beside(STORAGES, swapped(STORAGES), (form, form))
                    for form in ("pt", "fckpt")
                },
                "pt and pt: a storage of another key": beside({"data/98": b"ab"}, {"data/99": b"ab"}),
                "pt and pt: records swapped": beside(CODE, swapped(CODE)),
                "pt and pt: records of other names": beside(CODE, {f"{name}c": CODE[name] for name in CODE}),
                "pt and pt: an empty record only in one": beside({**CODE, "empty": b""}, CODE),
                "pt and pt: an empty record only in the other": beside(CODE, {**CODE, "empty": b""}),
                "pt and pt: records of two archives swapped": in_a_row(
                    [{"code/a.py": b"A"}, {"code/a.py": b"B"}], [{"code/a.py": b"B"}, {"code/a.py": b"A"}]
                ),
            },
        ),
        Row(
            "all of it could be compared",
            {
                "pt and safetensors: nesting": pair(nested, flat_nested, ("pt", "safetensors")),
                "fckpt and safetensors: nesting": pair(nested, flat_nested, ("fckpt", "safetensors")),
                "legacy and safetensors: attributes": pair(module_state, tensors, ("legacy", "safetensors")),
                "pt and safetensors: tied": pair(tied, untied, ("pt", "safetensors")),
                "pt: nested too deep": too_deep,
            },
        ),
        Row("none of it is damaged", {f"{form}: a bit of a tensor": damaged_pair(form) for form in PROVEN}),
    ],
)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (CODE, CODE, {"identical": 2}),
        (CODE, swapped(CODE), {"differs": 2}),
        (CODE, {"code/a.py": b"AAAA", "code/c.py": b"BBBB"}, {"identical": 1, "differs": 2}),
        ({**CODE, "empty": b""}, CODE, {"identical": 2, "differs": 1}),
        (STORAGES, swapped(STORAGES), {"differs": 2}),
    ],
)
def test_each_record_is_counted_once(a: Records, b: Records, said: dict[str, int], tmp_path: Path) -> None:
    found = compare(*beside(a, b)(tmp_path))
    assert Counter(part.status for part in found.objects.values()) == said
    assert found.same is (said.keys() == {"identical"})


def test_a_storage_under_two_names_is_counted_once(tmp_path: Path) -> None:
    assert len(compare(*beside(STORAGES, STORAGES, ("pt", "fckpt"))(tmp_path)).objects) == len(STORAGES)


def test_where_another_format_has_a_record_is_not_known(tmp_path: Path) -> None:
    assert compare(*beside(CODE, CODE, ("pt", "fckpt"))(tmp_path)).same is None
    assert compare(*beside({"empty": b""}, {}, ("pt", "fckpt"))(tmp_path)).same is None


@pytest.mark.parametrize(("other", "same"), [(1.0, None), (2.0, False)])
def test_the_keys_of_another_legacy_save_say_nothing(other: float, same: bool | None, tmp_path: Path) -> None:
    """What is too deep to be seen has its storages all the same; in a legacy file their keys are addresses."""
    alive, paths = [], []
    for stem, value in (("a", 1.0), ("b", other)):
        alive.append(torch.full((3,), value))
        paths.append(write({**tensors(), "deep": too_deep_to_see(alive[-1])}, "legacy", tmp_path, stem))
    assert compare(*paths).same is same


def test_nor_does_the_order_in_what_was_made_of_it(tmp_path: Path) -> None:
    places, paths = [torch.empty(3), torch.empty(3)], []
    for stem, order in (("a", places), ("b", places[::-1])):
        for number, tensor in enumerate(order):
            tensor.fill_(number)
        path = write({**tensors(), "deep": [too_deep_to_see(tensor) for tensor in order]}, "legacy", tmp_path, stem)
        paths.append(path.with_suffix(".fckpt"))
        fastckpt.convert(path, paths[-1])
    assert compare(*paths).same is None
