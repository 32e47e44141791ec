"""The tensors of a ``.pt2``, as torch.export.save writes it since torch 2.8: JSON says which record each is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from fastckpt.constants import ENTRY_FLAG_PARAMETER, ENTRY_FLAG_REQUIRES_GRAD
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import NamedRef, TensorRef

EXPORT_WEIGHTS: Final[str] = "data/weights/model_weights_config.json"
EXPORT_CONSTANTS: Final[str] = "data/constants/model_constants_config.json"
_FOLDERS: Final = MappingProxyType({EXPORT_WEIGHTS: "data/weights/", EXPORT_CONSTANTS: "data/constants/"})
_STRIDED: Final = 7
_DTYPES: Final = MappingProxyType(
    {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }
)
"""The numbers that torch.export gives to element types."""


@dataclass(slots=True)
class Exported:
    """Tensors by name, with the records that they are in, by first use; and what is no plain tensor."""

    tree: dict[str, object] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)


def read_exported(texts: Mapping[str, bytes], sizes: Mapping[str, int]) -> Exported:
    """The tensors that the JSON records ``texts`` describe.

    Args:
        texts: The two, or one, of them by name.
        sizes: Bytes of every record of the archive.

    Raises:
        DamagedError: It does not say what it should, or a record is missing or too short.
        UnsupportedStateError: A name stands in both.
    """
    found = Exported()
    numbers: dict[str, int] = {}
    for source, text in texts.items():
        for name, item in _items(source, text):
            if name in found.tree:
                raise UnsupportedStateError(f"{name[:200]} is both a weight and a constant")
            try:
                record = f"{_FOLDERS[source]}{item['path_name']}"
                meta = item.get("tensor_meta")
                if item.get("use_pickle") or meta is None or meta["layout"] != _STRIDED:
                    what = "torch.Tensor (of a kind that is not plain)" if meta is not None else "torch.ScriptObject"
                    found.tree[name] = NamedRef("object", (what, {"record": record}))
                    found.opaque.append((name, what))
                    continue
                number = numbers.setdefault(record, len(numbers))
                if number == len(found.used):
                    found.used.append(record)
                found.tree[name] = TensorRef(len(found.entries))
                entry = _entry(name, meta, number, is_parameter=bool(item.get("is_param")))
                check_entry(entry, [sizes[used] for used in found.used])
                found.entries.append(entry)
            except FastckptError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DamagedError(f"{source} does not describe {name[:200]!r} ({error!r:.80})") from None
    paths = [(name,) for name, node in found.tree.items() if type(node) is TensorRef]
    names = flat_names(paths)
    found.entries = [entry._replace(name=name) for entry, name in zip(found.entries, names, strict=True)]
    return found


def _items(source: str, text: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        items = list(json.loads(text)["config"].items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{source} is not what torch.export writes ({error!r:.80})") from None
    return items


def _entry(name: str, meta: dict[str, Any], storage: int, *, is_parameter: bool) -> Entry:
    flags = ENTRY_FLAG_REQUIRES_GRAD * bool(meta["requires_grad"]) | ENTRY_FLAG_PARAMETER * is_parameter
    shape = tuple(_number(extent) for extent in meta["sizes"])
    stride = tuple(_number(step) for step in meta["strides"])
    return Entry(name, _DTYPES[meta["dtype"]], shape, stride, storage, _number(meta["storage_offset"]), flags)


def _number(value: dict[str, Any]) -> int:
    number = value["as_int"]
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"{number!r:.40} is no extent")
    return number
