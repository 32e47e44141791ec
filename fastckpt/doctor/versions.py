"""Which revisions of nanochat write files like these.

nanochat's checkpoints carry no version. Each `Change` in their layout left a
trace all the same: in the names and shapes of the model's tensors, in how the
optimizer keeps its state, in the names of the files or in meta. A trace tells
that a step was saved since that change, or before it; all of them together
give a range. Dates and commits are those of nanochat's own history.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.layout.prefixes import bare_name
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import is_optimizer
from fastckpt.nanochat.model_tensors import VOCAB_MULTIPLE


class Change(NamedTuple):
    """A commit that changed what is saved, in the order of nanochat's history."""

    date: str
    commit: str
    what: str


FIRST: Final = Change("2025-10-13", "3a5e0bc", "the first release")
ON_CPU: Final = Change("2025-10-16", "306bc38", "embeddings bfloat16 on CUDA only")
RANKED: Final = Change("2025-11-13", "c6abcdf", "an optimizer file for each rank")
PADDED: Final = Change("2025-12-09", "f1bf69d", "vocabulary padded to a multiple of 64")
SECOND: Final = Change("2026-01-11", "2c4473d", "second moment in Muon")
LAMBDAS: Final = Change("2026-01-11", "aa530cd", "resid_lambdas and x0_lambdas")
WINDOWS: Final = Change("2026-01-11", "fbc1484", "window_pattern in the config")
EPOCH: Final = Change("2026-01-13", "43c29dd", "epoch in the state of the data loader")
STACKED: Final = Change("2026-01-15", "6bb9240", "Muon's momentum stacked")
VALUES: Final = Change("2026-01-16", "0b58d70", "value embeddings")
GATES: Final = Change("2026-01-16", "e85db6b", "gates of value embeddings")
BIGRAMS: Final = Change("2026-01-25", "59e36cc", "bigram embeddings, tried")
NO_BIGRAMS: Final = Change("2026-01-28", "74554be", "bigram embeddings, dropped")
ONE_DICT: Final = Change("2026-01-29", "41bb2ea", "one optimizer in place of two")
BATCH_SIZE: Final = Change("2026-02-16", "788dade", "total_batch_size in meta")
SMALL_GATES: Final = Change("2026-03-09", "6ed7d1d", "gates of 12 channels")
SMEAR: Final = Change("2026-03-14", "a825e63", "smear and backout; unchanged since")

HISTORY: Final = (
    *(FIRST, ON_CPU, RANKED, PADDED, SECOND, LAMBDAS, WINDOWS, EPOCH, STACKED, VALUES),
    *(GATES, BIGRAMS, NO_BIGRAMS, ONE_DICT, BATCH_SIZE, SMALL_GATES, SMEAR),
)


class Trace(NamedTuple):
    """What a step was saved since (or before), and what shows it."""

    change: Change
    since: bool
    because: str


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The revisions that write such a step: from ``since`` on, up to the one before ``before``.

    Attributes:
        since: The newest change it has.
        before: The oldest change it has not; None for files as nanochat writes them today.
        why: The two traces, if there are any.
        conflict: Whether they contradict each other: files of different revisions were mixed.
    """

    since: Change
    before: Change | None
    why: tuple[str, ...]
    conflict: bool

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.since.date} ({self.since.commit}) or later"
        return f"{self.since.date} ({self.since.commit}) to before {self.before.date} ({self.before.commit})"

    @property
    def loads_today(self) -> bool:
        """Whether nanochat's newest revision can build this model."""
        return self.before is None and self.since is SMEAR


def version_range(step: StepFacts) -> VersionRange | None:
    """The revisions that a step can be of; None if nothing in it can be read."""
    traces = [*_of_model(step), *_of_optimizer(step), *_of_meta(step)]
    if not traces:
        return None
    since = [trace for trace in traces if trace.since]
    before = [trace for trace in traces if not trace.since]
    newest = max(since, key=lambda trace: HISTORY.index(trace.change), default=None)
    oldest = min(before, key=lambda trace: HISTORY.index(trace.change), default=None)
    first = newest.change if newest is not None else FIRST
    last = oldest.change if oldest is not None else None
    why = tuple(trace.because for trace in (newest, oldest) if trace is not None)
    conflict = last is not None and HISTORY.index(first) >= HISTORY.index(last)
    return VersionRange(first, last, why, conflict)


def model_shapes(step: StepFacts) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors by name, as they would be without the prefix of a wrapper."""
    structure = step.model.structure if step.model is not None else None
    return {bare_name(entry.name): entry.shape for entry in structure.entries} if structure is not None else {}


def _of_model(step: StepFacts) -> Iterator[Trace]:
    shapes = model_shapes(step)
    embedding = shapes.get("transformer.wte.weight")
    if not embedding:
        return
    for name, change in (("smear_gate.weight", SMEAR), ("resid_lambdas", LAMBDAS)):
        there = name in shapes
        yield Trace(change, there, f"{name.removesuffix('.weight')} {'is there' if there else 'is not there'}")
    gate = next((shape for name, shape in shapes.items() if name.endswith(".ve_gate.weight")), None)
    values = [name for name in shapes if name.startswith(("value_embed", "v0_lambdas"))]
    if gate is not None:
        yield Trace(GATES, True, "there are ve_gates")
        yield Trace(SMALL_GATES, gate[-1] == 12, f"ve_gate has {gate[-1]} channels")
    elif values:
        yield Trace(VALUES, True, f"{values[0]} is there")
        yield Trace(GATES, False, "there are no ve_gates")
    else:
        yield Trace(VALUES, False, "there are no value embeddings")
    if any(name.startswith("bigram_") for name in shapes):
        yield Trace(BIGRAMS, True, "bigram embeddings are there")
        yield Trace(NO_BIGRAMS, False, "bigram embeddings are there")
    if embedding[0] % VOCAB_MULTIPLE:
        yield Trace(PADDED, False, f"the vocabulary of {embedding[0]} is not padded")
    elif step.meta is not None and step.meta.section("model_config").get("vocab_size") not in (None, embedding[0]):
        yield Trace(PADDED, True, f"the vocabulary is padded to {embedding[0]}")
    structure = step.model.structure if step.model is not None else None
    if structure is not None and any(
        entry.name.endswith("transformer.wte.weight") and entry.dtype == "float32" for entry in structure.entries
    ):
        yield Trace(ON_CPU, True, "the embeddings are float32")


def _of_optimizer(step: StepFacts) -> Iterator[Trace]:
    if not step.optimizers:
        return
    file = step.optimizers[0]
    ranked = file.stem.rank is not None
    yield Trace(RANKED, ranked, "the optimizer's file name has " + ("a rank" if ranked else "no rank"))
    structure = file.structure
    tree = structure.tree if structure is not None else None
    if structure is None or not isinstance(tree, dict | list):
        return
    single = isinstance(tree, dict)
    yield Trace(ONE_DICT, single, "the file holds one optimizer" if single else "the file holds a list of optimizers")
    for state in _muon_states(tree):
        if "second_momentum_buffer" in state:
            yield Trace(SECOND, True, "Muon has a second moment")
        else:
            yield Trace(SECOND, False, "Muon has no second moment")
        buffer = state["momentum_buffer"]
        if type(buffer) is TensorRef:
            stacked = len(structure.entries[buffer.entry].shape) == 3
            yield Trace(STACKED, stacked, f"Muon's momentum is {'stacked' if stacked else 'kept per parameter'}")
        return


def _muon_states(tree: Any) -> Iterator[dict[Any, Any]]:
    for part in tree if isinstance(tree, list) else [tree]:
        for state in part["state"].values() if is_optimizer(part) else ():
            if isinstance(state, dict) and "momentum_buffer" in state:
                yield state


def _of_meta(step: StepFacts) -> Iterator[Trace]:
    if step.meta is None:
        return
    loader = step.meta.section("dataloader_state_dict")
    if loader:
        yield Trace(RANKED, True, "meta has the state of the data loader")
        yield Trace(EPOCH, "epoch" in loader, f"that state has {'an' if 'epoch' in loader else 'no'} epoch")
    if "total_batch_size" in step.meta.values:
        yield Trace(BATCH_SIZE, True, "meta has a total_batch_size")
    if "window_pattern" in step.meta.section("model_config"):
        yield Trace(WINDOWS, True, "meta has a window_pattern")
    elif loader:
        yield Trace(WINDOWS, False, "meta has no window_pattern")


def diagnose_version(step: StepFacts, *, others_whole: bool) -> Iterator[Diagnosis]:
    """Say what an older step needs, and find files of different revisions in one step."""
    versions = version_range(step)
    if versions is None or not model_shapes(step):
        return
    if versions.conflict:
        yield Diagnosis(
            "version",
            "warn",
            step.directory,
            step.number,
            f"the files of step {step.number} are of different revisions of nanochat",
            f"{' but '.join(versions.why)}: a file was copied here from another run",
            commands.set_step_aside(step.directory, step.number)
            if others_whole
            else shlex.join(["fastckpt", "inspect", step.directory]),
        )
    elif not versions.loads_today and versions.before is not None:
        yield Diagnosis(
            "version",
            "note",
            step.directory,
            step.number,
            f"step {step.number} was saved by nanochat of {versions}",
            f"{' and '.join(versions.why)}; nanochat since {SMEAR.date} ({SMEAR.commit}) cannot build this model, its "
            "own revision can",
            commands.check_out(versions.before.commit),
        )
