"""Which sizes a model was made with, against those it is to be loaded with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from doctor_builds import CONFIG, meta, model, write_meta
from doctor_types import Doctor, Shell

from fastckpt.doctor.sizes import Sizes, sizes_of_config, sizes_of_depth, sizes_of_model


@pytest.mark.parametrize(
    ("depth", "width", "heads"), [(1, 128, 1), (4, 256, 2), (12, 768, 6), (20, 1280, 10), (26, 1664, 13), (13, 896, 7)]
)
def test_depth(depth: int, width: int, heads: int):
    assert sizes_of_depth(depth) == Sizes(depth, width, heads, heads, None)


def test_real_files_tell_their_sizes(real: Path, doctor: Doctor):
    told = doctor(real, "--depth", 4)
    assert told.kinds == []
    assert {tag["sizes"] for tag in told.facts["tags"]} == {"depth 4, n_embd 256, 2 heads, vocab 1024"}
    (legacy,) = doctor(real / "legacy_2025_10_w4", "--depth", 4).facts["tags"]
    assert legacy["sizes"] == "depth 4, n_embd 256, 2 heads, vocab 1000"


def test_another_depth(real: Path, doctor: Doctor):
    told = doctor(real / "base_checkpoints" / "d4_w4", "--depth", 12)
    found = told.the("size")
    assert (told.code, found["severity"]) == (1, "bad")
    assert "--depth 12 means depth 12, n_embd 768, 6 heads" in found["what"]
    assert "32 of 35 parameters differ" in found["cause"]
    assert "transformer.wte.weight is 1024x256, not 1024x768" in found["cause"]
    # 8 more layers of 6 matrices and, with every second one, a gate.
    assert "52 parameters of its layers are not there" in found["cause"]
    assert " --depth=4 " in found["next"]
    assert found["next"].endswith(" --resume-from-step=4")
    assert f"NANOCHAT_BASE_DIR={real} torchrun --standalone --nproc_per_node=4 " in found["next"]


def test_a_depth_is_that_of_its_own_tag(run_of, doctor: Doctor):
    run_of(4)
    run_of(4, tag="d12")
    (found,) = (one for one in doctor(".", "--depth", 12).facts["findings"] if one["kind"] == "size")
    assert found["path"] == "base_checkpoints/d12/model_000004.pt"


def test_the_command_resumes_with_the_depth_of_the_file(run_of, doctor: Doctor, shell: Shell):
    run_of(4)
    found = doctor(".", "--depth", 12).the("size")
    assert shell(found["next"]).stdout == "resumed 'a run' at step 4 on 1\n"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_config_to_compare_with(wrapped: bool, run_of, tmp_path: Path, doctor: Doctor):
    run_of(4)
    path = tmp_path / "wanted.json"
    path.write_text(json.dumps({"model_config": CONFIG} if wrapped else CONFIG))
    assert doctor(".", "--config", path).kinds == []
    path.write_text(json.dumps(CONFIG | {"vocab_size": 65}))
    found = doctor(".", "--config", path).the("size")
    assert found["what"].endswith("vocab 128")
    assert "3 of 21 parameters differ" in found["cause"]
    path.write_text(json.dumps(CONFIG | {"n_head": 4, "n_kv_head": 4}))
    found = doctor(".", "--config", path).the("size")
    assert "2 heads" in found["what"]
    assert "4 heads" in found["what"]


def test_padding_of_the_vocabulary(run_of, doctor: Doctor):
    directory = run_of(4)
    assert sizes_of_config(CONFIG) == Sizes(2, 16, 2, 2, 64)
    torch.save(model(4, rows=61), directory / "model_000004.pt")
    for path in directory.glob("optim*"):
        path.unlink()
    told = doctor(directory)
    assert "is not padded" in json.dumps(told.facts)
    assert told.tag["sizes"] == "depth 2, n_embd 16, 2 heads, vocab 61"


def test_fewer_key_heads_than_query_heads():
    shapes = {
        "transformer.wte.weight": (64, 32),
        "transformer.h.0.attn.c_q.weight": (32, 32),
        "transformer.h.0.attn.c_k.weight": (16, 32),
        "transformer.h.0.attn.ve_gate.weight": (2, 12),
    }
    assert sizes_of_model(shapes, {}) == Sizes(1, 32, 4, 2, 64)
    del shapes["transformer.h.0.attn.ve_gate.weight"]
    config = {"n_layer": 1, "n_embd": 32, "n_head": 4, "n_kv_head": 2, "vocab_size": 64}
    assert sizes_of_model(shapes, config) == Sizes(1, 32, 4, 2, 64)


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"n_layer": "2"}', "{" * 5000, '{"n_layer": -1}'])
def test_what_is_no_config_is_refused(text: str, run_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from fastckpt.cli.main import main

    directory = run_of(4)
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["doctor", str(directory), "--config", str(path)]) == 64
    assert main(["doctor", str(directory), "--config", str(path), "--depth", "3"]) == 64
    assert main(["doctor", str(directory), "--depth", "0"]) == 64
    assert main(["doctor", str(directory), "--config", str(tmp_path / "none")]) == 5
    assert "Traceback" not in capsys.readouterr().err


def test_meta_that_no_nanochat_would_write(run_of, doctor: Doctor):
    directory = run_of(4)
    for config in (
        [],
        {"n_layer": 10**9, "n_embd": 16, "n_head": 1, "n_kv_head": 1, "vocab_size": 5},
        {"n_layer": None},
    ):
        write_meta(directory, 4, meta(4) | {"model_config": config})
        doctor(".")
