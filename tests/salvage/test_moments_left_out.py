"""A note names few parameters one by one, and counts many."""

from __future__ import annotations

from fastckpt.layout.entries import Entry
from fastckpt.salvaging.moments_left_out import come_along, left_out

ENTRIES: list[Entry] = []


def optimizer(count: int) -> dict[str, object]:
    return {"state": {}, "param_groups": [{"params": list(range(count))}]}


def test_ranges_and_names() -> None:
    names = {number: f"model.{number}.weight" for number in range(9)}
    (note,) = left_out(optimizer(9), [2, 3, 4, 8], names, ENTRIES)
    assert note.startswith(
        "the optimizer state of parameters {2..4,8} (model.{2..4,8}.weight) is left out as a whole: they"
    )
    (note,) = left_out(optimizer(9), ["a"], {}, ENTRIES)
    assert note.startswith("the optimizer state of parameter a is left out as a whole: it starts anew")
    assert come_along([1], names, "b.pt").endswith("parameter 1 (model.1.weight) comes from b.pt, as the weights do")


def test_many_without_an_order_are_counted() -> None:
    odd = [number * number for number in range(300)]
    (note,) = left_out(optimizer(90_000), odd, {}, ENTRIES)
    assert note.startswith("the optimizer state of 300 parameters is left out")
    many = dict.fromkeys(range(20_000), "w")
    (note,) = left_out(optimizer(20_000), list(many), many, ENTRIES)
    assert note.startswith("the optimizer state of parameters {0..19999} is left out")


def test_the_stacked_state_of_a_muon_group_is_told_by_itself() -> None:
    groups = [{"params": [0, 1]}, {"kind": "muon", "params": [2, 3, 4]}]
    notes = list(left_out({"state": {}, "param_groups": groups}, [0, 1, 2], {}, ENTRIES))
    assert [note.partition(" is left")[0] for note in notes] == [
        "the optimizer state of parameters {0,1}",
        "the optimizer state of parameter 2 (the muon group of parameters 2 to 4)",
    ]
