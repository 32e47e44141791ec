"""Parity inside of a file: what heals by it, what is said of it, and which of several witnesses counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference_inside
import xxhash
from changes import LEAF, Change, change, flip, zero

torch = pytest.importorskip("torch")

import fastckpt  # noqa: E402
from fastckpt.cli.main import main  # noqa: E402
from fastckpt.constants import ALIGNMENT, SECTION_INDEX  # noqa: E402
from fastckpt.errors import DamagedError, MismatchError, UnsupportedVersionError  # noqa: E402
from fastckpt.layout.blocks import Extent, seal  # noqa: E402
from fastckpt.layout.frame import Section, decode_footer, encode_footer  # noqa: E402
from fastckpt.seals.names import sums_path  # noqa: E402
from fastckpt.verdicts import Verdict  # noqa: E402


def state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(500_000, generator=generator), "b": torch.randn(300_000, generator=generator), "step": 7}


def save(path: Path, seed: int = 0, codec: str = "none", at: Any = "inside", share: str = "3%") -> bytes:
    fastckpt.save(state(seed), path, codec=codec, parity=share, parity_at=at, durable=False)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.fckpt"


def share(part: float) -> Change:
    return lambda raw: raw[: int(len(raw) * part)]


def of_the_end(size: int) -> Change:
    return lambda raw: zero(len(raw) - size, size)(raw)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        (flip(200_000), {"a"}),
        (flip(0), {"a"}),
        (zero(0, 65_536), {"a"}),
        (of_the_end(65_536), set()),
        (share(0.971), set()),
        (lambda raw: raw[:-4096], set()),
        (zero(1_000_001, 80_000), {"a"}),
        (lambda raw: raw + b"more", set()),
    ],
    ids=["bit", "superblock", "first", "last", "cut", "no footer", "burst", "longer"],
)
@pytest.mark.parametrize("codec", ["none", "planes"])
def test_what_heals(path: Path, how: Change, names: set[str], codec: str) -> None:
    good = save(path, codec=codec)
    change(path, how)
    damaged = path.read_bytes()
    report = fastckpt.verify(path)
    assert (report.verdict, report.next_step) == (None, f"fastckpt repair {path}")
    assert fastckpt.salvage(path).next_step == f"fastckpt repair {path}  # makes the whole file what it was"
    dry = fastckpt.repair(path, dry_run=True)
    assert (dry.state, dry.exit_code, dry.parity_at, path.read_bytes()) == ("would heal", 1, "inside", damaged)
    done = fastckpt.repair(path, durable=False)
    assert (done.state, done.exit_code, done.left, path.read_bytes() == good) == ("healed", 0, [], True)
    assert {name for finding in done.findings for name in finding.tensors} == names
    assert Path(done.kept or "").read_bytes() == damaged
    again = fastckpt.repair(path)
    assert (again.state, again.verdict, again.size) == ("as sealed", Verdict.INTACT, len(good))


def test_damage_in_the_parity_alone_is_named_and_mended(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(path)
    place = reference_inside.read(good)
    change(path, zero(place.rows + 5, 20_000))
    report = fastckpt.verify(path)
    assert (report.exit_code, [finding.loss for finding in report.findings]) == (1, [False])
    assert report.findings[0].message.startswith("the parity is damaged: its digest does not match")
    assert all(torch.equal(fastckpt.load(path)[name], state()[name]) for name in "ab")
    assert main(["repair", "--in-place", str(path)]) == 0
    told = capsys.readouterr().out
    assert "what stands behind its tensors is damaged" in told
    assert f"{path} " in told
    assert path.read_bytes() == good


def test_too_much_is_healed_in_part_and_salvaged(path: Path, tmp_path: Path) -> None:
    """Three leaves of a group, in one tensor, and one of another group, in the other."""
    good = save(path)
    place = reference_inside.read(good)
    first = 20
    lost = [first, first + place.groups, first + 2 * place.groups, 150 - (150 - first) % place.groups + 1]
    change(path, flip(*(leaf * LEAF for leaf in lost)))
    damaged = path.read_bytes()
    report = fastckpt.repair(path)
    assert (report.state, report.lost, report.healed) == ("not healed", 4, 1)
    assert path.read_bytes() == damaged
    partly = fastckpt.repair(path, tmp_path / "other.fckpt")
    assert (partly.state, len(list(tmp_path.iterdir()))) == ("partly healed", 2)
    assert fastckpt.verify(path).next_step == f"fastckpt salvage {path}"
    salvaged = fastckpt.salvage(path, tmp_path / "out.fckpt")
    back = {name for name, fate in salvaged.tensors.items() if fate.status.value == "intact"}
    assert back == {"b"}
    assert len(salvaged.healed) == 1
    assert torch.equal(fastckpt.load(tmp_path / "out.fckpt")["b"], state()["b"])


@pytest.mark.parametrize("share_beside", [None, "3%"])
def test_the_seal_comes_first(path: Path, share_beside: str | None) -> None:
    """A seal whose parity heals is used; one that has none, or is damaged, or stale, is not, and what is inside is."""
    good = save(path)
    fastckpt.seal(path, parity=share_beside)
    change(path, flip(50_000))
    report = fastckpt.repair(path, durable=False)
    assert (report.state, report.parity_at) == ("healed", "beside" if share_beside else "inside")
    assert path.read_bytes() == good
    change(Path(sums_path(path)), zero(0, 10**6))
    change(path, flip(50_000))
    assert (fastckpt.repair(path, durable=False).parity_at, path.read_bytes() == good) == ("inside", True)


def test_a_sealed_file_with_parity_inside_is_sealed_as_any(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(path)
    fastckpt.seal(path)
    assert main(["seal", "--check", str(path)]) == 0
    assert main(["inspect", str(path)]) == 0
    assert "parity       3% inside" in capsys.readouterr().out
    assert main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] == "3%"


def test_a_file_that_is_whole_and_has_the_seal_of_another_save(path: Path) -> None:
    """It heals by itself; what is wrong then is the seal."""
    save(path)
    fastckpt.seal(path)
    good = save(path, 1)
    change(path, flip(200_000))
    report = fastckpt.repair(path, durable=False)
    assert (report.verdict, path.read_bytes() == good) == (Verdict.HEALED_INSIDE, True)
    assert {"saved" in finding.message for finding in report.findings} == {True}
    with pytest.raises(MismatchError, match="not the file that was sealed"):
        fastckpt.repair(path)
    change(Path(sums_path(path)), zero(0, 10**6))
    with pytest.raises(DamagedError):
        fastckpt.repair(path)
    assert fastckpt.verify(path).verdict is None


def test_what_seal_advises_of_a_damaged_file(path: Path) -> None:
    save(path)
    change(path, flip(200_000))
    with pytest.raises(DamagedError, match="damaged already") as caught:
        fastckpt.seal(path)
    assert caught.value.next_step == f"fastckpt repair {path}"


def test_what_is_said_of_the_end_where_the_beginning_is_lost_too(path: Path) -> None:
    good = save(path)
    change(path, zero(0, 4096))
    change(path, of_the_end(4096))
    report = fastckpt.repair(path, durable=False)
    assert path.read_bytes() == good
    assert [finding.message.partition(":")[0] for finding in report.findings] == [
        "leaf 0 is not what was saved",
        "the save was cut short or the end is damaged",
    ]


@pytest.mark.parametrize("flags", [0, 1])
def test_a_section_that_a_later_version_keeps_behind_is_not_lost(path: Path, flags: int) -> None:
    """What stands behind the parity is made again: nothing may be there that this version cannot make."""
    good = save(path)
    footer = decode_footer(good[-ALIGNMENT:], file_size=len(good))
    block = seal(b"FCKPTNEW", b"later")
    rows: list[Section] = []
    for row in footer.sections:
        begin, size = row.extent
        if row.kind == SECTION_INDEX:
            rows.append(Section(8, flags, Extent(begin, len(block)), block[-16:]))
        moved = len(block) if len(rows) > 2 else 0
        rows.append(row._replace(extent=Extent(begin + moved, size)))
    at = rows[2].extent.offset
    later = good[:at] + block + good[at:-ALIGNMENT]
    later += encode_footer(replace(footer, file_size=len(good) + len(block), sections=tuple(rows)))
    path.write_bytes(later)
    if not flags:
        assert fastckpt.verify(path).verdict is Verdict.INTACT
    change(path, flip(200_000, reference_inside.read(good).rows))
    damaged = path.read_bytes()
    for keep in (True, False):
        with pytest.raises(UnsupportedVersionError, match="section of kind 8"):
            fastckpt.repair(path, keep=keep)
    assert path.read_bytes() == damaged
    if not flags:
        assert fastckpt.verify(path).next_step == f"fastckpt salvage {path}"


@pytest.mark.parametrize("cut", [0, 4096])
@pytest.mark.parametrize("at", [300_000, 1_500_000])
def test_two_saves_in_one_file(tmp_path: Path, path: Path, cut: int, at: int) -> None:
    """The first bytes of another save of the same structure, copied over one: what comes of it is one of the two, or
    nothing; and where the footer is lost the parity never undoes what its own digests prove.
    """
    one, other = save(path, 1), save(tmp_path / "o.fckpt", 2)
    mixed = other[:at] + one[at : len(one) - cut]
    path.write_bytes(mixed)
    if cut:
        with pytest.raises((MismatchError, DamagedError)):
            fastckpt.repair(path)
        assert path.read_bytes() == mixed
    else:
        report = fastckpt.repair(path)
        assert report.state == "not healed"
    report = fastckpt.repair(path, tmp_path / "out.fckpt", durable=False)
    if report.state == "healed":
        assert (tmp_path / "out.fckpt").read_bytes() in (one, other)


def test_the_parity_of_two_saves_in_one_file(tmp_path: Path, path: Path) -> None:
    """The first half of one section and the second of another, and no footer: both are whole, so none is used."""
    one, other = save(path, 1), save(tmp_path / "o.fckpt", 2)
    place = reference_inside.read(one)
    at = (place.rows + place.again) // 2
    path.write_bytes(other[:at] + one[at:-4096])
    with pytest.raises(DamagedError, match="parity of several saves"):
        fastckpt.repair(path, tmp_path / "out.fckpt")
    path.write_bytes(other[:at] + one[at:])
    assert fastckpt.repair(path, tmp_path / "out.fckpt").state == "not healed"


def test_a_leaf_of_another_save_heals_where_the_footer_tells_which_counts(tmp_path: Path, path: Path) -> None:
    one, other = save(path, 1), save(tmp_path / "o.fckpt", 2)
    for begin, end in ((163_840, 180_224), (4096, 16_384)):
        path.write_bytes(one[:begin] + other[begin:end] + one[end:])
        assert (fastckpt.repair(path, keep=False).state, path.read_bytes() == one) == ("healed", True)


def test_the_parity_of_a_file_in_a_tensor_is_not_taken_for_its_own(tmp_path: Path, path: Path) -> None:
    inner = save(tmp_path / "inner.fckpt")
    value = {"file": torch.frombuffer(bytearray(inner), dtype=torch.uint8)}
    fastckpt.save(value, path, durable=False)
    change(path, lambda raw: raw[:-4096])
    with pytest.raises(MismatchError, match="no parity was found inside"):
        fastckpt.repair(path)
    fastckpt.save(value, path, parity="10%", parity_at="inside", durable=False)
    good = path.read_bytes()
    change(path, lambda raw: raw[:-4096])
    change(path, flip(100_000))
    assert (fastckpt.repair(path).state, path.read_bytes() == good) == ("healed", True)


@pytest.mark.parametrize("share", ["3%", "10%"])
@pytest.mark.parametrize("how", ["all", "pages"])
def test_parity_of_which_nothing_is_left_is_made_again(path: Path, share: str, how: str) -> None:
    """All else in the file proves itself; how much it was, the footer tells."""
    fastckpt.save({"w": torch.arange(900.0)}, path, parity=share, parity_at="inside", durable=False)
    good = path.read_bytes()
    place = reference_inside.read(good)
    change(path, zero(place.covered, place.end - place.covered) if how == "all" else zero(place.pages, 4096))
    change(path, zero(place.again, 4096))
    report = fastckpt.verify(path)
    assert (len(report.findings), report.next_step) == (1, f"fastckpt repair {path}")
    assert (fastckpt.repair(path, dry_run=True).findings, fastckpt.salvage(path).healed) == (report.findings,) * 2
    assert (fastckpt.repair(path, keep=False).state, path.read_bytes() == good) == ("healed", True)
    change(path, zero(place.covered, place.end - place.covered))
    change(path, flip(13_000))
    with pytest.raises(DamagedError, match="digests in the parity inside"):
        fastckpt.repair(path)


def test_digests_lost_in_both_places_prove_nothing(path: Path) -> None:
    """Both copies of a page are lost, and another bit: nothing is healed, and what is whole stays."""
    good = save(path)
    place = reference_inside.read(good)
    change(path, flip(2_500_000))
    change(path, zero(place.pages, 100))
    change(path, zero(place.again, 100))
    damaged = path.read_bytes()
    with pytest.raises(DamagedError, match="digests in the parity inside are damaged"):
        fastckpt.repair(path)
    assert path.read_bytes() == damaged
    assert fastckpt.verify(path).next_step == f"fastckpt salvage {path}"
    assert torch.equal(fastckpt.load(path, keys=["a"])["a"], state()["a"])


def test_the_page_shows_what_would_heal(path: Path, tmp_path: Path) -> None:
    save(path)
    change(path, flip(200_000))
    assert main(["plot", str(path), "-o", str(tmp_path / "p.html")]) in (0, 1, 2, 3)
    assert "Its parity heals 1 of 1 lost leaf." in (tmp_path / "p.html").read_text()


def reseal(raw: bytearray, how: Callable[[bytearray], None]) -> None:
    """Change the pages of a section, both times, and give them the digest that fits."""
    for found in re.finditer(b"FCKPTPDG", bytes(raw)):
        page = raw[found.start() : found.start() + 4096]
        how(page)
        page[-16:] = xxhash.xxh3_128_digest(bytes(page[:-16]))
        raw[found.start() : found.start() + 4096] = page


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    return lambda page: page.__setitem__(slice(at, at + len(value)), value)


@pytest.mark.parametrize("cut", [0, 4096])
@pytest.mark.parametrize(
    "how",
    [
        put(16, (4096).to_bytes(8, "little")),
        put(16, (2**63 - 4096).to_bytes(8, "little")),
        put(24, (2**40).to_bytes(8, "little")),
        put(32, b"\x14"),
        put(32, b"\xff"),
        put(33, b"\x01"),
        put(33, b"\x03"),
        put(40, bytes(16)),
        put(56 + 8 * 9, bytes(8)),
        put(56 + 8 * 200, bytes(8)),
    ],
    ids=["covers little", "covers much", "number", "k 20", "k 255", "m 1", "m 3", "root", "digest", "digest of parity"],
)
def test_pages_that_lie(path: Path, how: Callable[[bytearray], None], cut: int) -> None:
    """Their digests match. No byte of the save is ever another one; how much parity there was, they alone say."""
    good = save(path)
    covered = reference_inside.read(good).covered
    change(path, flip(9 * LEAF, 150 * LEAF))
    change(path, lambda raw: raw[: len(raw) - cut])
    change(path, lambda raw: reseal(raw, how))
    damaged = path.read_bytes()
    try:
        report = fastckpt.repair(path, path.with_name("out"), durable=False)
    except (DamagedError, MismatchError):
        assert not path.with_name("out").exists()
    else:
        assert report.state in ("healed", "partly healed", "not healed")
        if report.output is not None:
            made = path.with_name("out").read_bytes()
            assert all(byte in (bad, right) for byte, bad, right in zip(made[:covered], damaged, good, strict=False))
            if report.state == "healed":
                assert made[:covered] == good[:covered]
                assert fastckpt.verify(path.with_name("out")).verdict is Verdict.INTACT
    assert path.read_bytes() == damaged
    fastckpt.verify(path)
