"""Trees: any storable nesting comes back exactly; nothing else is written or read."""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
import struct
import tracemalloc
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastckpt.constants import MAX_INT_KEY_SIZE, MAX_TREE_DEPTH
from fastckpt.errors import DamagedError, UnsupportedStateError, UnsupportedVersionError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.named import KEY, SHAPES
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import (
    AttributedDict,
    DeviceRef,
    DTypeRef,
    NamedRef,
    Path,
    SizeRef,
    TensorRef,
    decode_tree,
    encode_tree,
    path_text,
    walk_tree,
)

ENTRIES = 1000


def keep(value: Any, path: Path) -> object:
    return value


def encode(state: object) -> bytes:
    return encode_tree(state, keep)


def round_trip(state: object) -> Any:
    return decode_tree(encode(state), ENTRIES)


def canonical(state: object) -> object:
    """A form in which two states are equal if and only if they are the same, bit by bit."""
    if isinstance(state, OrderedDict):
        attributes = state.attributes if isinstance(state, AttributedDict) else vars(state)
        pairs = [(canonical(k), canonical(v)) for k, v in state.items()]
        return ("ordered", pairs, canonical(dict(attributes)) if attributes else None)
    if isinstance(state, dict):
        return ("dict", [(canonical(k), canonical(v)) for k, v in state.items()])
    if isinstance(state, list | tuple):
        return (type(state), [canonical(item) for item in state])
    if isinstance(state, float):
        return ("float", struct.pack("<d", state))
    if isinstance(state, complex):
        return ("complex", struct.pack("<dd", state.real, state.imag))
    return (type(state), state)


def float_of_bits(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
any_float = st.floats() | st.integers(0, 2**64 - 1).map(float_of_bits)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**5000), 2**5000),
    any_float,
    st.builds(complex, any_float, any_float),
    texts,
    st.binary(max_size=40),
    st.builds(TensorRef, st.integers(0, ENTRIES - 1)),
    st.builds(DTypeRef, st.sampled_from(sorted(BY_NAME))),
    st.builds(SizeRef, st.lists(st.integers(0, 2**63 - 1), max_size=5).map(tuple)),
    st.builds(DeviceRef, texts),
)
keys = texts | st.integers(-(2 ** (8 * MAX_INT_KEY_SIZE - 1)) + 1, 2 ** (8 * MAX_INT_KEY_SIZE - 1) - 1)


def with_attributes(pairs: dict[Any, Any], attributes: dict[str, Any]) -> AttributedDict:
    result = AttributedDict(pairs)
    result.attributes = attributes
    return result


def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        pairs,
        pairs.map(OrderedDict),
        st.builds(with_attributes, pairs, st.dictionaries(texts, inner, min_size=1, max_size=3)),
    )


states = st.recursive(leaves, extend, max_leaves=25)


@given(states)
def test_round_trip(state: object) -> None:
    assert canonical(round_trip(state)) == canonical(state)


@given(states)
def test_the_same_state_gives_the_same_bytes(state: object) -> None:
    assert encode(state) == encode(round_trip(state))


@given(states, st.data())
def test_damage_raises_only_typed_errors(state: object, data: st.DataObject) -> None:
    raw = bytearray(encode(state))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DamagedError, UnsupportedVersionError):
        decode_tree(bytes(raw), ENTRIES)


@given(states)
def test_every_cut_is_noticed(state: object) -> None:
    raw = encode(state)
    for size in range(min(len(raw), 200)):
        with pytest.raises(DamagedError):
            decode_tree(raw[:size], ENTRIES)
    with pytest.raises(DamagedError, match="after the end"):
        decode_tree(raw + b"\0", ENTRIES)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_typed_errors(raw: bytes) -> None:
    with contextlib.suppress(DamagedError, UnsupportedVersionError):
        decode_tree(raw, ENTRIES)


# --- values that are easy to get wrong ------------------------------------------


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 0.1, float_of_bits(0xFFF8DEADBEEF0001)],
)
def test_floats_are_bit_exact(value: float) -> None:
    assert struct.pack("<d", round_trip(value)) == struct.pack("<d", value)
    found = round_trip(complex(value, -value))
    assert struct.pack("<dd", found.real, found.imag) == struct.pack("<dd", value, -value)


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (0, "03 01 00"),
        (1, "03 01 01"),
        (-1, "03 01 FF"),
        (127, "03 01 7F"),
        (128, "03 02 80 00"),
        (-128, "03 02 80 FF"),
        (-129, "03 02 7F FF"),
        (None, "00"),
        (False, "01"),
        (True, "02"),
        ("ä", "06 02 C3 A4"),
        (b"\0", "07 01 00"),
        ([], "08 00"),
        ((), "09 00"),
        ({}, "0A 00"),
        (OrderedDict(), "0B 00 00"),
        ([None] * 200, "08 C8 01" + " 00" * 200),
        (TensorRef(300), "0C AC 02"),
        (DTypeRef("float32"), "0D 12"),
        (SizeRef((2, 300)), "0E 02 02 AC 02"),
        (DeviceRef("cpu"), "0F 03 63 70 75"),
        ({"a": 1, 2: None}, "0A 02 06 01 61 03 01 01 03 01 02 00"),
    ],
)
def test_bytes_are_those_of_the_specification(value: object, raw: str) -> None:
    assert encode(value) == bytes.fromhex(raw)
    assert canonical(decode_tree(bytes.fromhex(raw), ENTRIES)) == canonical(value)


@pytest.mark.parametrize("bits", [7, 8, 63, 64, 65, 1024, 100_000])
def test_ints_of_any_size(bits: int) -> None:
    for value in (2**bits, 2**bits - 1, -(2**bits), -(2**bits) - 1):
        assert round_trip(value) == value


def test_order_of_keys_is_kept() -> None:
    state = {"z": 1, 3: 2, "a": 3, -1: 4}
    assert list(round_trip(state)) == ["z", 3, "a", -1]


def test_keys_of_different_type_are_different() -> None:
    assert round_trip({1: "int", "1": "str"}) == {1: "int", "1": "str"}


def test_attributes_of_an_ordered_dict() -> None:
    state: Any = OrderedDict(w=TensorRef(0))
    state._metadata = OrderedDict([("", {"version": 1})])
    found = round_trip(state)
    assert type(found) is AttributedDict
    assert found.attributes == {"_metadata": OrderedDict([("", {"version": 1})])}
    assert type(found.attributes["_metadata"]) is OrderedDict
    assert type(round_trip(OrderedDict(a=1))) is OrderedDict


def test_resolve_gives_references_for_unknown_objects() -> None:
    seen = []

    def resolve(value: Any, path: Path) -> object:
        seen.append((value, path))
        return TensorRef(len(seen) - 1)

    state = {"a": [{7}], "b": ({8},)}
    assert decode_tree(encode_tree(state, resolve), 2) == {"a": [TensorRef(0)], "b": (TensorRef(1),)}
    assert seen == [({7}, ("a", 0)), ({8}, ("b", 0))]


def test_walk() -> None:
    state = {"a": [1, (2,)], 3: None}
    assert list(walk_tree(state)) == [(("a", 0), 1), (("a", 1, 0), 2), ((3,), None)]
    assert list(walk_tree(5)) == [((), 5)]


# --- what cannot be stored --------------------------------------------------------


class Text(str):
    pass


@pytest.mark.parametrize("value", [{1, 2}, object(), Text("a"), range(3), bytearray(b"a"), slice(1)])
def test_unknown_objects_are_refused_with_their_path(value: object) -> None:
    with pytest.raises(UnsupportedStateError, match=r"state\['a'\]\[1\]: cannot store .*" + type(value).__name__):
        encode({"a": [0, value]})


@pytest.mark.parametrize("key", [None, 1.5, True, (1, ("a", None)), b"a"])
def test_other_keys_make_a_named_value(key: object) -> None:
    assert round_trip({"a": {key: 1, "b": 2}}) == {"a": NamedRef("dict", [(key, 1), ("b", 2)])}
    ordered = OrderedDict({key: 1})
    vars(ordered)["note"] = 3
    assert round_trip(ordered) == NamedRef("ordered_dict", ([(key, 1)], {"note": 3}))


def test_a_key_of_another_type_is_refused_with_its_path() -> None:
    with pytest.raises(UnsupportedStateError, match=r"state\['a'\]: cannot store .*Text"):
        encode({"a": {Text("a"): 1}})


@pytest.mark.parametrize("key", [2 ** (8 * MAX_INT_KEY_SIZE - 1), -(2**20_000)], ids=["just too large", "huge"])
def test_int_keys_are_limited(key: int) -> None:
    with pytest.raises(UnsupportedStateError, match="int key of more than"):
        encode({key: 1})
    pair = encode(key) + b"\0"
    with pytest.raises(DamagedError, match="int key of more than"):
        decode_tree(b"\x0a\x01" + pair, 0)


def test_lone_surrogates_are_refused() -> None:
    for state in ({"a": "\ud800"}, {"\ud800": 1}, DeviceRef("\ud800")):
        with pytest.raises(UnsupportedStateError, match="not valid Unicode"):
            encode(state)


def test_negative_extents_are_refused() -> None:
    with pytest.raises(UnsupportedStateError, match="negative"):
        encode(SizeRef((2, -1)))


def test_cycles_are_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": (loop,)})
    with pytest.raises(UnsupportedStateError, match=r"state\[0\]\['again'\]\[0\]: the state contains itself"):
        encode(loop)
    attributed: Any = OrderedDict()
    attributed.myself = attributed
    with pytest.raises(UnsupportedStateError, match="contains itself"):
        encode(attributed)


def test_shared_containers_are_no_cycle() -> None:
    shared = [1]
    assert round_trip([shared, shared, {"a": shared}]) == [[1], [1], {"a": [1]}]


def nested(depth: int) -> Any:
    state: Any = 0
    for _ in range(depth):
        state = [state]
    return state


def test_depth_limit() -> None:
    assert round_trip(nested(MAX_TREE_DEPTH)) == nested(MAX_TREE_DEPTH)
    with pytest.raises(UnsupportedStateError, match="nested deeper"):
        encode(nested(MAX_TREE_DEPTH + 1))
    with pytest.raises(UnsupportedStateError, match="nested deeper"):
        encode(nested(100_000))


# --- hostile bytes ----------------------------------------------------------------


@pytest.mark.parametrize("unit", [b"\x08\x01", b"\x09\x01", b"\x0a\x01\x03\x01\x00", b"\x0b\x01\x03\x01\x00"])
def test_deep_bytes_are_refused(unit: bytes) -> None:
    with pytest.raises(DamagedError, match="nested deeper"):
        decode_tree(unit * (MAX_TREE_DEPTH + 1) + b"\0" * (MAX_TREE_DEPTH + 2), 0)
    with pytest.raises(DamagedError, match="nested deeper"):
        decode_tree(unit * 100_000, 0)


def leb(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


@pytest.mark.parametrize("tag", [3, 6, 7, 8, 9, 10, 11, 14, 15])
@pytest.mark.parametrize("count", [100, 2**31, 2**62, 2**64 - 1])
def test_bombs_are_refused_before_memory_is_allocated(tag: int, count: int) -> None:
    raw = bytes((tag,)) + leb(count) + b"\0" * 50
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            decode_tree(raw, 0)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "1 bytes wanted, 0 left"),
        (b"\x06\x01\xff", "not UTF-8"),
        (b"\x06\x03\xed\xa0\x80", "not UTF-8"),
        (b"\x0c\x05", "entry 5 of 3"),
        (b"\x0c" + leb(2**64), "64 bits"),
        (b"\x0c" + b"\xff" * 30, "64 bits"),
        (b"\x0e\x01" + leb(2**63), "63 bits"),
        (b"\x0a\x01\x00\x00", "a dict key of type NoneType"),
        (b"\x0a\x01\x02\x00", "a dict key of type bool"),
        (b"\x0a\x01\x08\x00\x00", "a dict key of type list"),
        (b"\x0a\x02" + b"\x03\x01\x05\x00" * 2, "the dict key 5 twice"),
        (b"\x0a\x02" + b"\x06\x01a\x00" * 2, "the dict key 'a' twice"),
        (b"\x0b\x00\x01", "attributes of an ordered dict"),
        (b"\x0b\x00\x0a\x01\x03\x01\x00\x00", "attributes of an ordered dict"),
        (b"\0\0", "1 bytes after the end"),
    ],
)
def test_invalid_trees(raw: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        decode_tree(raw, 3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x11", "unknown tag 17"),
        (b"\x10\x03sat\x00", "unknown named value 'sat'"),
        (b"\xff", "unknown tag 255"),
        (b"\x0d\x00", "unknown dtype code 0"),
        (b"\x0d\xff", "unknown dtype code 255"),
    ],
)
def test_trees_of_a_later_version(raw: bytes, message: str) -> None:
    with pytest.raises(UnsupportedVersionError, match=message):
        decode_tree(raw, 3)


REFS: dict[object, object] = {
    str: "x",
    int: -3,
    bytes: b"y",
    bool: True,
    TensorRef: TensorRef(1),
    SizeRef: SizeRef((2, 3)),
}


def example_of(shape: object) -> object:
    """A payload of a shape of `SHAPES`."""
    if isinstance(shape, frozenset):
        return b"abc" if bytes in shape else None
    if isinstance(shape, tuple):
        return tuple(map(example_of, shape))
    if isinstance(shape, list):
        return [example_of(shape[0])] * 2
    if isinstance(shape, dict):
        return {"k": NamedRef("a.b", [1])}
    if shape is KEY:
        return (1, NamedRef("range", (0, 9, 2)))
    return REFS.get(shape, [None, NamedRef("range", (0, 9, 2))])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_named_values(name: str) -> None:
    value = NamedRef(name, example_of(SHAPES[name]))
    raw = encode({"v": value})
    assert decode_tree(raw, 2) == {"v": value}
    wrong = NamedRef(name, {1: 2})
    with pytest.raises(UnsupportedStateError, match=f"no '{name}'"):
        encode(wrong)
    head = bytes((16, len(name))) + name.encode()
    with pytest.raises(DamagedError, match="another shape"):
        decode_tree(head + encode({1: 2}), 2)


def test_the_text_has_every_name_of_a_named_value() -> None:
    import fastckpt

    text = (pathlib.Path(fastckpt.__file__).parent / "SPEC.md").read_text(encoding="utf-8")
    table = text[text.index("### 9.1 ") : text.index("## 10. ")]
    names = [name for row in re.findall(r"^\| ([a-z_, ]+) \| ", table, re.MULTILINE) for name in row.split(", ")]
    assert sorted({*names} - {"name"}) == sorted(SHAPES)


@pytest.mark.parametrize("name", sorted(name for name, shape in SHAPES.items() if "Hashable" in repr(shape)))
def test_no_tensor_is_a_key_or_in_a_set(name: str) -> None:
    def with_tensor(shape: object) -> object:
        if isinstance(shape, tuple):
            return tuple(map(with_tensor, shape))
        if isinstance(shape, list):
            return [with_tensor(shape[0])]
        return (1, NamedRef("a.b", [{"x": TensorRef(0)}])) if shape is KEY else example_of(shape)

    value = NamedRef(name, with_tensor(SHAPES[name]))
    with pytest.raises(UnsupportedStateError):
        encode(value)
    good = NamedRef(name, example_of(SHAPES[name]))
    assert b"\x0c\x00" not in encode(good)
    at = encode(good).index(encode((1, NamedRef("range", (0, 9, 2)))))
    bad = encode(good)[:at] + b"\x0c\x00" + encode(good)[at + len(encode((1, NamedRef("range", (0, 9, 2))))) :]
    with pytest.raises(DamagedError, match="another shape"):
        decode_tree(bad, 2)


def test_sets_are_ordered_by_their_bytes() -> None:
    items = ["b", "a", 300, 2, None, (1,)]
    assert encode(NamedRef("set", items)) == encode(NamedRef("set", items[::-1]))


def test_everything_that_cannot_be_stored_is_listed_at_once() -> None:
    loop: list[object] = []
    loop.append(loop)
    state = {"a": object(), "b": [1, {2, 3}], "c": "\ud800", "d": loop, "e": {2**2050: 1}, "f": SizeRef((-1,))}

    def resolve(value: object, path: Path) -> object:
        raise UnsupportedStateError(f"{path_text(path)}: no {type(value).__name__}", next_step="another")

    with pytest.raises(UnsupportedStateError) as caught:
        encode_tree(state, resolve)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 things cannot be stored:"
    assert lines[1] == "  state['a']: no object. Next: another"
    assert [line.split(":")[0].strip() for line in lines[2:]] == [
        "state['b'][1]", "state['c']", "state['d'][0]", "state['e']", "state['f']",
    ]  # fmt: skip
    noted: list[UnsupportedStateError] = []
    rest = decode_tree(encode_tree(state, resolve, refusals=noted), 0)
    assert len(noted) == 6
    assert rest == {"a": None, "b": [1, None], "c": "\\ud800", "d": [None], "e": {"": 1}, "f": None}


def test_the_name_of_a_tensor_in_a_named_value() -> None:
    def names(value: object) -> list[str]:
        return flat_names([path for path, leaf in walk_tree({"v": value}) if type(leaf) is TensorRef])

    one, two = TensorRef(0), TensorRef(1)
    assert names(NamedRef("tensor", (one, {"extra": two}))) == ["v", "v.extra"]
    assert names(NamedRef("array", (one, "<f4", SizeRef((1,)), False))) == ["v"]
    assert names(NamedRef("deque", ([one, two], None))) == ["v.0", "v.1"]
    assert names(NamedRef("namespace", ("argparse.Namespace", {"w": one}))) == ["v.w"]
    keys = ["w", None, True, 7, 0.5, ("a", 1)]
    assert names(NamedRef("dict", [(key, one) for key in keys])) == [f"v.{key}" for key in ["w", None, True, 7, 4, 5]]
    assert names(NamedRef("ordered_dict", ([((1, 2), one)], {"x": two}))) == ["v.0", "v.x"]
    assert names(NamedRef("my.Own", {"w": [one]})) == ["v.w.0"]


def test_tensors_in_named_values_are_found() -> None:
    array = NamedRef("array", (TensorRef(0), "<f4", SizeRef((1,)), False))
    found = [
        leaf for _, leaf in walk_tree({"a": array, "n": NamedRef("x.y", [TensorRef(1)])}) if type(leaf) is TensorRef
    ]
    assert found == [TensorRef(0), TensorRef(1)]


def test_long_forms_of_numbers_are_read() -> None:
    assert decode_tree(b"\x08\x81\x80\x00\x00", 0) == [None]


def test_path_text() -> None:
    assert path_text((0, "exp_avg", -1)) == "state[0]['exp_avg'][-1]"
    assert path_text(()) == "state"


def test_keys_in_keys_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr("fastckpt.layout.named.has_tensor", looked.append)
    inside: object = (None,) * 1000
    for _ in range(50):
        inside = NamedRef("frozenset", [inside])
    raw = encode_tree(inside, lambda value, _: value)
    looked.clear()
    assert decode_tree(raw, 1) == inside
    assert not looked
