"""The commands that doctor tells: made for a shell, with every name quoted, and short enough to be read.

A command that changes files runs in their directory, in a subshell, so that the
names in it are plain file names and the user's own directory stays what it is.
None of them overwrites or deletes a checkpoint: what is replaced is kept beside
it, under a name that nothing has, and no move goes over a file.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fastckpt.foreign.write_torch import SALVAGED
from fastckpt.nanochat.names import BEFORE, hidden_name, parse_hidden, parse_name

ASIDE: Final = "damaged"
"""Where files go that nanochat shall not find: it looks at no directory inside a tag's."""
_FRESH: Final = "fresh"
"""Where new optimizer files are written before the old ones go."""

_NO_STATE: Final = (
    'import sys, torch; s = torch.load(sys.argv[1], map_location="cpu"); '
    "{empty}; [torch.save(s, p) for p in sys.argv[2:]]"
)
_NO_STATE_OWN: Final = (
    'import sys, fastckpt as f; s = f.load(sys.argv[1]); m = f.open(sys.argv[1]).metadata["nanochat"]; '
    "{empty}; "
    '[f.save(s, p, metadata={{"nanochat": {{**m, "rank": r, "save": None}}}}) for r, p in enumerate(sys.argv[2:])]'
)


def inside(directory: str, *steps: str) -> str:
    """Run commands one after the other in a directory, as long as none fails."""
    joined = " && ".join(steps)
    return f"(cd {shlex.quote(directory)} && {joined})" if directory not in ("", ".") else f"({joined})"


def _place(path: str) -> tuple[str, str]:
    """Directory and name; one that no command takes for an option."""
    directory, name = os.path.split(path)
    return directory, f"./{name}" if name.startswith("-") else name


def _move(old: str, new: str) -> str:
    # -n: of two commands that are typed one after the other, the second must not undo the first.
    words = ["mv", "-n", old, new]
    return shlex.join(words if not old.startswith("-") else ["mv", "-n", "--", old, new])


def _free(directory: str, name: str) -> str:
    """The name, or one with a number after it if something has it."""
    taken, number = name, 1
    while os.path.lexists(os.path.join(directory, taken)):
        number += 1
        taken = f"{name}{number}"
    return taken


def _aside(directory: str, wanted: Callable[[str], bool]) -> str:
    """Where files go out of the way; another directory if such ones were put into the usual one before."""
    taken, number = ASIDE, 1
    while any(wanted(name) for name in _listed(os.path.join(directory, taken))):
        number += 1
        taken = f"{ASIDE}{number}"
    return taken


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def move(path: str, new_name: str) -> str:
    """Give a file or directory another name."""
    directory, name = _place(path)
    return inside(directory, _move(name, new_name))


def rename_all(pairs: Sequence[tuple[str, str]]) -> str:
    """Rename files of one directory; old and new names may overlap, as those of two that were swapped do."""
    directory = os.path.dirname(pairs[0][0])
    names = [(os.path.basename(old), os.path.basename(new)) for old, new in pairs]
    taken = {old for old, _ in names}
    if not any(new in taken for _, new in names):
        return inside(directory, *(_move(old, new) for old, new in names))
    waiting = [(_free(directory, f"{old}.moved"), old, new) for old, new in names]
    away = [_move(old, moved) for moved, old, _ in waiting]
    return inside(directory, *away, *(_move(moved, new) for moved, _, new in waiting))


def set_aside(paths: Sequence[str]) -> str:
    """Move files into a subdirectory of their own, where neither nanochat nor fastckpt takes them for a step."""
    directory, names = os.path.dirname(paths[0]), [os.path.basename(path) for path in paths]
    # What is kept of a step gets its names back: nothing but its files may be there.
    beside = "../" if parse_hidden(os.path.basename(directory)) else ""
    aside = beside + _aside(os.path.join(directory, beside), set(names).__contains__)
    return inside(directory, f"mkdir -p {aside}", shlex.join(["mv", "-n", "--", *names, aside]))


def set_step_aside(directory: str, step: int) -> str:
    """The same for all files of a step, however many ranks it has."""
    pattern, kept = f"*_{step:06d}[._]*", hidden_name(step, BEFORE)
    aside = _aside(directory, lambda name: fnmatch.fnmatch(name, pattern) or name == kept)
    there = _listed(directory)
    words = [pattern] if fnmatch.filter(there, pattern) or kept not in there else []
    # What is kept of it would be loaded in its place.
    words += [kept] if kept in there else []
    return inside(directory, f"mkdir -p {aside}", f"mv -n {' '.join(words)} {aside}")


def put_back(kept: str, names: Sequence[str]) -> str:
    """Give the files in a hidden directory their names back; what has these names is kept aside."""
    directory, hidden = _place(kept)
    aside = _aside(directory, set(names).__contains__)
    away = [f"mkdir -p {aside}", shlex.join(["mv", "-n", "--", *names, aside])] if names else []
    return inside(directory, *away, f"mv -n {shlex.quote(hidden)}/* .", shlex.join(["rmdir", hidden]))


def salvage_in_place(paths: Sequence[str]) -> str:
    """Salvage files, and put what came back in their place; the damaged ones are kept beside it."""
    parts, directory = [], os.path.dirname(paths[0])
    for path in paths:
        name = _place(path)[1]
        stem, suffix = os.path.splitext(name)
        salvaged, kept = f"{stem}{SALVAGED}{suffix}", _free(directory, f"{name}.damaged")
        # salvage exits with 1 or 3 when it got around damage: whether to go on is told by the file.
        parts.append(
            f"{shlex.join(['fastckpt', 'salvage', name, '-o', salvaged])}; {shlex.join(['test', '-e', salvaged])} && "
            f"{_move(name, kept)} && {_move(salvaged, name)}"
        )
    return inside(directory, *parts)


def rewrite(path: str, option: str) -> str:
    """Convert a file to its own format with an option, and put the result in its place; the old one is kept."""
    directory, name = _place(path)
    fresh = _free(directory, _FRESH)
    new = os.path.join(fresh, name)  # Under its own name: a .pt says inside what it was saved as.
    return inside(
        directory,
        f"mkdir {fresh}",
        shlex.join(["fastckpt", "convert", name, new, option]),
        _move(name, _free(directory, f"{name}.before")),
        _move(new, name),
        f"rmdir {fresh}",
    )


def without_moments(source: str, targets: Iterable[str], *, is_list: bool) -> str:
    """Write optimizer files that have the groups of one rank and no state: nanochat then begins it anew.

    The old ones of the step go out of the way, once the new ones are written.

    Args:
        source: A whole optimizer file.
        targets: The files to write, by rank.
        is_list: Whether it holds a list of optimizers, as until January 2026.
    """
    empty = "[o.update(state={}) for o in s]" if is_list else 's["state"] = {}'
    program = (_NO_STATE_OWN if source.endswith(".fckpt") else _NO_STATE).replace("{empty}", empty)
    program = program.replace("{{", "{").replace("}}", "}")
    directory, name = _place(source)
    pattern = f"{name.partition('_rank')[0].partition('.')[0]}[._]*"
    aside = _aside(directory, lambda name: fnmatch.fnmatch(name, pattern))
    fresh = _free(directory, _FRESH)
    new = [os.path.join(fresh, os.path.basename(target)) for target in targets]
    return inside(
        directory,
        f"mkdir -p {aside} {fresh}",
        shlex.join(["python", "-c", program, name, *new]),
        f"mv -n {pattern} {aside}",
        f"mv -n {fresh}/* .",
        f"rmdir {fresh}",
    )


def close_meta(path: str, size: int, missing: Mapping[str, Any]) -> str:
    """End a cut meta file after its last whole entry, and add what is missing; the cut one is kept."""
    end = "".join(f',\\n  "{key}": {json.dumps(value)}' for key, value in missing.items()) + "\\n}"
    directory, name = _place(path)
    cut = _free(directory, name + ".cut")
    head = f"{{ {shlex.join(['head', '-c', str(size), cut])}; printf {shlex.quote(end)}; }} > {shlex.quote(name)}"
    return inside(directory, _move(name, cut), head)


def write_meta(path: str, values: Mapping[str, Any], *, there: bool) -> str:
    """Write a meta file; one that is there is kept."""
    directory, name = _place(path)
    keep = [_move(name, _free(directory, name + ".cut"))] if there else []
    return inside(directory, *keep, f"printf %s {shlex.quote(json.dumps(values))} > {shlex.quote(name)}")


def reshard(directory: str, step: int, world_size: int) -> str:
    """Divide the optimizer of a step among another number of ranks."""
    return shlex.join(["fastckpt", "reshard", directory, "--step", str(step), "--world-size", str(world_size)])


def rename_step(paths: Iterable[str], step: int) -> list[tuple[str, str]]:
    """What the files of a step would be called if it were another one."""
    pairs = []
    for path in paths:
        parsed = parse_name(os.path.basename(path))
        if parsed is not None:
            stem, suffix = parsed
            pairs.append((path, os.path.join(os.path.dirname(path), f"{stem._replace(step=step)}.{suffix}")))
    return pairs


def resume(options: Mapping[str, Any], *, base: str | None, world_size: int, own_format: bool, dashes: bool) -> str:
    """Start base_train.

    Args:
        options: Its options, named as the meta file keeps them.
        base: What ``NANOCHAT_BASE_DIR`` must be, if the default will not do.
        world_size: Ranks that saved it.
        own_format: Whether its files are ``.fckpt``.
        dashes: Whether options are spelled with dashes, as since January 2026.
    """
    words = []
    for key, value in options.items():
        name = key.replace("_", "-") if dashes else key
        if value is True:
            words.append(f"--{name}" if dashes else f"--{name}=True")
        elif isinstance(value, str | int | float) and value is not False:
            words.append(f"--{name}={value}")
    train = ["scripts.base_train", "--", *words]
    if world_size > 1:
        launch = ["torchrun", "--standalone", f"--nproc_per_node={world_size}", "-m"]
        launch += ["fastckpt", "run", "-m"] if own_format else []
    elif own_format:
        launch = ["fastckpt", "run", "-m"]
    else:
        launch, train = ["python", "-m"], ["scripts.base_train", *words]
    place = f"NANOCHAT_BASE_DIR={shlex.quote(base)} " if base is not None else ""
    return place + shlex.join([*launch, *train])


def check_out(before: str) -> str:
    """In a clone of nanochat: the last revision before a commit."""
    return f"git checkout {before}~1"


def remove_directory(path: str) -> str:
    """Delete a directory and all in it."""
    directory, name = _place(path)
    return inside(directory, shlex.join(["rm", "-r", "--", name]))


def remove_if_intact(path: str, names: Sequence[str]) -> str:
    """Delete a directory and all in it, if files beside it are intact to the last byte."""
    directory, name = _place(path)
    verify = shlex.join(["fastckpt", "verify", *names])
    return inside(directory, verify, shlex.join(["rm", "-r", "--", name]))


def find_copy(path: str) -> str:
    """Look for another copy of a file."""
    return f"find ~ -name {shlex.quote(os.path.basename(path))} -not -path '*/{ASIDE}*/*'"


def remove(paths: Sequence[str]) -> str:
    """Delete files of one directory."""
    return inside(os.path.dirname(paths[0]), shlex.join(["rm", "-f", "--", *map(os.path.basename, paths)]))
