"""How to go on from a whole step."""

from __future__ import annotations

import os

from fastckpt.doctor import commands
from fastckpt.doctor.facts import StepFacts
from fastckpt.doctor.sizes import HEAD_SIZE, sizes_of_model
from fastckpt.doctor.versions import EPOCH, HISTORY, model_shapes, version_range
from fastckpt.nanochat.choosing import base_directory
from fastckpt.nanochat.options import FOREVER, is_default, warm_up
from fastckpt.nanochat.places import BASE

_MOST_OPTIONS = 200


def resume_command(step: StepFacts, like: StepFacts | None = None) -> str | None:
    """What starts base_train at a step, with those options of the run that saved it that are not its defaults.

    If the moments of the step are begun anew, it warms up again, where the options of that revision can do it.

    Args:
        step: The step.
        like: Another step of the same run, for the options if this one's meta is damaged.

    Returns:
        None if it has no optimizer, or is of a revision that could not resume (until November 2025).
    """
    if not step.optimizers or step.optimizers[0].stem.rank is None:
        return None
    # nanochat keeps all options in meta; without them, the depth is what matters.
    options = _options(step, like)
    made = sizes_of_model(model_shapes(step), {})
    if not options and made is not None and made.n_embd % HEAD_SIZE == 0:
        options["depth"] = made.n_layer
    base, name = _place(step.directory)
    # The directory is where it is now, whatever it was called when it was saved.
    options["model_tag"] = None if name == f"d{options.get('depth')}" else name
    options.pop("resume_from_step", None)
    if len(options) > _MOST_OPTIONS:
        return None  # No base_train has as many: this is not what it saved.
    versions = version_range(like or step)
    since, before = FOREVER, FOREVER
    if versions is not None and not versions.conflict:
        since, before = versions.since.date, versions.before.date if versions.before is not None else FOREVER
    told = {name: value for name, value in options.items() if not is_default(name, value, since, before)}
    told |= (warm_up(options, step.number) or {}) if _begins_anew(step) else {}
    return commands.resume(
        {**told, "resume_from_step": step.number},
        base=base,
        world_size=step.world_size or 1,
        own_format=step.state.suffix == ".fckpt",
        dashes=versions is not None and HISTORY.index(versions.since) >= HISTORY.index(EPOCH),
    )


def warming_up(step: StepFacts) -> str:
    """What becomes of the learning rate of a step whose moments are begun anew."""
    wanted = warm_up(_options(step, None), step.number)
    if wanted is not None:
        return f"the command that resumes warms up again, from a tenth of the learning rate at step {step.number}"
    return (
        f"nanochat's options cannot warm up again at step {step.number}, because they count from step 0: "
        "the first steps take the full learning rate"
    )


def _begins_anew(step: StepFacts) -> bool:
    """Whether its moments are, or will be by a command that was told, those of a run that begins."""
    structures = [file.structure for file in step.optimizers]
    return step.begins_anew or (bool(step.number) and not any(each is None or each.entries for each in structures))


def _options(step: StepFacts, like: StepFacts | None) -> dict[str, object]:
    metas = [other.meta for other in (step, like) if other is not None and other.meta is not None]
    return dict(next((found for meta in metas if (found := meta.section("user_config"))), {}))


def _place(directory: str) -> tuple[str | None, str]:
    """The base directory that nanochat must be told of, if it is not the default, and the tag."""
    above, name = os.path.split(os.path.abspath(directory))
    base, source = os.path.split(above)
    known = source != BASE or os.path.realpath(base) == os.path.realpath(base_directory())
    return (None if known else base), name
