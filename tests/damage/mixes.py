"""The lab of mixes: files with bytes of two saves, or with bytes of their own in wrong places.

From the root of the repository::

    python tests/damage/mixes.py --cases 20000 --seed 1       counts by kind, as JSON
    python tests/damage/mixes.py --replay appended:4711       one case, with all that salvage says about it

What must come back is the other lab's matter (lab.py). This one asks for two things only, whatever the damage:

* A tensor that is called intact has exactly the bytes that one of the two saves gave it under its name. The one
  exception is a `.pt` without an end, which is the ordinary thing to salvage: its tensors are proven by their headers
  and the descriptors behind their bytes. If bytes were written to a wrong place together with their descriptor, behind
  the header of another tensor of the same size, this is not to be told from a whole one (see `_came_along`). What is
  claimed of such a file is that nothing proves it to be of one save, and never that it is complete.
* Where tensors of two saves are intact in one state, that is said, and the state is not called complete.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from goods import Good, Range, flat, good_files, values_of
from lab import show_report
from makers import PAGE, SECTOR, splice
from oracle import INTACT
from oracles.forge import as_version_1
from trials import Outcome, Trials, WrongError

import fastckpt
from fastckpt.errors import FastckptError

Maker = Callable[[Good, random.Random], bytes]
MIXES: dict[str, Maker] = {}
SAID = re.compile("of one save|another save|same save|two saves|not all of one save|different saves|one of the two")


@cache
def mixable() -> dict[str, Good]:
    """The files that are mixed: all whose format can tell anything, those of version 1 of it, and .safetensors."""
    goods = {name: good for name, good in good_files().items() if good.format != "legacy"}
    for name, good in list(goods.items()):
        if good.format == "fckpt" and "source" not in name:
            older = replace(
                good, raw=as_version_1(good.raw), sibling=as_version_1(good.sibling), regions={}, records=[]
            )
            goods[f"{name} version 1"] = replace(older, name=f"{name} version 1")
    return goods


def mix(make: Maker) -> Maker:
    """Register a maker under its name."""
    MIXES[make.__name__.replace("_", "-")] = make
    return make


# --- kinds of mixes -----------------------------------------------------------------


def _saves(good: Good, r: random.Random) -> tuple[bytes, bytes]:
    """The two saves, either one first."""
    return (good.raw, good.sibling) if r.random() < 0.5 else (good.sibling, good.raw)


def _things(good: Good) -> list[Range]:
    """Ranges of a file that are one thing, or a record: header, data, and what stands behind them."""
    if good.format == "fckpt":
        places = [(record.header.offset, record.end) for record in good.records] + list(good.regions.values())
        return places or [(at, min(at + PAGE, len(good.raw))) for at in range(0, len(good.raw), PAGE)]
    found = [place for place in (*good.storages.values(), *good.regions.values()) if place[0] < place[1]]
    for key, (start, end) in good.storages.items():
        behind = good.regions.get(f"descriptor {key}", (end, end))[1]
        header = good.regions.get(f"header {key}", (start, start))[0]
        found.append((header, behind))
        # Bytes and descriptor without a header: no device writes less than a sector.
        if behind - start >= SECTOR:
            found.append((start, behind))
    return found


def _place(good: Good, r: random.Random, size: int) -> int:
    """Anywhere in a file of this size, at a border, or where a page begins."""
    how = r.randrange(3)
    at = r.choice(r.choice(_things(good))) if not how else r.randrange(size + 1)
    return min(at // PAGE * PAGE if how == 1 else at, size)


def _without_end(good: Good, data: bytes, r: random.Random) -> bytes:
    """What stands at the end and names everything is gone, more or less of it."""
    if not data:
        return data
    if good.format == "pt":
        at = data.rfind(b"PK\x01\x02", 0, max(len(data) - 98 - r.choice((0, 0, 200)), 0))
        first = data.find(b"PK\x01\x02", max(good.regions["directory"][0] - 8192, 0))
        start = r.choice((first, at, good.regions["directory"][0], good.regions["header .data/serialization_id"][0]))
        start = start if start >= 0 else len(data)
    elif good.format == "fckpt":
        ends = [place[0] for name, place in good.regions.items() if name in ("footer", "index", "directory")]
        start = r.choice([max(len(data) - PAGE, 0), *ends])
    else:
        start = r.randrange(len(data) + 1)
    start = min(start, len(data))
    if r.random() < 0.5:
        return data[:start] or b"\0"
    return splice(data, start, bytes(min(len(data) - start, r.choice((98, 5000, len(data))))))


@mix
def copy_interrupted(good: Good, r: random.Random) -> bytes:
    """One save was copied over the other, up to somewhere."""
    new, old = _saves(good, r)
    at = _place(good, r, len(new))
    return new[:at] + old[at:]


@mix
def copy_interrupted_and_end_gone(good: Good, r: random.Random) -> bytes:
    """The same, and nothing names all of it any more."""
    return _without_end(good, copy_interrupted(good, r), r)


@mix
def stretches(good: Good, r: random.Random) -> bytes:
    """Some stretches are of one save, some of the other."""
    data, other = _saves(good, r)
    for _ in range(r.randrange(1, 6)):
        at = _place(good, r, len(data))
        data = splice(data, at, other[at : _place(good, r, len(other))])
    return data


@mix
def stretches_and_end_gone(good: Good, r: random.Random) -> bytes:
    """The same, and nothing names all of it any more."""
    return _without_end(good, stretches(good, r), r)


@mix
def things_of_another_save(good: Good, r: random.Random) -> bytes:
    """Records, headers, or blocks of the other save stand in their places."""
    data, other = _saves(good, r)
    for start, end in r.choices(_things(good), k=r.randrange(1, 8)):
        data = splice(data, start, other[start:end]) if start < len(data) else data
    return _without_end(good, data, r) if r.random() < 0.4 else data


@mix
def things_elsewhere(good: Good, r: random.Random) -> bytes:
    """Records, headers, or blocks of any save stand in the place of others, or anywhere."""
    data = good.raw
    places = _things(good)
    for _ in range(r.randrange(1, 4)):
        source = r.choice(_saves(good, r))
        start, end = r.choice(places)
        fitting = [at for at, to in places if to - at == end - start and at != start]
        at = r.choice(fitting) if fitting and r.random() < 0.8 else _place(good, r, len(data))
        data = splice(data, at, source[start:end])
    return _without_end(good, data, r) if r.random() < 0.4 else data


@mix
def sectors_elsewhere(good: Good, r: random.Random) -> bytes:
    """Sectors of any save were written to wrong places, or twice."""
    data = good.raw
    for _ in range(r.randrange(1, 6)):
        size = r.choice((SECTOR, PAGE, 4 * PAGE))
        source = r.choice(_saves(good, r))
        start = r.randrange(len(source)) // size * size
        at = start if r.random() < 0.3 else r.randrange(len(data)) // size * size
        data = splice(data, at, source[start : start + size])
    return _without_end(good, data, r) if r.random() < 0.4 else data


@mix
def moved(good: Good, r: random.Random) -> bytes:
    """Bytes were put in front, or the first ones taken away; sometimes of a mix."""
    data = good.raw if r.random() < 0.6 else copy_interrupted(good, r)
    count = r.choice((1, 3, 64, PAGE, 2 * PAGE, PAGE * r.randrange(1, 20), r.randrange(1, 20_000)))
    if r.random() < 0.5:
        data = (
            r.choice((bytes(count), r.randbytes(count), (good.sibling * (count // len(good.sibling) + 1))[:count]))
            + data
        )
    else:
        data = data[count:] or b"\0"
    return _without_end(good, data, r) if r.random() < 0.4 else data


@mix
def behind_another_file(good: Good, r: random.Random) -> bytes:
    """The beginning of a file of any kind, and this one behind it or over it."""
    other = r.choice(list(mixable().values())).raw
    start = other[: r.choice((r.randrange(len(other)), PAGE, len(other)))]
    if r.random() < 0.5:
        return start + good.raw
    return start + good.raw[len(start) :]


@mix
def appended(good: Good, r: random.Random) -> bytes:
    """Two saves in a row, or what is left of them."""
    first, second = _saves(good, r)
    if r.random() < 0.5:
        first = _without_end(good, first, r) if r.random() < 0.5 else first[: _place(good, r, len(first))]
    if r.random() < 0.3:
        second = _without_end(good, second, r) if r.random() < 0.5 else second[: _place(good, r, len(second))]
    if r.random() < 0.2:
        second = _without_end(good, copy_interrupted(good, r), r)
    return first + second or b"\0"


@mix
def a_tail_in_a_wrong_place(good: Good, r: random.Random) -> bytes:
    """The beginning of one save, and from there on the end of the other, from elsewhere."""
    new, old = _saves(good, r)
    data = new[: _place(good, r, len(new))] + old[_place(good, r, len(old)) :]
    return (_without_end(good, data, r) if r.random() < 0.4 else data) or b"\0"


# --- one case -----------------------------------------------------------------------


def make_case(kind: str, seed: int) -> tuple[Good, bytes]:
    """A file and what became of it; the same whenever it is made."""
    r = random.Random(f"{kind}:{seed}")
    formats = ("pt", "pt", "fckpt", "fckpt", "version 1", "safetensors")
    chosen = r.choice(formats)
    kinds = {name: "version 1" if name.endswith("version 1") else good.format for name, good in mixable().items()}
    goods = [good for name, good in mixable().items() if kinds[name] == chosen]
    good = r.choice(goods)
    return good, MIXES[kind](good, r)


def run_case(kind: str, seed: int, directory: Path) -> Outcome:
    """Make a mix, and compare what is said of it with the two saves.

    Raises:
        WrongError: Something untrue was said or written, or a mix is not named.
    """
    started = time.perf_counter()
    good, damaged = make_case(kind, seed)
    source, destination = directory / f"mixed{good.suffix}", directory / "out.fckpt"
    source.write_bytes(damaged)
    outcome = Outcome(kind, good.name)
    _check_whole(good, damaged, source)
    try:
        report = fastckpt.salvage(source, destination, threads=1, durable=False)
    except FastckptError:
        outcome.refused = True
    else:
        back = flat(fastckpt.load(destination, threads=1)) if report.destination is not None else {}
        _check_saves(good, damaged, report, _intact(good, damaged, report, back))
        outcome.statuses.update(fate.status.value for fate in report.tensors.values())
        outcome.written = len(report.written)
    if source.read_bytes() != damaged:
        raise WrongError("the damaged file was changed")
    outcome.seconds = time.perf_counter() - started
    return outcome


def _check_whole(good: Good, damaged: bytes, source: Path) -> None:
    """Only what is one of the saves, or all of both in a row, is a whole file."""
    whole = {good.raw, good.sibling}
    try:
        state = flat(fastckpt.load(source, threads=1))
    except FastckptError:
        state = {}
    # A .safetensors in front has no checksum: its tensors are present, whatever bytes stand in their places.
    checked = good.crcs and damaged[8:9] != b"{"
    for row in _rows({name: values_of(tensor) for name, tensor in state.items()}):
        if checked and not any(row in _both(other) for other in mixable().values()):
            raise WrongError("load gives a state that none of the saves has")
    try:
        report = fastckpt.verify(source, threads=1)
    except FastckptError:
        return
    if report.ok and good.format == "fckpt" and damaged not in whole and not _is_one_of_them(damaged):
        raise WrongError("verify finds nothing")


def _is_one_of_them(damaged: bytes) -> bool:
    """Whether a file is a whole one of those that are mixed."""
    return any(damaged == raw for other in mixable().values() for raw in (other.raw, other.sibling))


def _both(good: Good) -> list[dict[str, bytes]]:
    return [{name: facts.values for name, facts in good.tensors.items()}, good.sibling_values]


def _rows(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The states in a file: one, or one for each archive in a row."""
    if values and all(re.match(r"\d+\.", name) for name in values):
        numbers = {name.partition(".")[0] for name in values}
        for number in sorted(numbers):
            yield {name[len(number) + 1 :]: v for name, v in values.items() if name.startswith(f"{number}.")}
    elif values:
        yield values


def _intact(good: Good, damaged: bytes, report: Any, back: dict[str, torch.Tensor]) -> dict[str, set[bytes]]:
    """The bytes of every tensor that is called intact: where it is said to stand, and as it comes back."""
    found: dict[str, set[bytes]] = {}
    for name, fate in report.tensors.items():
        if fate.status.value != INTACT or not fate.nbytes:
            continue
        bare = re.sub(r"^\d+\.", "", name)
        values = found.setdefault(name, set())
        if name in back:
            values.add(values_of(back[name]))
        if fate.offset is not None and (bare not in good.tensors or good.tensors[bare].plain):
            values.add(damaged[fate.offset : fate.offset + fate.nbytes])
    return found


def _check_saves(good: Good, damaged: bytes, report: Any, intact: dict[str, set[bytes]]) -> None:
    """Each is of one of the saves; and those of two in one state are not passed over."""
    for row in _rows(intact):
        saves: Counter[int] = Counter()
        for name, found in row.items():
            true = _true_values(good, name)
            for values in found:
                if values in true or _is_a_part(good, name, values):
                    continue
                if not _came_along(good, damaged, report, name, values):
                    raise WrongError(f"{name!r} is called intact, and has other bytes than either of the two saves")
            own = [values[name] for values in _both(good)] if name in good.tensors else [b"", b""]
            if own[0] != own[1]:
                saves.update(number for number, values in enumerate(own) if values in found)
        if len(saves) < 2:
            continue
        texts = [*report.notes, *(finding.message for finding in report.findings)]
        if report.complete or not report.exit_code:
            raise WrongError(f"tensors of two saves are intact {dict(saves)}, and the result is called complete")
        if not any(SAID.search(text) for text in texts):
            raise WrongError(f"tensors of two saves are intact {dict(saves)}, and that is not said: {texts}")


def _came_along(good: Good, damaged: bytes, report: Any, name: str, values: bytes) -> bool:
    """Whether nothing in a .pt without an end tells that a tensor's bytes are another one's, and no more is claimed.

    Its own header is in front of them, and behind them is the descriptor that they were written with. No row of the
    directory has its name, which would have its CRC-32. And the last record, which is made of all, is gone; or some
    other record has lost its CRC-32, so that nobody can know whether that is why the last one was made of others.
    """
    if good.format != "pt" or not good.crcs or name not in good.tensors:
        return False
    key = good.tensors[name].storage
    start, end = good.storages[key]
    header = good.raw[slice(*good.regions[f"header {key}"])]
    rows = [damaged[at - 46 : at] for at in _all_of(damaged, header[30:].partition(b"FB")[0])]
    digits = [raw[slice(*good.regions["data .data/serialization_id"])] for raw in (good.raw, good.sibling)]
    others = [place for what, place in good.regions.items() if what.startswith("descriptor ") and place[0] != end]
    along = damaged[start : end + 16]
    return (
        damaged[:start].endswith(header)
        and along[:-16] == values
        and any(along == raw[a : b + 16] for raw in (good.raw, good.sibling) for a, b in good.storages.values())
        and not any(row.startswith(b"PK\x01\x02") for row in rows)
        and (not any(found in damaged for found in digits) or any(_is_lost(good, damaged, place) for place in others))
        and not report.complete
        and report.exit_code != 0
        and any("nothing proves that all of it is of one save" in finding.message for finding in report.findings)
    )


def _is_lost(good: Good, damaged: bytes, descriptor: Range) -> bool:
    """Whether the signature or the sizes of a descriptor do not stand in its place."""
    (a, b) = (raw[slice(*descriptor)] for raw in (good.raw, damaged))
    return a[:4] + a[8:] != b[:4] + b[8:]


def _all_of(raw: bytes, piece: bytes) -> Iterator[int]:
    at = raw.find(piece)
    while at >= 0:
        yield at
        at = raw.find(piece, at + 1)


def _true_values(good: Good, name: str) -> set[bytes]:
    """What a tensor of this name may be: as in either save, or in the file that stands in front."""
    files = [good] if name in good.tensors else [other for other in mixable().values() if name in other.tensors]
    return {values[name] for file in files for values in _both(file)}


def _is_a_part(good: Good, name: str, values: bytes) -> bool:
    """Whether a name that no save has is that of a storage, or of a tensor in a file that a tensor holds."""
    if name in good.tensors:
        return False
    files = [raw for other in mixable().values() for raw in (other.raw, other.sibling)]
    return any(values in raw for raw in files)


def _show(kind: str, seed: int, directory: Path) -> None:
    good, damaged = make_case(kind, seed)
    print(f"{good.name}: {len(good.raw)} bytes, the other save {len(good.sibling)}, now {len(damaged)}")
    path = directory / f"mixed{good.suffix}"
    path.write_bytes(damaged)
    report = fastckpt.salvage(path, directory / "out.fckpt", durable=False)
    show_report(report)
    back = flat(fastckpt.load(directory / "out.fckpt")) if report.destination is not None else {}
    found = _intact(good, damaged, report, back)
    for name, fate in report.tensors.items():
        bare = re.sub(r"^\d+\.", "", name)
        own = [values[bare] for values in _both(good)] if bare in good.tensors else []
        saves = [number for number, values in enumerate(own) if values in found.get(name, ())]
        print(f"  {name}: {fate.status.value} at {fate.offset} ({fate.reason}); as in the saves {saves}")


TRIALS = Trials(list(MIXES), run_case, lambda kind, seed: make_case(kind, seed)[0].name, _show)

if __name__ == "__main__":
    sys.exit(TRIALS.main("mix the bytes of two saves in every way and check what is said of it"))
