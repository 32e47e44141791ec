"""Do the optimizer files of a step belong together, and to this model, and to this number of GPUs?

nanochat asks none of this. With swapped rank files it trains wrongly without a
word; with another number of ranks it takes the files and fails at the first
step. What gives them away is described in `fastckpt.nanochat.checks`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator

from fastckpt.doctor import commands
from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import FileFacts, StepFacts, TagFacts
from fastckpt.doctor.resuming import warming_up
from fastckpt.doctor.versions import RANKED
from fastckpt.nanochat.checks import missing_files
from fastckpt.nanochat.names import OPTIM, Stem
from fastckpt.nanochat.save_mark import SaveMark, parse_mark
from fastckpt.nanochat.steps import list_numbers
from fastckpt.text import count_text, some


def diagnose_ranks(tag: TagFacts, step: StepFacts, world_size: int | None) -> Iterator[Diagnosis]:
    """Everything about a step's optimizer files that does not need their tensors.

    Args:
        tag: The directory.
        step: The step.
        world_size: How many ranks there are now, if the user said so.
    """
    misplaced = list(_misplaced(step))
    if misplaced:
        yield _swapped_or_mixed(step, misplaced)
    else:
        yield from _other_save(step)
        yield from _renamed_step(step)
    yield from _missing(tag, step)
    if not misplaced:
        # A file that is not in its place counts other steps; in its place it may be right.
        yield from _counters(tag, step)
    # What is not all there cannot be divided: that comes first.
    if world_size is not None and not misplaced and not step.missing_ranks:
        yield from _other_world_size(step, world_size)


def _other_world_size(step: StepFacts, world_size: int) -> Iterator[Diagnosis]:
    before = step.world_size
    if not step.optimizers or before is None or before == world_size:
        return
    now = f"{'is' if world_size == 1 else 'are'} {world_size}"
    what = f"step {step.number} was saved by {count_text(before, 'rank')}, and there {now} now"
    cause = "nanochat loads the files without an error and fails at the first step; dealt to the new number of ranks, "
    cause += "they give the same training"
    command = commands.reshard(step.directory, step.number, world_size)
    yield Diagnosis("world-size", "bad", step.directory, step.number, what, cause, command)


def mark_of(file: FileFacts) -> SaveMark | None:
    """The mark of a file that `fastckpt.nanochat.save_checkpoint` wrote; None of any other."""
    return parse_mark(file.structure.metadata) if file.structure is not None else None


def saved_as(file: FileFacts) -> Stem | None:
    """What a file was when it was saved: its mark tells, or the top directory of its zip."""
    mark = mark_of(file)
    if mark is not None:
        return mark.stem
    return file.says.saved_as if file.says is not None else None


def _misplaced(step: StepFacts) -> Iterator[tuple[FileFacts, Stem]]:
    """Files that were saved in another place than they are in, unless the whole step was renamed."""
    saved = [(file, stem) for file in step.files if (stem := saved_as(file)) is not None]
    renamed = {stem.step for _, stem in saved}
    whole_set = len(renamed) == 1 and (step.meta is None or step.meta.step in (None, *renamed))
    for file, stem in saved:
        same_place = (stem.role, stem.rank or 0) == (file.stem.role, file.stem.rank or 0)
        if not same_place or (stem.step != step.number and not whole_set):
            yield file, stem


def _swapped_or_mixed(step: StepFacts, misplaced: list[tuple[FileFacts, Stem]]) -> Diagnosis:
    shown = some([f"{file.name} was saved as {stem}" for file, stem in misplaced], 4)
    swapped = all(stem.step == step.number for _, stem in misplaced)
    pairs = [(file.path, _path_as(file, stem)) for file, stem in misplaced]
    sources, targets = {old for old, _ in pairs}, Counter(new for _, new in pairs)
    free = all(count == 1 and (new in sources or not os.path.lexists(new)) for new, count in targets.items())
    if swapped:
        what = f"the rank files of step {step.number} are swapped: {shown}"
        cause = "nanochat would load each rank's moments on another rank and train wrongly without an error"
    else:
        what = f"files of different steps in step {step.number}: {shown}"
        cause = "nanochat would go on with an optimizer or a model of another step without an error"
    aside = commands.set_aside([file.path for file, _ in misplaced])
    return Diagnosis(
        "swapped" if swapped else "mixed-steps",
        "bad",
        step.directory,
        step.number,
        what,
        cause if free else f"{cause}; other files have the names that they should have",
        commands.rename_all(pairs) if free else aside,
        mends=swapped and free,
    )


def _path_as(file: FileFacts, stem: Stem) -> str:
    if stem.role == OPTIM and file.stem.rank is None:
        stem = stem._replace(rank=None)
    return os.path.join(os.path.dirname(file.path), str(stem) + os.path.splitext(file.path)[1])


def _other_save(step: StepFacts) -> Iterator[Diagnosis]:
    """Files of the same step, but of another run: they differ in what is equal on all ranks of one save."""
    told = [file for file in step.optimizers if file.says is not None and file.says.groups is not None]
    marks = [(file, mark) for file in step.files if (mark := mark_of(file)) is not None]
    strangers = []
    if len(told) > 1:
        keys = [(file, repr(file.says and (file.says.first_moment, file.says.groups))) for file in told]
        usual = Counter(key for _, key in keys).most_common(1)[0][0]
        strangers = [file for file, key in keys if key != usual]
    saves = Counter(mark.save for _, mark in marks if mark.save is not None)
    if len(saves) > 1:
        # The model's save is what the step is; an optimizer of another one is the stranger.
        own = next((mark.save for file, mark in marks if file.stem.role != OPTIM), saves.most_common(1)[0][0])
        strangers += [file for file, mark in marks if mark.save not in (None, own) and file not in strangers]
    if strangers:
        yield Diagnosis(
            "mixed-runs",
            "bad",
            step.directory,
            step.number,
            f"{some([file.name for file in strangers], 4)} is of another run than the rest of step {step.number}",
            "its parts or its options differ from those of the other ranks; in one save they are the same on all ranks",
            commands.set_aside([file.path for file in strangers]),
        )


def _renamed_step(step: StepFacts) -> Iterator[Diagnosis]:
    saved = {stem.step for file in step.files if (stem := saved_as(file)) is not None}
    if len(saved) != 1 or saved == {step.number}:
        return
    original = saved.pop()
    pairs = commands.rename_step(step.paths, original)
    free = not any(os.path.lexists(new) for _, new in pairs)
    yield Diagnosis(
        "renamed",
        "note",
        step.directory,
        step.number,
        f"all files of step {step.number} were saved as step {original}",
        "the step was renamed; it loads, but goes on counting from another number",
        commands.rename_all(pairs) if free else None,
    )


def _missing(tag: TagFacts, step: StepFacts) -> Iterator[Diagnosis]:
    others = [other for other in tag.examined if other.number != step.number and other.optimizers]
    if not step.optimizers:
        if others and step.model is not None:
            yield Diagnosis(
                "optimizer-missing",
                "bad",
                step.directory,
                step.number,
                f"step {step.number} has no optimizer file, as other steps have",
                "the save was interrupted after the model, or the files were deleted: the model can be used, training "
                "cannot go on from here",
                commands.set_step_aside(step.directory, step.number),
            )
        return
    there = {file.stem.rank or 0 for file in step.optimizers}
    missing = step.missing_ranks
    if not missing:
        return
    total = step.world_size or max([*there, *missing]) + 1
    if step.optimizers[0].stem.rank is None:
        yield Diagnosis(
            "ranks-missing",
            "note",
            step.directory,
            step.number,
            f"step {step.number} has the optimizer of rank 0 of {total} only",
            f"nanochat saved no more until {RANKED.date} ({RANKED.commit}), and could not resume; the model loads",
        )
        return
    cause = "the save was interrupted before these ranks were done, or their files were not copied"
    whole = [other for other in tag.examined if other.is_whole and other.number != step.number]
    fresh = None
    if whole:
        cause += f"; step {whole[0].number} is whole"
    else:
        fresh = begin_anew(step, total)
        cause += f"; no step here is whole, so go on without moments; {warming_up(step)}"
    yield Diagnosis(
        "ranks-missing",
        "bad",
        step.directory,
        step.number,
        f"step {step.number}: {missing_files(missing, total)}",
        cause,
        fresh or commands.set_step_aside(step.directory, step.number),
        loss=not whole,
        mends=fresh is not None,
    )


def begin_anew(step: StepFacts, world_size: int) -> str | None:
    """Optimizer files without moments for all ranks; None if no rank's file tells the groups.

    For all of them: a rank with moments beside one without would count different steps.
    """
    donor = next((file for file in step.optimizers if file.is_whole and file.structure is not None), None)
    if donor is None or donor.structure is None:
        return None
    step.begins_anew = True
    suffix = os.path.splitext(donor.path)[1]
    stems = [Stem(OPTIM, step.number, None if donor.stem.rank is None else rank) for rank in range(world_size)]
    targets = [os.path.join(step.directory, f"{stem}{suffix}") for stem in stems]
    return commands.without_moments(donor.path, targets, is_list=isinstance(donor.structure.tree, list))


def _counters(tag: TagFacts, step: StepFacts) -> Iterator[Diagnosis]:
    """AdamW counts the same on all ranks and for all parameters; in base training, the steps."""
    counts: Counter[int] = Counter()
    by_file: dict[str, set[int]] = {}
    for file in step.optimizers:
        counters = file.says.counters if file.says is not None else None
        values = [int(count) for count in (counters or {}).values() if math.isfinite(count)]
        counts.update(values)
        by_file[file.path] = set(values)
    if not counts:
        return
    base = step.meta is not None and bool(step.meta.section("dataloader_state_dict"))
    # Fine-tuning starts from a base optimizer and goes on counting where that left off.
    usual = step.number if base or step.number in counts else counts.most_common(1)[0][0]
    wrong = [path for path, found in by_file.items() if found - {usual}]
    if not wrong:
        return
    if len(counts) == 1 and min(counts) < usual and all(saved_as(file) == file.stem for file in step.optimizers):
        count = min(counts)
        yield Diagnosis(
            "counters",
            "note",
            step.directory,
            step.number,
            f"AdamW has counted {count} steps at step {step.number}, on all ranks alike",
            f"the moments were begun anew at step {usual - count}, or taken from another run; it was saved like this",
        )
        return
    whole = any(other.is_whole for other in tag.examined if other.number != step.number)
    anew = None if whole else begin_anew(step, step.world_size or len(step.optimizers))
    alike: dict[tuple[int, ...], list[str]] = {}
    for path in wrong:
        alike.setdefault(tuple(sorted(by_file[path])), []).append(os.path.basename(path))
    shown = ", ".join(f"{some(paths, 2)} counts {list_numbers(found)}" for found, paths in list(alike.items())[:4])
    yield Diagnosis(
        "counters",
        "bad" if len(wrong) < len(by_file) or any(len(by_file[path]) > 1 for path in wrong) else "warn",
        step.directory,
        step.number,
        f"AdamW's step counters disagree with step {usual}: {shown}",
        "the optimizer was stepped more or less often than the model: files of different steps or runs"
        + (f"; {warming_up(step)}" if anew is not None else ""),
        anew or commands.set_step_aside(step.directory, step.number),
        mends=anew is not None,
    )
