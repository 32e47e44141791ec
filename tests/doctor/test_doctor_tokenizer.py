"""The tokenizer beside the checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from doctor_builds import VOCAB
from doctor_types import Doctor, Shell


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    (directory / "tokenizer.pkl").write_bytes(b"\x80\x04.")
    with open(directory / "token_bytes.pt", "wb") as file:
        torch.save(torch.ones(VOCAB, dtype=torch.int32), file)
    return directory


def test_fits(run_of, tokenizer: Path, doctor: Doctor):
    run_of(2)
    assert doctor(".").kinds == []


def test_of_another_size(run_of, tokenizer: Path, doctor: Doctor, shell: Shell):
    run_of(2)
    torch.save(torch.ones(500, dtype=torch.int32), tokenizer / "token_bytes.pt")
    told = doctor(".")
    found = told.the("tokenizer")
    assert (told.code, found["severity"]) == (1, "bad")
    assert "has 500 tokens, the model's vocab_size is 61" in found["what"]
    assert shell(found["next"]).stdout == "trained --vocab-size=61\n"


@pytest.mark.parametrize("name", ["tokenizer.pkl", "token_bytes.pt"])
def test_missing(name: str, run_of, tokenizer: Path, doctor: Doctor):
    run_of(2)
    (tokenizer / name).unlink()
    assert name in doctor(".").the("tokenizer")["what"]


def test_torn(run_of, tokenizer: Path, doctor: Doctor):
    run_of(2)
    (tokenizer / "token_bytes.pt").write_bytes((tokenizer / "token_bytes.pt").read_bytes()[:300])
    assert doctor(".").kinds == ["tokenizer"]
