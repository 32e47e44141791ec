"""Say what is wrong with checkpoints, why, and what to type next.

DIR is a base directory of nanochat (default: $NANOCHAT_BASE_DIR or
~/.cache/nanochat), one of its checkpoint directories, or a file of one. Nothing
is changed. Without --deep the structure of the newest steps is looked at, and the
first 16 KiB of each tensor, which is quick whatever their size; with it every byte
is read, and all numbers are looked at. Of any other directory with checkpoints (a Trainer's, accelerate's,
torch.distributed.checkpoint's, DeepSpeed's, Lightning's, a model in shards,
files like step_500.pt) every byte is read: which are whole, and what is missing.
DIR can be the URL of such a directory in an object store, with a slash at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fastckpt.cli.progress import progress_bar
from fastckpt.cli.render import Output, Styled
from fastckpt.cli.set_text import other_sets, show_sets
from fastckpt.errors import CheckpointIOError, NotACheckpointError, UsageError
from fastckpt.io.os_errors import file_path
from fastckpt.nanochat.meta import MAX_META_SIZE
from fastckpt.nanochat.names import parse_name
from fastckpt.remote.path import RemotePath, located
from fastckpt.sets.listing import Listing
from fastckpt.sets.recognise import recognise_steps
from fastckpt.text import count_text, quoted, size_text, some
from fastckpt.verdicts import Verdict

if TYPE_CHECKING:
    from fastckpt.doctor.diagnosis import Diagnosis
    from fastckpt.doctor.examination import DoctorDocument, Looked
    from fastckpt.doctor.sizes import Sizes

_WIDTH: Final = 100
_LABEL: Final = 7
_STYLES: Final = {"bad": "bad", "warn": "warn", "note": "dim"}
_SHOWN_NOTES: Final = 4
_SHOWN_TAGS: Final = 12
_SHOWN_COMMANDS: Final = 3

EXAMPLES: Final = (
    "fastckpt doctor                                    # of $NANOCHAT_BASE_DIR",
    "fastckpt doctor base_checkpoints/d4 --deep        # reads every byte",
    "fastckpt doctor --tag d4 --step 20 --world-size 1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``fastckpt doctor``."""
    parser.add_argument("path", nargs="?", metavar="DIR", help="a base directory, a checkpoint directory, or a file")
    parser.add_argument("--tag", metavar="TAG", help="only this tag, such as d12")
    parser.add_argument("--step", type=int, metavar="N", help="only this step")
    parser.add_argument("--deep", action="store_true", help="read every byte, and look for NaN and zero moments")
    parser.add_argument("--all", action="store_true", help="look at all steps, and show every finding by itself")
    parser.add_argument("--depth", type=int, metavar="N", help="does the model fit base_train --depth N?")
    parser.add_argument("--config", metavar="FILE", help="does it fit the model_config in this JSON file?")
    parser.add_argument("--world-size", type=int, metavar="N", help="on how many ranks it is to go on")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Examine, and show one screen."""
    from fastckpt.doctor.examination import Question, examine
    from fastckpt.nanochat.choosing import base_directory

    place = located(args.path) if args.path else None
    if isinstance(place, RemotePath):
        return _in_store(place, args.threads, out)
    path = base_directory() if args.path is None else file_path(args.path).rstrip("/") or args.path[:1]
    sets = other_sets(path)
    if sets:
        return show_sets(path, sets, args.threads, out)
    sizes, sizes_as = _sizes(args)
    for name, value in (("--step", args.step), ("--world-size", args.world_size)):
        if value is not None and value < (0 if name == "--step" else 1):
            raise UsageError(f"{name} cannot be {value}")
    question = Question(args.tag, args.step, sizes, sizes_as, args.world_size, args.deep, args.all)
    with progress_bar("reading every byte", lambda: _total(path) if args.deep else 0) as progress:
        result = examine(path, question, threads=args.threads, progress=progress)
    space = result.space
    facts: DoctorDocument = {
        "path": result.path,
        "deep": args.deep,
        "looked": result.looked,
        "tags": result.tags,
        "findings": result.diagnoses,
        "free": space.free if space is not None else None,
        "exit_code": result.exit_code,
    }
    out.show(facts, lambda facts: _lines(facts, every=args.all))
    out.document(facts)
    return result.exit_code


def _in_store(place: RemotePath, threads: int | None, out: Output) -> int:
    """Which checkpoints of a directory in a store are whole."""
    name = os.fspath(place)
    if not place.is_directory:
        advice = f"fastckpt verify {quoted(name)}; of a directory, the URL ends with a slash"
        raise UsageError("a file in a store is not examined", path=name, next_step=advice)
    if any(parse_name(each) is not None for each in Listing(place).names):
        advice = f"fastckpt verify {quoted(name)}, for each file; or copy the directory, and examine that"
        raise UsageError("steps of nanochat are examined on this computer, not in a store", path=name, next_step=advice)
    sets = recognise_steps(place)
    if not sets:
        raise NotACheckpointError("there is no checkpoint in this directory", path=name)
    return show_sets(name, sets, threads, out)


def _sizes(args: argparse.Namespace) -> tuple[Sizes | None, str]:
    from fastckpt.doctor.sizes import sizes_of_config, sizes_of_depth

    if args.depth is not None and args.config is not None:
        raise UsageError("--depth and --config both say what the model should be", next_step="give one of them")
    if args.depth is not None:
        if not 0 < args.depth <= 10_000:
            raise UsageError(f"--depth cannot be {args.depth}")
        return sizes_of_depth(args.depth), f"--depth {args.depth}"
    if args.config is None:
        return None, ""
    try:
        with open(args.config, "rb") as file:
            config = json.loads(file.read(MAX_META_SIZE))
    except OSError as error:
        raise CheckpointIOError(error.strerror or str(error), errno=error.errno, path=args.config) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"this is not JSON: {str(error)[:80]}", path=args.config) from None
    config = config.get("model_config", config) if isinstance(config, dict) else {}
    sizes = sizes_of_config(config) if isinstance(config, dict) else None
    if sizes is None:
        expected = "n_layer, n_embd, n_head, n_kv_head, vocab_size"
        raise UsageError("this is no model_config of nanochat", path=args.config, expected=expected)
    return sizes, args.config


def _total(path: str) -> int:
    """Bytes of the checkpoints below a path, for the progress bar."""
    total = os.stat(path).st_size if os.path.isfile(path) else 0
    for directory, _, names in os.walk(path):
        for name in names:
            if parse_name(name) is None:
                continue
            try:
                total += os.stat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total


# --- text ---------------------------------------------------------------------


def _lines(facts: DoctorDocument, *, every: bool) -> Iterator[str | Styled]:
    yield from _heading(facts)
    groups = _grouped(facts["findings"], every=every)
    labels = {tag["path"]: tag["tag"] for tag in facts["tags"]} if len(facts["tags"]) > 1 else {}
    notes = 0
    for finding, others in groups:
        if finding.severity == "note" and not every:
            notes += 1
            if notes > _SHOWN_NOTES:
                continue
        yield from _finding_lines(finding, others, labels)
    if notes > _SHOWN_NOTES:
        yield Styled(f"... and {count_text(notes - _SHOWN_NOTES, 'more note')} (--all)", "dim")
    yield from _conclusion(facts)


def _heading(facts: DoctorDocument) -> Iterator[str | Styled]:
    tags = facts["tags"]
    if not tags:
        return
    yield Styled(facts["path"], "bold")
    for tag in tags[:_SHOWN_TAGS]:
        steps, newest = tag["steps"], tag["newest_whole"]
        shown = next((step for step in tag["examined"] if step["step"] == newest), None)
        numbers = ", ".join(map(str, steps[-4:]))
        if len(steps) > 4:
            numbers = f"{count_text(len(steps), 'step')}, the newest {steps[-1]}"
        else:
            numbers = f"step{'s' if len(steps) > 1 else ''} {numbers}"
        parts = [numbers]
        if newest is None:
            parts.append("none whole")
        elif newest == steps[-1]:
            parts.append(str(Verdict.WHOLE))
        else:
            parts.append(f"newest {Verdict.WHOLE} {newest}")
        if shown is not None:
            ranks = shown["world_size"]
            parts.append(f"{size_text(shown['nbytes'])} {shown['suffix']}".strip())
            parts += [count_text(ranks, "rank")] if ranks else []
        saves = tag["space"]["saves"]
        parts += [f"room for {saves:,} more"] if saves is not None else []
        style = "bad" if newest is None else "good" if tag["newest_sound"] == steps[-1] else "warn"
        yield from _wrapped(f"{tag['tag']}: {', '.join(parts)}", indent=2, style=style)
        about = [part for part in (tag["sizes"], f"nanochat of {tag['nanochat']}" if tag["nanochat"] else None) if part]
        yield from _wrapped("; ".join(about), indent=4, style="dim")
    if len(tags) > _SHOWN_TAGS:
        yield Styled(f"  ... and {len(tags) - _SHOWN_TAGS} more tags (--json lists all)", "dim")


def _grouped(findings: list[Diagnosis], *, every: bool) -> list[tuple[Diagnosis, list[Diagnosis]]]:
    """Findings of the same kind in the same directory as one, with the others behind it."""
    groups: dict[tuple[Any, ...], tuple[Diagnosis, list[Diagnosis]]] = {}
    for number, finding in enumerate(findings):
        # What is not about a step stands by itself.
        own = number if every or finding.step is None else None
        key = (finding.kind, finding.severity, _directory(finding), own)
        if key not in groups:
            groups[key] = (finding, [])
        else:
            groups[key][1].append(finding)
    return list(groups.values())


def _directory(finding: Diagnosis) -> str:
    return finding.path if os.path.isdir(finding.path) else os.path.dirname(finding.path)


def _finding_lines(finding: Diagnosis, others: list[Diagnosis], labels: dict[str, str]) -> Iterator[str | Styled]:
    yield ""
    label = labels.get(_directory(finding), "")
    what = finding.what
    if label and not what.startswith(label):
        what = f"{label}: {what}"
    steps = sorted({other.step for other in others if other.step is not None} - {finding.step}, reverse=True)
    if steps:
        what += f"; the same at step{'s' if len(steps) > 1 else ''} {some(steps, 6)} (--all)"
    elif others:
        what += f"; and {count_text(len(others), 'file')} more of this step (--all)"
    yield from _wrapped(what, label=finding.severity.ljust(_LABEL), style=_STYLES[finding.severity])
    if finding.cause:
        yield from _wrapped(finding.cause, label="cause".ljust(_LABEL))
    # One command may mend several findings.
    commands = [following for one in (finding, *others) if (following := one.next)]
    for number, command in enumerate(list(dict.fromkeys(commands))[:_SHOWN_COMMANDS]):
        yield from shell_lines(command, label=("next" if not number else "").ljust(_LABEL))


def _wrapped(text: str, *, label: str = "", indent: int = 0, style: str = "") -> Iterator[str | Styled]:
    space = " " * (indent + len(label))
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=" " * indent + label, subsequent_indent=space, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    for line in lines:
        yield Styled(line, style) if style else line


_WORD: Final = re.compile(r"""(?:[^\s'"\\]|'[^']*'|"(?:[^"\\]|\\.)*"|\\.)+""")


def shell_lines(command: str, *, label: str) -> Iterator[str]:
    """A command on lines of a readable length, continued by backslashes so that it can still be pasted."""
    line = label
    fresh = True
    for word in _WORD.findall(command):
        if not fresh and len(line) + 1 + len(word) + 2 > _WIDTH:
            yield f"{line} \\"
            line, fresh = " " * (len(label) + 2), True
        line += word if fresh else f" {word}"
        fresh = False
    yield line


def _looked_at(looked: Looked) -> str:
    """What that rests on."""
    files, unproven = looked["files"], looked["unproven"]
    if unproven is None:
        read = "--deep would read every byte"
    elif not unproven:
        read = "every byte is as it was written"
    else:
        read = f"every byte was read, and no checksum proves all of {unproven} of {files} files"
    tensors, sampled = looked["tensors"], looked["sampled"]
    if not tensors:
        return read
    part = "" if looked["first_bytes"] is None else f"the first {size_text(looked['first_bytes'])} of "
    each = f"{sampled:,} of {tensors:,} tensors"
    if sampled == tensors:
        each = "any tensor" if looked["first_bytes"] is None else "each tensor"
    return f"no NaN or infinity in {part}{each}; {read}"


def _conclusion(facts: DoctorDocument) -> Iterator[str | Styled]:
    serious = [finding for finding in facts["findings"] if finding.severity != "note"]
    if facts["exit_code"] == 0 and not serious:
        yield Styled(f"{Verdict.NOTHING_WRONG}; {_looked_at(facts['looked'])}", "good")
        return
    stale = [tag for tag in facts["tags"] if tag["resume"] and tag["newest_sound"] != tag["steps"][-1]]
    for tag in stale[:2]:
        state = f"is {Verdict.WHOLE}"
        if tag["resume_step"] != tag["newest_sound"]:
            whole = any(step["whole"] for step in tag["examined"] if step["step"] == tag["resume_step"])
            state = "this mends" if whole else f"this makes {Verdict.WHOLE}"
        yield ""
        yield from _wrapped(f"then go on from step {tag['resume_step']} of {tag['tag']}, which {state}:", style="good")
        yield from shell_lines(str(tag["resume"]), label=" " * _LABEL)
