"""`fastckpt.load_into`: a checkpoint's bytes go straight into tensors that exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from fastckpt.errors import MismatchError, TensorNotFoundError
from fastckpt.io.file_object import refuse_swapped
from fastckpt.io.source import Openable
from fastckpt.io.transfer import Progress
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.layout.entries import Entry
from fastckpt.layout.prefixes import Named, find_renaming, with_names, without_prefix
from fastckpt.layout.subtree import part_of
from fastckpt.loading.destination import Destination, Plan
from fastckpt.loading.filling import FileFiller, Filler
from fastckpt.loading.opening import opened
from fastckpt.remote.path import Options, as_place, located
from fastckpt.staging.device import device_of
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import staging_for
from fastckpt.text import quoted, some


class Unmatched(NamedTuple):
    """What `load_into` left out, with ``strict=False``.

    Attributes:
        missing: Names that only the destination has: these are as they were.
        unexpected: Names that only the checkpoint has.
    """

    missing: list[str]
    unexpected: list[str]


def load_into(
    destination: object,
    path: Openable,
    *,
    prefix: str | None = None,
    strip_prefix: str | None = None,
    keys: str | Iterable[str] | None = None,
    strict: bool = True,
    threads: int | None = None,
    ring: Ring | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> Unmatched:
    """Copy a checkpoint into ``destination``, in place: into its tensors, modules, optimizers and plain values.

    Names, shapes and dtypes must agree. They are compared first, and nothing
    is written if any differ. A contiguous tensor is filled straight from the
    file (on a device: from the slots of the ring, and verified there); only
    strided ones and small ones pass through a buffer.

    An optimizer, or another object with ``load_state_dict``, gets its state by
    that, with its own tensors in it as far as it has some. One without state
    yet, before its first step, gets all of it; it must have as many parameters. The state of another kind of
    optimizer (AdamW's for SGD) is refused by the names of options and state that only one has.

    Args:
        destination: A module, an optimizer, or a state: any nesting with these and with tensors in it. Its
            tensors may be on several devices. Plain values in its dicts and lists are replaced by those that the
            checkpoint has in the same place; all else stays as it is.
        path: What `fastckpt.load` takes. Of a directory, every part of a tensor is read from its file to its place.
        prefix: Only the part of the checkpoint with this name, or whose names begin with it and a dot, without
            that: ``prefix="model"`` for a model that was saved as ``{"model": model, ...}``.
        strip_prefix: What a wrapper put before every name of a model, such as ``_orig_mod.``: names in the
            checkpoint count without it or, if they have none, names in the destination.
        keys: Names or globs, as they are in the destination: only these tensors are loaded, and no plain values.
            An optimizer with a tensor among them is loaded whole.
        strict: Refuse names that only one side has. With False they are returned; shapes and dtypes must agree all
            the same. An optimizer for which there is only the state of another kind stays as it is then.
        threads: Worker threads; None takes one per CPU.
        ring: To a device: the slots that the bytes pass through.
        progress: Called now and then with the bytes done so far (for each device from 0 on).
        storage_options: See `fastckpt.load`.

    Returns:
        ``missing`` and ``unexpected``: the names that only the destination has, and only the checkpoint.

    Raises:
        MismatchError: All differences are listed; nothing was written. Or an object did not take its state; then
            the destination must not be used.
        DamagedError: The file, or one of the directory, is damaged. The destination may be partly
            overwritten by then, which the message says: load it again before use.
        TensorNotFoundError: A key matches nothing, or nothing has the prefix.
        UsageError: An array cannot be written, an object of a registered class holds tensors, or a name would
            stand for two tensors without the prefix.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError

    Example:
        >>> state = {"model": torch.nn.Linear(3, 2), "step": 0}
        >>> fastckpt.save(state | {"step": 500}, "both.fckpt")
        >>> fastckpt.load_into(state, "both.fckpt").missing, state["step"]
        ([], 500)
    """
    refuse_swapped(destination, path, "fastckpt.load_into")
    path = located(path, storage_options)
    here = Destination(destination)
    with _source_of(path, here, keys, prefix, renamed=bool(strip_prefix)) as source:
        there = source.named
        if prefix:
            there = _part(there, prefix, source.path)
        if strip_prefix:
            there = _under_names_here(there, here.named, strip_prefix)
        plan = _plan(here, there, source, keys=keys, strict=strict)
        tensors = {name: tensor.detach() for name, tensor in plan.tensors.items()}
        stagings = {
            device: staging_for(device_of(device), ring=ring, threads=threads, progress=progress)
            for device in dict.fromkeys(tensor.device for tensor in tensors.values())
        }
        source.require(plan.entries)
        try:
            source.fill(plan.entries, tensors, stagings)
            here.hand_over(plan)
        except BaseException as error:
            if hasattr(error, "message"):
                error.message += "; the destination is partly overwritten and must not be used"
            raise
    return Unmatched(plan.match.missing, plan.match.unexpected)


@contextmanager
def _source_of(
    path: Openable, here: Destination, keys: str | Iterable[str] | None, prefix: str | None, *, renamed: bool
) -> Iterator[Filler]:
    """What fills the destination: a file, or a directory with one checkpoint in it."""
    if isinstance(path, str | os.PathLike) and is_directory_of_checkpoints(path):
        from fastckpt.loading.set_filler import set_filler

        part = None if prefix is None else prefix.removesuffix(".")
        yield set_filler(as_place(path), keys, prefix=part, renamed=renamed, values=keys is None or here.takes_states)
        return
    with opened(path, None) as wanted:
        yield FileFiller(wanted)


def _part(there: Named, prefix: str, path: str) -> Named:
    part = part_of(there, prefix.removesuffix("."))
    if part is None:
        names = {entry.name.partition(".")[0]: None for entry in there.entries}
        raise TensorNotFoundError(
            f"no name is or begins with {prefix!r}",
            path=path,
            expected=f"one of {some(names)}" if names else "a name; there are no tensors",
            next_step=f"fastckpt inspect {quoted(path)}",
        )
    return part


def _under_names_here(there: Named, here: Named, prefix: str) -> Named:
    """The checkpoint under the names that its tensors have in the destination."""
    tree = without_prefix(there.tree(), prefix)
    stripped = with_names(there.entries, tree)
    names = {entry.name for entry in here.entries}
    if {entry.name for entry in stripped} != names:
        own = {bare.name: entry.name for bare, entry in zip(_bare(here, prefix), here.entries, strict=True)}
        under_own = [entry._replace(name=own.get(entry.name, entry.name)) for entry in there.entries]
        if _common(under_own, names) > _common(stripped, names):
            return Named(under_own, there.tree)
    return Named(stripped, lambda: tree)


def _bare(here: Named, prefix: str) -> list[Entry]:
    return with_names(here.entries, without_prefix(here.tree(), prefix))


def _common(entries: Sequence[Entry], names: set[str]) -> int:
    return sum(entry.name in names for entry in entries)


def _plan(here: Destination, there: Named, source: Filler, *, keys: str | Iterable[str] | None, strict: bool) -> Plan:
    """`Destination.plan`; the error says which argument would make the names the same, if one would."""
    try:
        return here.plan(there, source.path, source.storage_sizes, keys=keys, strict=strict)
    except MismatchError as error:
        renamed = find_renaming(there, here.named)
        if renamed is not None:
            sides = [(renamed.prefix_a, "the checkpoint has"), (renamed.prefix_b, "the destination has")]
            said = [f"{side} the prefix {prefix!r}" for prefix, side in sides if prefix]
            error.message = f"the names are the same, but {' and '.join(said)}: {error.message}"
            if len(said) == 1:
                error.next_step = f"load_into(..., strip_prefix={renamed.prefix_a or renamed.prefix_b!r})"
        elif (prefix := _prefix_of_all(there, here.named)) is not None:
            error.next_step = f"load_into(..., prefix={prefix!r})"
        raise


def _prefix_of_all(there: Named, here: Named) -> str | None:
    """What the names of the destination have before them in the checkpoint; None if there is no such thing."""
    names = {entry.name for entry in there.entries}
    mine = [entry.name for entry in here.entries]
    for name in names if mine else ():
        if name.endswith(f".{mine[0]}"):
            prefix = name[: -len(mine[0]) - 1]
            if all(f"{prefix}.{other}" in names for other in mine):
                return prefix
    return None
