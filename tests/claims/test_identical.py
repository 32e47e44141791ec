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
from claim_sets import ACROSS as SETS
from claim_sets import (
    RUNS,
    changed,
    newest_gone,
    other_number,
    other_weight,
    requires_grad,
    runs,
    set_pair,
    set_pairs,
    shard_metadata,
    storage_beside,
    swap_parts,
    tied_shards,
    value_beside,
    without,
)
from claim_sets import WITH_VALUES as SETS_WITH_VALUES
from claim_sets import damage as damage_part
from claim_tables import Claim, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401
from sharded_builds import write_own, write_pieces

import fastckpt
from fastckpt.stored.comparison import compare
from fastckpt.verdicts import Verdict

PROVEN_SETS = ("own, rows", "pieces, rows", "shards .bin", "shards .fckpt")
CODE = {"code/a.py": b"AAAA", "code/b.py": b"BBBB"}
STORAGES = {"data/98": b"ab", "data/99": b"ac"}


def swapped(records: dict[str, bytes]) -> dict[str, bytes]:
    return dict(zip(records, reversed(records.values()), strict=True))


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    lines = tell("diff", *inputs).text.splitlines()
    count = lines[-1].partition(" pair")[0]
    if f"{count} pairs of files: {count} the same" == lines[-1]:
        return not any(line.startswith("only in ") for line in lines)
    return any(line.startswith("identical: ") for line in lines)


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
        **{f"{one} and {other}": set_pair(tensors, tensors, (one, other)) for one, other in SETS},
        "sets: values": set_pair(with_(step=3), with_(step=3), ("own, rows", "pieces, rows")),
        "sets: tied": set_pair(tied_shards(is_tied=True), tied_shards(is_tied=True), ("shards .bin", "shards .bin")),
        **{f"runs of {kind}": runs(kind) for kind in RUNS},
    },
    [
        Row(
            "every bit of every tensor is the same",
            {
                **pairs("one bit", tensors, other_value("w", one_bit)),
                **pairs("the sign of a zero", tensors, other_value("small", sign_of_zero)),
                **set_pairs("one bit", tensors, other_value("w", one_bit), SETS),
                **set_pairs("parts exchanged", tensors, swap_parts("w"), SETS),
                "Trainer: the model of a step": runs("Trainer", other_weight("checkpoint-2/model.safetensors")),
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
                **set_pairs("a tensor more", tensors, with_(more=torch.ones(1)), SETS),
                **set_pairs("an empty tensor more", tensors, with_(more=torch.empty(0)), SETS),
                **set_pairs("another shape", tensors, other_value("w", lambda tensor: tensor.view(60, 100)), SETS),
                **set_pairs("another type", tensors, other_value("w", lambda t: t.view(torch.int32)), SETS),
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
                **set_pairs("another value", with_(step=1), with_(step=2), SETS_WITH_VALUES),
                **set_pairs("another type of value", with_(step=1), with_(step=1.0), SETS_WITH_VALUES),
                **set_pairs("a value only in one", with_(step=1), tensors, SETS_WITH_VALUES),
                "own: what requires a gradient": requires_grad(write_own),
                "pieces: what requires a gradient": requires_grad(write_pieces),
                "shards: metadata of a shard": changed("shards", shard_metadata),
                "shards .bin: a value beside the tensors": changed("shards .bin", value_beside),
                "Trainer: its state": runs("Trainer", other_number("checkpoint-2/trainer_state.json", "loss")),
                "accelerate: the scheduler": runs("accelerate", other_number("checkpoint_2/scheduler.bin", "x")),
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
                **set_pairs(
                    "nested and flat", nested, flat_nested, (("own, rows", "fckpt"), ("pieces, rows", "fckpt"))
                ),
                "shards .bin: tied and not": set_pair(
                    tied_shards(is_tied=True), tied_shards(is_tied=False), ("shards .bin", "shards .bin")
                ),
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
                "shards .bin: a storage in a shard": changed("shards .bin", storage_beside),
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
        Row(
            "none of it is damaged",
            {
                **{f"{form}: a bit of a tensor": damaged_pair(form) for form in PROVEN},
                **{f"{kind}: a bit of a part": changed(kind, damage_part) for kind in PROVEN_SETS},
            },
        ),
        Row(
            "all of it is there",
            {
                "own, rows: a shard is gone": changed("own, rows", without("shard-*")),
                "own, rows: the manifest is gone": changed("own, rows", without("set.fckpt")),
                "pieces, rows: a file is gone": changed("pieces, rows", without("*.distcp")),
                "shards: one is gone": changed("shards", without("*.safetensors")),
                "Trainer: the optimizer is gone": runs("Trainer", without("checkpoint-2/optimizer.pt")),
                **{f"{kind}: the newest is gone": runs(kind, newest_gone) for kind in RUNS},
            },
        ),
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
