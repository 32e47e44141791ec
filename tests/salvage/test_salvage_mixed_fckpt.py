"""A file with records of two saves: whole as they are, they are never one state, and each tensor is named."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import fastckpt  # noqa: E402

COUNT = 8


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"h.{n}.w": torch.randn(300, 300, generator=generator) for n in range(COUNT)}


def headers(data: bytes) -> list[int]:
    """Where the record headers stand."""
    pages = [at for at in range(0, len(data), 4096) if data[at : at + 8] == b"FCKPTREC"]
    return [at for at in pages if int.from_bytes(data[at + 24 : at + 32], "little") == at]


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two saves of the same structure."""
    path = tmp_path_factory.mktemp("mixed") / "s.fckpt"
    found = []
    for seed in (1, 2):
        fastckpt.save(state(seed), path, durable=False)
        found.append(path.read_bytes())
    return found[0], found[1]


def intact(data: bytes, path: Path) -> tuple[set[str], fastckpt.SalvageReport]:
    """The tensors called intact; verify must not contradict."""
    path.write_bytes(data)
    report = fastckpt.salvage(path)
    assert not report.complete
    checked = fastckpt.verify(path)
    names = {name for name, fate in report.tensors.items() if fate.status.value == "intact"}
    assert set(report.tensors) - names <= {name for finding in checked.findings for name in finding.tensors}
    assert not checked.ok
    return names, report


@pytest.mark.parametrize("border", range(1, COUNT))
@pytest.mark.parametrize("inside", [0, 102_400])
def test_a_whole_end_names_the_records(saves: tuple[bytes, bytes], border: int, inside: int, tmp_path: Path) -> None:
    old, new = saves
    at = headers(old)[border] + inside
    names, _ = intact(new[:at] + old[at:], tmp_path / "f.fckpt")
    assert names == {f"h.{n}.w" for n in range(border + (inside > 0), COUNT)}


@pytest.mark.parametrize("border", range(1, COUNT))
@pytest.mark.parametrize("end", ["footer", "tail"])
def test_without_the_end_the_links_tell_the_saves_apart(
    saves: tuple[bytes, bytes], border: int, end: str, tmp_path: Path
) -> None:
    old, new = saves
    at = headers(old)[border]
    tail = -4096 if end == "footer" else headers(old)[-1] + 4096 + 360_448
    names, report = intact((new[:at] + old[at:])[:tail], tmp_path / "f.fckpt")
    first, second = {f"h.{n}.w" for n in range(border)}, {f"h.{n}.w" for n in range(border, COUNT)}
    assert names == (first if border >= COUNT / 2 else second)
    for name in (first | second) - names:
        assert "same save" in report.tensors[name].reason


def test_one_lost_header_parts_nothing(saves: tuple[bytes, bytes], tmp_path: Path) -> None:
    data = bytearray(saves[0][: headers(saves[0])[-1]])
    at = headers(saves[0])[3]
    data[at : at + 4096] = bytes(4096)
    names, _ = intact(bytes(data), tmp_path / "f.fckpt")
    assert names == {f"h.{n}.w" for n in range(COUNT - 1) if n != 3}
