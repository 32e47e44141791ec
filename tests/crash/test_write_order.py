"""The order of a durable save's calls: what proves a part is written after that part."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_lab import Call, OpenLab

from fastckpt.constants import FOOTER_SIZE, SECTION_INDEX, SECTION_MANIFEST_COPY
from fastckpt.fckpt.file import CheckpointFile


def places(calls: list[Call], start: int, end: int) -> list[int]:
    """Which of the calls write into ``[start, end)``."""
    found = [
        place
        for place, call in enumerate(calls)
        if call.name == "write" and call.offset < end and start < call.offset + call.size
    ]
    assert found, f"nothing is written at {start}"
    return found


def only(calls: list[Call], name: str, path: Path | str) -> int:
    found = [place for place, call in enumerate(calls) if call.name == name and call.path == str(path)]
    assert len(found) == 1, f"{name} of {path} is called {len(found)} times"
    return found[0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("script", ["save_with_commit.py", "save_state.py", "save_compressed.py", "save_planes.py"])
def test_commit_order(open_lab: OpenLab, script: str) -> None:
    lab = open_lab(script)
    calls = lab.calls()
    [rename] = [place for place, call in enumerate(calls) if call.name == "rename"]
    temp = calls[rename].path
    assert calls[rename].second_path == str(lab.target)
    assert Path(temp).parent == lab.target.parent
    file_sync, directory_sync = only(calls, "fsync", temp), only(calls, "fsync", lab.directory)
    changes = [place for place, call in enumerate(calls) if call.name in ("write", "ftruncate", "fallocate", "fchmod")]
    assert max(changes) < file_sync < rename < directory_sync
    closes = [place for place, call in enumerate(calls) if call.name == "close" and call.path == str(lab.target)]
    assert min(closes) > directory_sync, "the lock is held until the end"
    assert not [call for call in calls if call.path == str(lab.target) and call.name != "close"]


@pytest.mark.parametrize("script", ["save_state.py", "save_compressed.py", "save_planes.py"])
def test_proof_is_written_after_what_it_proves(open_lab: OpenLab, script: str) -> None:
    lab = open_lab(script)
    calls = lab.calls()
    headers: list[int] = []
    with CheckpointFile(lab.target) as file:
        assert len(file.records) >= 3
        for record in file.records:
            header = places(calls, record.header.offset, record.header.end)
            assert max(places(calls, record.payload.offset, record.payload.end)) < min(header)
            headers += header
        index = places(calls, *_span(file, SECTION_INDEX))
        copy = places(calls, *_span(file, SECTION_MANIFEST_COPY))
        footer = places(calls, file.source.size - FOOTER_SIZE, file.source.size)
    assert max(headers) < min(index)
    assert max(index + copy) < min(footer)
    assert max(footer) == max(place for place, call in enumerate(calls) if call.name == "write")


def _span(file: CheckpointFile, kind: int) -> tuple[int, int]:
    extent = file.required_section(kind).extent
    return extent.offset, extent.end
