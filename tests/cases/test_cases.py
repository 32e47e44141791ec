"""Files of other people's shapes, and what each command must say of them.

The files are kept beside the repository, in ``shared/cases`` with a README of
their own; `FASTCKPT_CASES` names another place. Each row is one command on one
of them: its exit code, and patterns that its output has (or, with ``!`` in
front, must not have).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from fastckpt.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PLACES = [Path(os.environ[name]) for name in ("FASTCKPT_CASES",) if name in os.environ]
PLACES += [ROOT / "shared/cases", ROOT.parent / "shared/cases"]
CASES = next((place for place in PLACES if place.is_dir()), PLACES[-1])

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder shared/cases is not here")


class Row(NamedTuple):
    """A command, and how it must end."""

    command: str
    code: int
    said: tuple[str, ...] = ()


def row(command: str, code: int, *said: str) -> Row:
    """A row of the table below: words that contain a slash are files of the cases."""
    return Row(command, code, said)


ROWS = [
    # What stands in place of a checkpoint.
    row("inspect hf/files/html.pt", 4, "HTML page", "Google Drive - Virus scan"),
    row("verify hf/files/html.pt", 4, "HTML page", "Google Drive - Virus scan"),
    row("salvage hf/files/xml.pt", 4, "AccessDenied"),
    row("verify hf/files/xml.pt", 4, "AccessDenied"),
    row("verify hf/files/lfs.pt", 4, "4,976,698,672 bytes are missing", "git lfs pull", "hf download"),
    row("inspect hf/files/lfs.safetensors", 4, "4,976,698,672 bytes are missing", "git lfs pull", "hf download"),
    row("verify hf/lfs/model-00001-of-00002.safetensors", 4, "git lfs pull"),
    # A .safetensors has no checksum: what the reference reader takes is present, what it refuses is damaged.
    *(
        row(f"verify hf/files/{name}.safetensors", 0, "present", "!intact")
        for name in ("c64", "emptytensor", "f4", "f6", "f8", "meta_empty", "meta_null", "misaligned")
    ),
    row("verify hf/good/model-00001-of-00002.safetensors", 0, "present", "!intact"),
    *(
        row(f"verify hf/files/{name}.safetensors", 2, "damaged", "!intact:")
        for name in ("cut_in_header", "overlap", "hole", "wrongsize", "dupkeys")
    ),
    row("verify hf/files/trailing.safetensors", 1, "8 bytes follow the last tensor"),
    row("verify hf/shard_cut/model-00002-of-00002.safetensors", 2, "damaged"),
    # Every record with a CRC-32 is summed, whoever refers to it, in every archive of a file.
    row("verify pt/yolo_whole.pt", 0, "intact", "every record matches its CRC-32"),
    row("verify pt/yolo_flip.pt", 2, "rotted"),
    row("verify pt/d_fsdp2.pt", 0, "intact"),
    row("verify pt/d_fsdp2_flip.pt", 2, "rotted"),
    row("verify dcp/step-100/__0_0.distcp", 0, "intact"),
    row("verify dcp/damaged/flipped.distcp", 2, "rotted"),
    row("verify dcp/damaged/zeroed.distcp", 2, "rotted"),
    row("verify hf/files/notensors.safetensors", 0, "present", "!intact", "!0 B/s"),
    row("diff dcp/step-100/__0_0.distcp dcp/step-100/__0_0.distcp", 0, "identical"),
    # Objects that are not understood are compared by what they are made of and by their bytes.
    row("diff pt/yolo_whole.pt pt/yolo_other.pt", 1, "different"),
    row("diff pt/yolo_whole.pt pt/yolo_whole.pt", 0, "identical: 3 other objects"),
    row("diff pt/yolo_whole.pt pt/yolo_flip.pt", 2, "damaged"),
    row("diff pt/d_fsdp2.pt pt/d_fsdp2.pt", 0, "identical: 4 tensors and 12 other objects"),
    row("diff pt/d_fsdp2.pt pt/d_fsdp2_flip.pt", 2, "damaged"),
    *(
        row(f"diff pt/{name} pt/{name}", 0, "identical")
        for name in ("in_objects.pt", "hf_rng_state.pt", "pl_omega.ckpt", "pl_plain.ckpt", "ds_like.pt")
    ),
    row("diff pt/pl_plain.ckpt pt/pl_omega.ckpt", 1, "different", "object"),
]


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.command)
def test_verdict(case: Row, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(CASES / word) if "/" in word else word for word in case.command.split()]
    for word in words:
        assert not word.startswith("/") or Path(word).exists(), word
    code = main(words)
    said = capsys.readouterr()
    text = said.out + said.err
    assert code == case.code, text
    for pattern in case.said:
        assert bool(re.search(pattern.removeprefix("!"), text)) != pattern.startswith("!"), (pattern, text)
