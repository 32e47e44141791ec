"""The types of what ``--json`` prints: which there are, how docs/json.md writes them, and whether a value is of one."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from fastckpt.cli.backup import BackupDocument
from fastckpt.cli.completion import CompletionDocument
from fastckpt.cli.convert import ConvertDocument
from fastckpt.cli.demo import DemoDocument
from fastckpt.cli.diff_facts import DiffDirectoriesDocument, DiffDocument
from fastckpt.cli.directory_facts import InspectDirectoryDocument
from fastckpt.cli.engine_facts import EngineDocument
from fastckpt.cli.file_facts import InspectDocument
from fastckpt.cli.inspect_values import ValuesDocument
from fastckpt.cli.man import ManDocument
from fastckpt.cli.prune import PruneDocument
from fastckpt.cli.render import ErrorDocument
from fastckpt.cli.repair import RepairDocument
from fastckpt.cli.reshard import ReshardDocument
from fastckpt.cli.salvage import SalvageDocument
from fastckpt.cli.seal import SealCheckDocument, SealDocument
from fastckpt.cli.verify import VerifyDocument, VerifySeveralDocument
from fastckpt.doctor.examination import DoctorDocument
from fastckpt.plotting.numbers import PlotDirectoryDocument, PlotDocument
from fastckpt.salvaging.directory import SalvageDirectoryDocument
from fastckpt.sets.overview import SetsDocument

DOCUMENTS: dict[str, list[type]] = {
    "verify": [VerifyDocument, VerifySeveralDocument],
    "inspect": [InspectDocument, InspectDirectoryDocument, EngineDocument, ValuesDocument],
    "convert": [ConvertDocument],
    "diff": [DiffDocument, DiffDirectoriesDocument],
    "salvage": [SalvageDocument, SalvageDirectoryDocument, SetsDocument],
    "repair": [RepairDocument],
    "seal": [SealDocument, SealCheckDocument],
    "doctor": [DoctorDocument, SetsDocument],
    "reshard": [ReshardDocument],
    "backup": [BackupDocument],
    "sync": [BackupDocument],
    "prune": [PruneDocument],
    "plot": [PlotDocument, PlotDirectoryDocument],
    "demo": [DemoDocument],
    "completion": [CompletionDocument],
    "man": [ManDocument],
    "run": [ErrorDocument],
}
"""By command; each can print an ErrorDocument instead. What ``run`` prints is up to the script."""

_WORDS = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any", object: "any"}
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def is_record(kind: Any) -> bool:
    """Whether a type is one with fields."""
    return is_typeddict(kind) or (isinstance(kind, type) and is_dataclass(kind))


def fields_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {name: hints[name] for name in kind.__dataclass_fields__} if is_dataclass(kind) else hints


def optional_of(kind: Any) -> frozenset[str]:
    return getattr(kind, "__optional_keys__", frozenset())


def records() -> list[Any]:
    """All types with fields that are part of a document, each once, a document before its parts."""
    found: dict[Any, None] = {}

    def visit(kind: Any) -> None:
        if is_record(kind) and kind not in found:
            found[kind] = None
            for inner in fields_of(kind).values():
                visit(inner)
        for argument in get_args(kind):
            visit(argument)

    for kind in [ErrorDocument, *(kind for kinds in DOCUMENTS.values() for kind in kinds)]:
        visit(kind)
    return list(found)


def words(kind: Any) -> str:
    """A type as docs/json.md writes it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_record(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if origin in (Union, types.UnionType):
        # The names of both kinds of numbers would say nothing that one does not.
        parts = [words(part) for part in arguments if part is not int or float not in arguments]
        return " or ".join(dict.fromkeys(parts))
    if origin in (list, tuple, dict, Sequence, Mapping):
        named = origin in (dict, Mapping)
        inner = words(arguments[1] if named else arguments[0])
        return f"{'object' if named else 'list'} of {f'({inner})' if ' or ' in inner else inner}"
    return _WORDS[type(arguments[0]) if origin is Literal else kind]


def faults(value: Any, kind: Any, at: str, seen: set[str]) -> Iterator[str]:
    """Say where a value from JSON is not of a type. Every field is looked at; ``seen`` collects the types' names."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return
    if origin in (Union, types.UnionType):
        tried = [(part, set[str]()) for part in arguments]
        wrong = [list(faults(value, part, at, names)) for part, names in tried]
        if all(wrong):
            yield min(wrong, key=len)[0]
        else:
            seen |= tried[wrong.index([])][1]
    elif is_record(kind):
        if not isinstance(value, dict):
            yield f"{at} is no object: {value!r}"
            return
        seen.add(kind.__name__)
        fields = fields_of(kind)
        yield from (f"{at} lacks {name}" for name in fields.keys() - value.keys() - optional_of(kind))
        yield from (f"{at} has {name} too" for name in value.keys() - fields.keys())
        for name in fields.keys() & value.keys():
            yield from faults(value[name], fields[name], f"{at}.{name}", seen)
    elif origin in (list, tuple) or origin is Sequence:
        if not isinstance(value, list):
            yield f"{at} is no list: {value!r}"
            return
        for number, item in enumerate(value):
            yield from faults(item, arguments[0], f"{at}[{number}]", seen)
    elif origin in (dict, Mapping):
        if not isinstance(value, dict):
            yield f"{at} is no object: {value!r}"
            return
        for name, item in value.items():
            yield from faults(item, arguments[1], f"{at}[{name!r}]", seen)
    elif origin is Literal:
        if value not in arguments:
            yield f"{at} is none of {arguments}: {value!r}"
    elif kind is float:
        if type(value) not in (int, float) and value not in _NOT_FINITE:
            yield f"{at} is no number: {value!r}"
    elif type(value) is not kind:
        yield f"{at} is no {_WORDS[kind]}: {value!r}"
