"""Taking stock of one damaged archive: its pickle gives all offsets, CRC-32s prove the bytes found there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from fastckpt.errors import UnsupportedStateError
from fastckpt.findings import UNSETTLED, Finding, Kind
from fastckpt.foreign.accounting import FORMALITIES
from fastckpt.foreign.deflated import is_deflated
from fastckpt.foreign.last_record import CONTRADICTED
from fastckpt.foreign.torch_export import EXPORT_WEIGHTS
from fastckpt.foreign.torch_export_old import OLD_EXPORT_PROGRAM
from fastckpt.foreign.torch_state import TorchState
from fastckpt.foreign.torch_zip import is_torchscript
from fastckpt.io.part import Part
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import can_read, read_there
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.surveying.blueprint import Blueprint, FindBlueprint
from fastckpt.surveying.torch_zip.byte_order import settle_byte_order
from fastckpt.surveying.torch_zip.evidence import Archive, Directory, read_directory
from fastckpt.surveying.torch_zip.folder import storages_of_folder
from fastckpt.surveying.torch_zip.one_save import settle
from fastckpt.surveying.torch_zip.pickle import NOT_THERE, FoundPickle, find_pickle
from fastckpt.surveying.torch_zip.places import (
    agreed_places,
    announced,
    arithmetic_places,
    find_storages,
    listed_places,
)
from fastckpt.surveying.torch_zip.repacked import is_deflated_there
from fastckpt.surveying.torch_zip.storages import Candidate, Sums
from fastckpt.surveying.wreck import Original, StorageState, Unnamed, Wreck
from fastckpt.text import some


def survey_archive(
    source: Part, find_blueprint: FindBlueprint, *, threads: int, progress: Progress | None, is_exact: bool = False
) -> Wreck:
    """What stands of a torch zip archive; offsets count from its beginning.

    Args:
        source: The part of the file that is the archive.
        find_blueprint: Gives the structure of another checkpoint in which storages of these keys and sizes fit.
        threads: Worker threads.
        progress: Called with the bytes verified so far.
        is_exact: Whether the archive is known to begin with the part: what was found elsewhere in it is another one's.

    Raises:
        UnsupportedStateError: A .pt2.
    """
    wreck = Wreck(source.path, "torch-zip", source.size)
    directory = read_directory(source)
    archive = Archive(source, directory.entries, directory.is_whole)
    pickle = find_pickle(source, archive.directory)
    archive.prefix = pickle.prefix
    _look_at_program(archive, wreck)
    found = {} if pickle.state is not None and not pickle.contradicted else announced(archive)
    blueprint = _other_structure(wreck, pickle, found, find_blueprint)
    if blueprint is not None:
        sizes = blueprint.sizes
    elif pickle.state is not None:
        sizes = _sizes_in(pickle.state)
    else:
        sizes = list(found.items())
    known = pickle.state is not None
    sums = Sums(archive, threads=threads, progress=progress)
    is_folder = source.base.unpacked is not None
    if is_folder:
        candidates, states = storages_of_folder(archive, sizes)
    else:
        first = agreed_places(archive, sizes)
        if len(first) < len(sizes):
            first = (arithmetic_places(archive, pickle, sizes) if known else listed_places(archive, sizes)) | first
        # Of storages known only by what was found of them, some may be missing in between.
        in_order = blueprint is not None or known
        candidates, states = find_storages(archive, sizes, first, sums, in_order=in_order)
        for candidate, state in zip(candidates, states, strict=True):
            if is_exact and state.nbytes and candidate.place != first.get(candidate.key):
                state.lose("another record is in its place")
    for state in states:
        if state.nbytes > source.size and (pickle.doubt or blueprint is not None):
            state.lose("the file ends before its end, and its size is not certain")
    if blueprint is None and known and not is_folder:
        wreck.unsettled = settle(archive, pickle, candidates, states, sums)
    elif not archive.whole_directory:
        wreck.unsettled = UNSETTLED
    if blueprint is not None:
        _take_blueprint(wreck, blueprint, states)
    elif pickle.state is not None:
        _take_state(wreck, archive, pickle, pickle.state, candidates, states)
    else:
        _take_storages(wreck, candidates, states)
    if not pickle.proven:
        text = pickle.problem or pickle.doubt
        size = max(pickle.end - pickle.offset, 0)
        kind = Kind.UNPROVEN if pickle.not_computed else Kind.MISSING if text == NOT_THERE else Kind.ROTTED
        if not can_read(source, pickle.offset, max(size, 1)):
            kind, text = Kind.UNREADABLE, "data.pkl, which has names, shapes and dtypes, cannot be read"
        lost = wreck.structure in ("none", "damaged") and kind is not Kind.UNPROVEN
        wreck.findings.append(Finding(kind, text, pickle.offset, size, loss=lost))
    wreck.findings += _about_the_directory(source, directory, wreck.unsettled)
    _report_storages(wreck, candidates, states)
    _look_at_the_rest(archive, wreck, {archive.name(key) for key, _ in sizes})
    settle_byte_order(wreck, archive, pickle, candidates, states)
    return wreck


def _about_the_directory(source: Part, directory: Directory, unsettled: str) -> Iterator[Finding]:
    """What is wrong with a directory, and whether anything proves that all of the archive is of one save."""
    more = f", and {unsettled}" if unsettled == UNSETTLED else ""
    for entry in directory.again:
        text = f"the directory has the name {entry.name[:200]} twice, and this is the second record of it{more}"
        yield Finding(Kind.INCONSISTENT, text, entry.header, entry.size, loss=False)
    if not directory.stands:
        text = f"the directory that a zip archive ends with is missing or damaged; tensors are found without it{more}"
        yield Finding(Kind.MISSING, text, max(source.size - 22, 0), min(source.size, 22), loss=False)
    elif unsettled and not directory.again:
        text = UNSETTLED if unsettled == UNSETTLED else f"{UNSETTLED}: {unsettled}"
        yield Finding(Kind.UNPROVEN, text, 0, 0, loss=False)


def _look_at_program(archive: Archive, wreck: Wreck) -> None:
    """Say that the program of a TorchScript archive does not come back. Raises UnsupportedStateError for a .pt2."""
    names = {name.partition("/")[2] for name in archive.directory}
    if EXPORT_WEIGHTS in names or OLD_EXPORT_PROGRAM in archive.directory:
        raise UnsupportedStateError(
            "this is a .pt2 of torch.export, of which a damaged one is not salvaged",
            path=archive.source.path,
            next_step="fastckpt verify names what is damaged; export it again",
        )
    if is_deflated((entry.name, is_deflated_there(archive.source, entry)) for entry in archive.directory.values()):
        raise UnsupportedStateError(
            "several archives in one file, packed again with compression, and damaged then: they are not salvaged",
            path=archive.source.path,
            next_step="take another copy; or unpack what unzip can, and pack that: zip -0 -r NAME.pt FOLDER",
        )
    if is_torchscript(names):
        wreck.notes.append("this is a TorchScript archive: its tensors come back, the program does not")
        wreck.is_open = True


def _look_at_the_rest(archive: Archive, wreck: Wreck, storages: Collection[str]) -> None:
    """Say which records the directory has that no part of the structure refers to: they do not come back."""
    rest = [
        name
        for name, entry in archive.directory.items()
        if entry.size and name not in storages and not _is_known(name.partition("/")[2])
    ]
    if rest and not wreck.is_open:
        wreck.notes.append(f"nothing refers to {some(rest)}: what is written does not have it")
        wreck.is_open = True


def _is_known(inner: str) -> bool:
    return inner == "data.pkl" or inner.startswith(FORMALITIES)


def _sizes_in(state: TorchState) -> list[tuple[str, int]]:
    return [(key, storage.nbytes) for key, storage in state.all_storages.items()]


def _other_structure(
    wreck: Wreck, pickle: FoundPickle, found: Mapping[str, int], find_blueprint: FindBlueprint
) -> Blueprint | None:
    """The structure of another checkpoint, where data.pkl is lost or wrong.

    A pickle that nothing proves and nothing contradicts stands; another checkpoint may confirm it.
    """
    if pickle.proven or pickle.not_computed:
        return None
    state = pickle.state
    if state is None or pickle.contradicted:
        return find_blueprint(found, wreck.notes)
    blueprint = find_blueprint(dict(_sizes_in(state)), wreck.notes)
    if blueprint is None or not _is_same(state, blueprint):
        return blueprint
    pickle.doubt = ""
    wreck.notes.append(
        "nothing proves data.pkl; its names, shapes and dtypes are also those of another checkpoint of this kind, "
        "but plain values (such as lr and step) are only its own"
    )
    return None


def _is_same(state: TorchState, blueprint: Blueprint) -> bool:
    """Whether a pickle and another checkpoint have the same tensors in the same storages."""
    own = [(e, state.storages[e.storage].key) for e in state.entries]
    theirs = [(e, blueprint.sizes[e.storage][0]) for e in blueprint.entries]
    return sorted((key, e._replace(storage=0)) for e, key in own) == sorted(
        (key, e._replace(storage=0)) for e, key in theirs
    )


# --- what they are ------------------------------------------------------------


def _take_state(
    wreck: Wreck,
    archive: Archive,
    pickle: FoundPickle,
    state: TorchState,
    candidates: Sequence[Candidate],
    states: list[StorageState],
) -> None:
    by_key = {candidate.key: found for candidate, found in zip(candidates, states, strict=True)}
    wreck.tree, wreck.entries = state.tree, state.entries
    wreck.storages = [by_key[storage.key] for storage in state.storages]
    wreck.structure = "damaged" if pickle.contradicted else "whole"
    wreck.doubt = pickle.doubt
    wreck.opaque = state.opaque
    keys = [storage.key for storage in state.storages]
    named = set(keys)
    wreck.unnamed = [
        Unnamed(key, by_key[key], storage.type.dtype) for key, storage in state.all_storages.items() if key not in named
    ]
    if pickle.proven:
        raw = read_there(archive.source, pickle.offset, pickle.end - pickle.offset)
        wreck.original = Original(raw, keys, list(state.all_storages))


def _take_blueprint(wreck: Wreck, blueprint: Blueprint, states: list[StorageState]) -> None:
    wreck.tree, wreck.entries, wreck.storages = blueprint.tree, blueprint.entries, states
    wreck.structure = blueprint.structure
    wreck.doubt = blueprint.doubt
    wreck.notes += blueprint.notes


def _take_storages(wreck: Wreck, candidates: Sequence[Candidate], states: list[StorageState]) -> None:
    """No structure at all: the storages are listed under their keys, as bytes."""
    wreck.storages = states
    wreck.entries = [
        Entry(f"data/{candidate.key}", "uint8", (candidate.nbytes,), (1,), number, 0)
        for number, candidate in enumerate(candidates)
    ]
    wreck.tree = {entry.name: TensorRef(number) for number, entry in enumerate(wreck.entries)}
    wreck.structure = "none"
    if candidates:
        wreck.notes.append(
            "nothing tells names, shapes and dtypes: storages are listed by number, as bytes; "
            "name a checkpoint of the same structure with --like"
        )


def _report_storages(wreck: Wreck, candidates: Sequence[Candidate], states: Sequence[StorageState]) -> None:
    names: dict[int, list[str]] = {}
    for entry in wreck.entries:
        names.setdefault(id(wreck.storages[entry.storage]), []).append(entry.name)
    for candidate, state in zip(candidates, states, strict=True):
        tensors = tuple(names.get(id(state), ()))
        shown = some(tensors)
        offset = min(state.offset if state.offset is not None else wreck.size, wreck.size)
        size = min(state.nbytes, wreck.size - offset)
        if state.proven:
            if candidate.nbytes and not candidate.named:
                text = f"the local header of data/{candidate.key} is damaged; its place follows from the sizes"
                at = candidate.place.header if candidate.place is not None else offset
                wreck.findings.append(Finding(Kind.ROTTED, text, at, offset - at, loss=False))
            if candidate.is_disputed:
                text = (
                    f"data/{candidate.key} ({shown or 'no tensor'}): the descriptor behind it has another CRC-32 than "
                    "the directory; its bytes match the one that belongs to all others"
                )
                wreck.findings.append(Finding(Kind.INCONSISTENT, text, offset, size, tensors=tensors, loss=False))
            continue
        mixed = state.reason.startswith(CONTRADICTED)
        kind = state.holes[0].kind if state.holes else Kind.INCONSISTENT if mixed else Kind.UNPROVEN
        text = f"data/{candidate.key} ({shown or 'no tensor'}): {state.reason}"
        wreck.findings.append(Finding(kind, text, offset, size, tensors=tensors, loss=mixed or bool(state.holes)))
    disputed = sum(c.is_disputed and not state.proven for c, state in zip(candidates, states, strict=True))
    if disputed > 1:
        wreck.notes.append(
            f"the directory states other checksums than stand behind {disputed} tensors: the file mixes two saves"
        )
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))
