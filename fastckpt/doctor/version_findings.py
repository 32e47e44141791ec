"""Which revision of nanochat a step needs, where that is not today's."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.doctor.versions import SMEAR, model_shapes, version_range


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
