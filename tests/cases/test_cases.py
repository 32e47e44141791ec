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
import torch

import fastckpt
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
    row("verify pt/yolo_flip.pt", 2, "rotted", r"model\.model\.2\.conv\.weight"),
    row("verify pt/d_fsdp2.pt", 0, "intact"),
    row("verify pt/d_fsdp2_flip.pt", 2, "rotted", r"model\.0\.weight"),
    row("inspect pt/yolo_whole.pt", 0, r"model\.model\.0\.conv\.weight", "ultra_like.DetectionModel"),
    row("inspect pt/in_objects.pt --tree", 0, r"ns\.cls_w", r"dd\.0\.exp_avg", "step += 0"),
    row("inspect trainer/real/checkpoint-2/training_args.bin", 0, "learning_rate: 5e-05"),
    row("verify dcp/step-100/__0_0.distcp", 0, "intact"),
    row("verify dcp/damaged/flipped.distcp", 2, "rotted"),
    row("verify dcp/damaged/zeroed.distcp", 2, "rotted"),
    row("verify dcp/damaged/cut60.distcp", 2, "whether more of them followed is not known"),
    row(
        "salvage dcp/damaged/cut60.distcp", 1, "intact +3 ", "incomplete", "whether more of them followed is not known"
    ),
    row("verify hf/files/notensors.safetensors", 0, "present", "!intact", "!0 B/s"),
    row("diff dcp/step-100/__0_0.distcp dcp/step-100/__0_0.distcp", 0, "identical"),
    # Objects that are not understood are compared by what they are made of and by their bytes.
    row("diff pt/yolo_whole.pt pt/yolo_other.pt", 1, "different"),
    row("diff pt/yolo_whole.pt pt/yolo_whole.pt", 0, "identical: 21 tensors and 1 other object"),
    row("diff pt/yolo_whole.pt pt/yolo_flip.pt", 2, "damaged"),
    row("diff pt/d_fsdp2.pt pt/d_fsdp2.pt", 0, "identical: 17 tensors and 12 other objects"),
    row("diff pt/d_fsdp2.pt pt/d_fsdp2_flip.pt", 2, "damaged"),
    *(
        row(f"diff pt/{name} pt/{name}", 0, "identical")
        for name in ("in_objects.pt", "hf_rng_state.pt", "pl_omega.ckpt", "pl_plain.ckpt", "ds_like.pt")
    ),
    row("diff pt/pl_plain.ckpt pt/pl_omega.ckpt", 1, "different", "object"),
    # Of a directory of these: its files. Whether they are a whole set is another question.
    *(row(f"verify trainer/real/checkpoint-{step}/optimizer.pt", 0, "intact") for step in (2, 4)),
    row("verify trainer/real/checkpoint-4/rng_state.pth", 0, "intact"),
    row("verify trainer/real/checkpoint-4/training_args.bin", 0, "intact"),
    row("verify trainer/real/checkpoint-4/model.safetensors", 0, "present", "!intact"),
    row("verify trainer/torn/checkpoint-500/optimizer.pt", 2, "damaged", "of 527 kB proven"),
    row("verify dcp/damaged/cut60.distcp", 2, "damaged"),
    row("verify hf/good", 0, "2 present but unproven", "!intact: ", "1 of 1 checkpoint whole"),
    row("verify hf/shard_missing", 2, "shard 2 of 2", "not whole", "0 of 1 checkpoint whole"),
    row("verify hf/index_stale", 2, "mtp.fc.weight", "not whole"),
    row("verify hf/dup_names", 2, "model.embed_tokens.weight is in", "not whole"),
    row("verify dcp/step-100", 0, "2 intact; 1 of 1 checkpoint whole"),
    row("verify dcp/rank_missing", 2, "__1_0.distcp is not there", "not whole"),
    row("verify dcp/no_metadata", 2, ".metadata, which is written last", "not whole"),
    row("verify dcp/meta_torn", 2, ".metadata: the pickle is cut", "not whole"),
    row("verify trainer/real", 0, "2 of 2 checkpoints whole"),
    row("verify trainer/torn", 2, "trainer_state.json", "rng_state.pth", "2 of 3 checkpoints whole"),
    row("verify trainer/deepspeed", 2, "optimizer, rank 1 of 2", "not whole"),
    row("doctor trainer/real", 0, "step 4: whole", "go on from .*checkpoint-4"),
    row("doctor trainer/torn", 3, "step 500: not whole", "checkpoint-400, which is whole"),
    row("doctor trainer/deepspeed", 2, "rank 1 of 2"),
    row("doctor hf/good", 0, "whole"),
    row("doctor hf/lfs", 4, "git lfs pull"),
    row("doctor dcp/rank_missing", 2, "__1_0.distcp"),
    row("verify hf/shard_cut", 2, "1 present but unproven, 1 not"),
    row("verify hf/lfs", 4, "git lfs pull", "2 not"),
    # Complete is said of a result in which nothing of the file is missing.
    row("salvage pt/d_fsdp2_flip.pt", 3, r"!\(complete\)", "!nothing is damaged"),
    row("salvage pt/yolo_flip.pt", 3, r"!\(complete\)", "!nothing is damaged"),
    row("salvage pt/d_fsdp2.pt", 0, "nothing is damaged"),
    row("salvage dcp/damaged/cut60.distcp", 1, "intact  3", r"!\(complete\)"),
    row("salvage dcp/damaged/zeroed.distcp", 3, "damaged", r"!\(complete\)"),
    row("salvage trainer/torn/checkpoint-500/optimizer.pt", 3, r"!\(complete\)", "263 of 527 kB of tensor data proven"),
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


NOT_WHOLE = {
    "pt/d_fsdp2_flip.pt": 2,
    "pt/yolo_flip.pt": 2,
    "hf/shard_cut/model-00002-of-00002.safetensors": 2,
    "hf/lfs/model-00001-of-00002.safetensors": 4,
    "hf/lfs/model-00002-of-00002.safetensors": 4,
    **{
        f"hf/files/{name}.safetensors": 2
        for name in ("cut_in_header", "dupkeys", "hole", "meta_nonstr", "overlap", "unknown_dtype", "wrongsize")
    },
    **{f"hf/files/{name}": 4 for name in ("hdrtoolarge.safetensors", "short.safetensors", "lfs.safetensors")},
    **{f"hf/files/{name}.pt": 4 for name in ("html", "lfs", "xml")},
}
"""Files of the cases that nothing can make whole, and how convert ends; what of them safetensors reads is nothing."""


def _files() -> list[str]:
    found = [path for place in ("pt", "trainer", "hf", "dcp/step-100") for path in sorted((CASES / place).rglob("*"))]
    suffixes = (".pt", ".pth", ".bin", ".ckpt", ".distcp", ".safetensors")
    return [str(path.relative_to(CASES)) for path in found if path.suffix in suffixes and "torn" not in path.parts]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted({*_files(), *NOT_WHOLE} if CASES.is_dir() else ()))
def test_every_file_converts_and_comes_back(name: str, tmp_path: Path) -> None:
    path, own = CASES / name, tmp_path / "own.fckpt"
    code = main(["convert", str(path), str(own)])
    assert code == NOT_WHOLE.get(name, 0)
    assert own.exists() == (code == 0)
    if code:
        return
    assert main(["verify", str(own)]) == 0
    assert main(["diff", str(path), str(own)]) == 0
    suffix = ".safetensors" if path.suffix == ".safetensors" else ".pt"
    back = tmp_path / f"back{suffix}"
    assert main(["convert", str(own), str(back)]) == 0
    assert back.read_bytes() == path.read_bytes()
    # Each tensor is there in both, also below what is not understood, and is the same.
    ours, theirs = dict(fastckpt.stream(own)), dict(fastckpt.stream(path))
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))
