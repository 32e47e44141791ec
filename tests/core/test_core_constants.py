"""The numbers are stated twice in code: they must be the same."""

from __future__ import annotations

from fastckpt import _core, constants


def test_every_constant_of_the_core_equals_the_python_one() -> None:
    names = [name for name in dir(_core) if name.isupper()]
    assert len(names) == 39
    assert {name: getattr(_core, name) for name in names} == {name: getattr(constants, name) for name in names}


def test_magics_have_their_size_and_differ() -> None:
    magics = [value for name, value in vars(constants).items() if name.startswith("MAGIC_") and name != "MAGIC_SIZE"]
    assert all(len(magic) == constants.MAGIC_SIZE for magic in magics)
    assert len(set(magics)) == len(magics) == 9


def test_sizes_nest() -> None:
    assert constants.CHUNK_SIZE % constants.LEAF_SIZE == 0
    assert constants.LEAF_SIZE % constants.ALIGNMENT == 0
    assert constants.PACK_LIMIT % constants.CHUNK_SIZE == 0
    assert constants.MAX_SECTIONS == 100
