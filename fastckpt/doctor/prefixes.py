"""A model that was saved wrapped: its names have a prefix that strict loading refuses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.layout.prefixes import wrapper_prefix
from fastckpt.nanochat.names import MODEL

_COMPILED = "_orig_mod."


def diagnose_prefix(step: StepFacts) -> Iterator[Diagnosis]:
    """Find model files with the prefix of a wrapper, and say how to write them without."""
    for file in step.files:
        tree = file.structure.tree if file.structure is not None and file.stem.role == MODEL else None
        names = [key for key in tree if isinstance(key, str)] if isinstance(tree, dict) else []
        found = [prefix for name in names if (prefix := wrapper_prefix(name))]
        if not found:
            continue
        several = len(set(found)) > 1
        shown = ", ".join(sorted(set(found)))
        count = f"all {len(names)}" if len(found) == len(names) else f"{len(found)} of {len(names)}"
        cause = "it was saved with a wrapper around it (torch.compile, DDP), and load_state_dict is strict: it refuses"
        if set(found) == {_COMPILED}:
            cause += "; chat and evaluation take this prefix off, resuming does not"
        yield Diagnosis(
            "prefix",
            "bad",
            file.path,
            step.number,
            f"{count} names in {file.name} begin with {shown}, and those of nanochat's own model do not",
            cause,
            shlex.join(["fastckpt", "inspect", file.path])
            if several
            else commands.rewrite(file.path, f"--strip-prefix={found[0]}"),
            mends=not several,
        )
