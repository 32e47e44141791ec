"""What the parity of a damaged file would heal, leaf by leaf, as it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from fastckpt.errors import FastckptError
from fastckpt.fckpt.bad_ranges import names_in_each
from fastckpt.io.source import Source
from fastckpt.plotting.chunk_states import HEALS, INTACT, LOST, ChunkState
from fastckpt.plotting.numbers import Healing
from fastckpt.stored.healing_plan import HealingPlan, healing_plan


def what_would_heal(path: str, *, threads: int) -> Healing | None:
    """The leaves that parity covers in runs of one state; None without parity, or where there is nothing to heal."""
    try:
        with Source(path) as source, healing_plan(source, threads=threads) as plan:
            if plan is None or not plan.standing.bad:
                return None
            lost = len(plan.standing.bad_numbers)
            return {"lost": lost, "heal": lost - len(plan.hopeless), "runs": list(_runs(plan))}
    except FastckptError:
        return None


def _runs(plan: HealingPlan) -> Iterator[ChunkState]:
    sums, hopeless = plan.standing.sums, set(plan.hopeless)
    runs, end = [], 0
    bad = [(leaf, LOST if leaf in hopeless else HEALS) for leaf in plan.standing.bad_numbers]
    for (_, state), group in groupby(enumerate(bad), lambda at: (at[1][0] - at[0], at[1][1])):
        leaves = [leaf for _, (leaf, _) in group]
        if end < leaves[0]:
            runs.append((end, leaves[0] - end, INTACT))
        runs.append((leaves[0], len(leaves), state))
        end = leaves[-1] + 1
    if end < sums.leaves:
        runs.append((end, sums.leaves - end, INTACT))
    places = [sums.leaf_extent(first, count) for first, count, _ in runs]
    names = names_in_each(((t.name, t.offset, t.end) for t in sums.tensors), [(p.offset, p.end) for p in places])
    for (_, _, state), place, named in zip(runs, places, names, strict=True):
        yield ChunkState(state, place.size, f"bytes {place.offset}-{place.end - 1}", tuple(named))
