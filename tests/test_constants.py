"""The format's numbers are stated three times: SPEC.md, Python, C++. They must not drift apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastckpt import _core, constants, errors
from fastckpt.constants import FORMAT_VERSION
from fastckpt.layout import directory, entries, frame, manifest, records

SPEC = Path(constants.__file__).with_name("SPEC.md").read_text(encoding="utf-8")
NANOCHAT = (Path(__file__).parents[1] / "docs" / "nanochat.md").read_text(encoding="utf-8")

Constant = int | bytes | str


def parse(value: str) -> Constant:
    """A value of SPEC.md's table: a number, quoted text, or bytes in hexadecimal."""
    if value.startswith('"'):
        return value.strip('"')
    if re.fullmatch(r"(?:[0-9A-F]{2} )+[0-9A-F]{2}", value):
        return bytes.fromhex(value)
    return int(value)


def spec_constants() -> dict[str, Constant]:
    begin = SPEC.index("\n## 22. Constants\n")
    return read_table(SPEC[begin : SPEC.index("\n## ", begin + 1)])


def stated_constants() -> dict[str, Constant]:
    """Those of the format, and those of nanochat's steps."""
    own = read_table(NANOCHAT[NANOCHAT.index("**Constants.**") :])
    assert own.keys() == {"SAVE_MARK_KEY", "SAVE_HEAD_SIZE", "SAVED_AS_KEY"}
    return {**spec_constants(), **own}


def read_table(table: str) -> dict[str, Constant]:
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \|$", table, re.MULTILINE)
    found = {name: parse(value) for name, value in rows}
    assert len(found) == len(rows), "a constant stands twice"
    assert len(rows) == table.count("\n|") - 2, "a row of the table could not be read"
    return found


def public(module: object) -> dict[str, Constant]:
    return {name: getattr(module, name) for name in dir(module) if re.fullmatch(r"[A-Z][A-Z0-9_]*", name)}


def test_python_states_what_the_specification_states() -> None:
    assert public(constants) == stated_constants()


def test_native_core_states_what_the_specification_states() -> None:
    native = public(_core)
    assert {"LEAF_SIZE", "CHUNK_SIZE", "ALIGNMENT", "PACK_ALIGNMENT", "MAGIC_RECORD"} <= native.keys()
    assert native == {name: value for name, value in spec_constants().items() if name in native}


def test_constant_types() -> None:
    for name, value in stated_constants().items():
        assert type(value) is type(getattr(constants, name)), name


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (manifest._HEAD, constants.MANIFEST_FIXED_SIZE - constants.SEAL_HEAD_SIZE),
        (records._CHUNK, constants.CHUNK_ROW_SIZE),
        (entries._HEAD, constants.ENTRY_TABLE_HEAD_SIZE),
        (entries._KIND, constants.ENTRY_KIND_SIZE),
        (frame._INDEX_HEAD, constants.INDEX_FIXED_SIZE - constants.SEAL_HEAD_SIZE),
        (frame._INDEX_ROW, constants.INDEX_ROW_SIZE),
        (directory._HEAD, constants.DIRECTORY_FIXED_SIZE - constants.SEAL_HEAD_SIZE),
        (directory._ROW, constants.DIRECTORY_ROW_SIZE),
        (frame._SECTION, constants.SECTION_ROW_SIZE),
    ],
)
def test_structures_have_the_stated_sizes(head: object, size: int) -> None:
    assert head.size == size  # type: ignore[attr-defined]


def test_footer_head_has_the_stated_size() -> None:
    assert frame._VERSION.size + frame._FOOTER.size + constants.SEAL_HEAD_SIZE == constants.FOOTER_FIXED_SIZE


def test_record_head_has_the_stated_size() -> None:
    assert records._HEAD.size + records._LINKS.size + constants.SEAL_HEAD_SIZE == constants.RECORD_FIXED_SIZE


def test_version_in_the_title() -> None:
    assert SPEC.startswith(f"# The `.fckpt` format, version {FORMAT_VERSION}\n")


def test_numbers_in_running_text() -> None:
    """Sizes that the prose repeats outside of the table."""
    for value in (constants.PACK_THRESHOLD, constants.PACK_LIMIT, constants.PACK_MAX_STORAGES):
        assert str(value) in SPEC
    per_chunk = constants.CHUNK_ROW_SIZE + constants.LEAVES_PER_CHUNK * constants.LEAF_DIGEST_SIZE
    assert f"{per_chunk} bytes in the header" in SPEC


def test_section_headings_are_numbered_without_a_gap() -> None:
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", SPEC, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    subsections = re.findall(r"^### (\d+)\.(\d+) ", SPEC, re.MULTILINE)
    assert subsections == sorted(subsections, key=lambda pair: (int(pair[0]), int(pair[1])))


def test_references_to_sections_exist() -> None:
    headings = set(re.findall(r"^##+ ([\d.]+?)\.? ", SPEC, re.MULTILINE))
    for group in re.findall(r"sections? ((?:\d+(?:\.\d+)?(?:, | and | to )?)+)", SPEC + NANOCHAT):
        for number in re.findall(r"\d+(?:\.\d+)?", group):
            assert number in headings, f"section {number}"


def test_every_error_has_an_exit_code_of_the_documented_set() -> None:
    for name in errors.__all__:
        assert getattr(errors, name).exit_code in {2, 4, 5, 64}
