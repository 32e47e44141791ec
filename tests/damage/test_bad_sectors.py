"""Pages that the system cannot read (EIO): what is in them is lost, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from goods import Good, flat, map_torch_zip, values_of

import fastckpt

HERE = Path(__file__).parent
PAGE = 4096

Ask = Any


def state() -> dict[str, Any]:
    """Tensors of many pages, and small ones between them."""
    generator = torch.Generator().manual_seed(5)
    large = {f"layers.{n}": torch.randn(50 + n, 300, generator=generator) for n in range(6)}
    small = {f"scales.{n}": torch.randn(7, generator=generator) for n in range(6)}
    return {name: tensor for pair in zip(large.items(), small.items(), strict=True) for name, tensor in pair}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Salvage in a process whose reads of bad pages fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "bad_sectors.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "bad_sectors.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "salvage_bad_sectors.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def send(
        source: Path,
        pages: list[int],
        destination: Path | None = None,
        include: tuple[str, ...] = (),
        steps: Path | None = None,
        *,
        replace: bool = False,
        directory: bool = False,
    ) -> Any:
        request = {
            "source": str(source),
            "destination": str(destination) if destination else None,
            "pages": pages,
            "include": include,
            "steps": str(steps) if steps else None,
            "replace": replace,
            "directory": directory,
        }
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    yield send
    requests.close()
    assert process.wait(60) == 0


def check_back(path: Path, names: list[str]) -> None:
    """What was written is as it was saved."""
    original = flat(state())
    loaded = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else flat(fastckpt.load(path))
    assert set(loaded) == set(names)
    assert all(values_of(loaded[name]) == values_of(original[name]) for name in names)


def unreadable(report: Any) -> bool:
    """Whether the report says that it is the reading that failed."""
    return any(finding["kind"] == "unreadable" for finding in report["findings"])


@pytest.mark.thorough
def test_torch_zip(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    good = Good("pt/bad sectors", "pt", path.read_bytes())
    map_torch_zip(good, state())
    for page in range(0, len(good.raw) // PAGE, 5):
        report = ask(path, [page], tmp_path / "out.fckpt")
        bad = range(page * PAGE, (page + 1) * PAGE)
        for name, facts in good.tensors.items():
            start, end = good.storages[facts.storage]
            fate = report["tensors"][name] if page or report["structure"] != "none" else None
            if start < bad.stop and bad.start < end:
                assert fate is None or fate["status"] in ("damaged", "partial", "lost"), (page, name)
            elif fate is not None and page:
                # Its header, its descriptor and the directory have copies of one another.
                assert fate["status"] == "intact", (page, name, fate)
        if page:
            check_back(tmp_path / "out.fckpt", report["written"])
            damaged = [name for name, fate in report["tensors"].items() if fate["status"] != "intact"]
            assert len(damaged) <= 3
            assert not damaged or unreadable(report)


def test_torch_zip_says_which_rows_stand(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    good = Good("pt/bad sectors", "pt", path.read_bytes())
    map_torch_zip(good, state())
    start, end = good.storages[good.tensors["layers.3"].storage]
    page = (start + end) // 2 // PAGE
    report = ask(path, [page], tmp_path / "out.pt", ("damaged", "partial"))
    fate = report["tensors"]["layers.3"]
    row = 4 * 300
    first = (page * PAGE - start) // row
    last = -(-((page + 1) * PAGE - start) // row)
    assert fate["rows_present"] == [[0, first], [last, 53]]
    back, original = torch.load(tmp_path / "out.pt")["layers.3"], state()["layers.3"]
    assert torch.equal(back[:first], original[:first])
    assert torch.equal(back[last:], original[last:])
    assert back[first:last].isnan().any()


def test_fckpt(tmp_path: Path, ask: Ask) -> None:
    """Any one page: superblock, manifest, header, payload, index or footer."""
    path = tmp_path / "model.fckpt"
    fastckpt.save(state(), path)
    places = {}
    with fastckpt.open(path) as checkpoint:
        file = checkpoint._file
        for entry in file.checked_entries():
            place = file.manifest.storages[entry.storage]
            start = file.records[place.record].payload.offset + place.offset
            # The leaf is what is proven.
            places[entry.name] = (start // PAGE * PAGE, start + place.nbytes)
    for page in range(path.stat().st_size // PAGE):
        report = ask(path, [page], tmp_path / "out.fckpt")
        lost = {name for name, fate in report["tensors"].items() if fate["status"] != "intact"}
        inside = {n for n, (start, end) in places.items() if start < (page + 1) * PAGE and page * PAGE < end}
        assert inside <= lost
        # A leaf is four pages: its neighbours in it cannot be proven.
        leaf = page * PAGE // 16384 * 16384
        near = {n for n, (start, end) in places.items() if start < leaf + 2 * 16384 and leaf - 16384 < end}
        assert lost <= near, (page, lost - near)
        check_back(tmp_path / "out.fckpt", report["written"])
        assert unreadable(report), page


def test_fckpt_headers_and_mirrors(tmp_path: Path, ask: Ask) -> None:
    """A record header, and the first page of the index that has its mirror: another header loses nothing."""
    path = tmp_path / "model.fckpt"
    fastckpt.save({f"t{n}": torch.arange(70_000) + n for n in range(40)}, path)
    with fastckpt.open(path) as checkpoint:
        headers = [record.header.offset // PAGE for record in checkpoint._file.records]
        index = next(s for s in checkpoint._file.footer.sections if s.kind == 2).extent
    assert index.size > 2 * PAGE
    report = ask(path, [headers[-1], index.offset // PAGE])
    assert report["counts"]["intact"] == 40


def test_safetensors(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state(), path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    table = json.loads(path.read_bytes()[8 : 8 + header])
    for page in range(1, path.stat().st_size // PAGE, 3):
        report = ask(path, [page], tmp_path / "out.safetensors", ("unverified",))
        for name, fate in report["tensors"].items():
            start, end = (8 + header + offset for offset in table[name]["data_offsets"])
            touched = start < (page + 1) * PAGE and page * PAGE < end
            assert (fate["status"] in ("damaged", "partial", "lost")) == touched, (page, name)
        check_back(tmp_path / "out.safetensors", report["written"])
        assert unreadable(report)
        assert report["verified"] == 2
    # The header itself: nothing else tells what stands where.
    report = ask(path, [0])
    assert report.get("error") or report["counts"]["unverified"] < len(table)


def test_many_pages(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    pages = list(range(10, path.stat().st_size // PAGE, 7))
    report = ask(path, pages[:60], tmp_path / "out.fckpt")
    assert report["counts"]["intact"] >= 4
    check_back(tmp_path / "out.fckpt", report["written"])


def test_a_legacy_file_is_read_to_its_end(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    assert ask(path, [])["verified"] == 0
    assert ask(path, [path.stat().st_size // PAGE - 3])["verified"] == 2


def test_what_cannot_be_read_is_not_deleted_and_makes_no_older_step_the_newest(tmp_path: Path, ask: Ask) -> None:
    """A bad page in the bytes of a step, in its structure or at its end: it may be whole all the same."""
    for step in (1, 2, 3):
        fastckpt.save(state(), tmp_path / f"step_{step:08d}.fckpt")
    older, newest = tmp_path / "step_00000002.fckpt", tmp_path / "step_00000003.fckpt"
    for page in (0, 5, newest.stat().st_size // PAGE - 1):
        answer = ask(newest, [page], steps=tmp_path)
        assert answer.get("error") == "CheckpointIOError", (page, answer)
        assert older.exists()
        assert newest.exists()


@pytest.mark.parametrize("name", ["a.fckpt", "a.pt", "a.safetensors"])
def test_no_source_goes_of_which_a_page_was_not_read(name: str, ask: Ask, tmp_path: Path) -> None:
    """Also where digests prove all that is converted."""
    few = {"a": torch.arange(3000.0), "b": torch.ones(5)}
    source = tmp_path / name
    target = tmp_path / ("b.pt" if name.endswith(".fckpt") else "b.fckpt")
    {"a.fckpt": fastckpt.save, "a.pt": torch.save, "a.safetensors": safetensors.torch.save_file}[name](few, source)
    pages = -(-source.stat().st_size // PAGE)
    for page in range(pages):
        answer = ask(source, [page], target, replace=True)
        assert answer["error"] in ("CheckpointIOError", "DamagedError", "NotACheckpointError"), (page, answer)
        assert source.exists()
    assert ask(source, [], target, replace=True) == {}
    assert not source.exists()


@pytest.mark.parametrize("page", [0, 1, -1])
def test_a_directory_keeps_its_step(page: int, ask: Ask, tmp_path: Path) -> None:
    source = tmp_path / "model_000001.fckpt"
    (tmp_path / "meta_000001.json").write_text("{}")
    fastckpt.save({"a": torch.arange(3000.0)}, source)
    page %= source.stat().st_size // PAGE
    answer = ask(source, [page], tmp_path, directory=True, replace=True)
    assert answer["error"], (page, answer)
    assert source.exists()
