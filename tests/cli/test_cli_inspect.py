"""``fastckpt inspect``: the facts about every kind of file, as text and as strict JSON."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt.constants import SECTION_SOURCE

KEYS = {
    "path",
    "format",
    "size",
    "version",
    "root",
    "checksums",
    "seal",
    "parity",
    "codecs",
    "original",
    "saved_as",
    "how_to_pack",
    "program",
    "locations",
    "metadata",
    "structure",
    "tensors",
    "scalars",
    "totals",
    "shared_storages",
    "optimizers",
    "nanochat",
    "opaque",
}


def test_damaged_source_section(here, tmp_path):
    torch.save({"a": torch.arange(10)}, tmp_path / "m.pt")
    path = tmp_path / "m.fckpt"
    fastckpt.convert(tmp_path / "m.pt", path)
    assert "torch .pt (zip)" in (told := here("inspect", path).out)
    assert "given back byte for byte" in told
    with fastckpt.open(path) as ck:
        section = ck._file.footer.section(SECTION_SOURCE)
    raw = bytearray(path.read_bytes())
    raw[section.extent.offset + 77] ^= 1
    path.write_bytes(raw)
    told = here("inspect", path).out
    assert "bytes that only the original file had are damaged" in told
    assert "byte for byte" not in told
    assert here("inspect", path, "--json").json["original"] == {"format": "damaged", "size": 0}


@pytest.mark.parametrize("name", ["pt", "legacy", "fckpt"])
def test_every_format_tells_the_same(name, here, samples):
    facts = here("inspect", getattr(samples, name), "--json").json
    assert set(facts) == KEYS
    assert facts["tensors"]["model.layers.0.attn.weight"]["shape"] == [32, 32]
    assert facts["tensors"]["model.bias"]["dtype"] == "bfloat16"
    assert facts["scalars"]["step"] == 7
    assert facts["scalars"]["config.best"] == "Infinity"
    assert facts["scalars"]["optimizer.param_groups.0.betas"] == [0.9, 0.95]
    assert facts["shared_storages"] == [["model.wte.weight", "model.lm_head.weight"]]
    assert facts["totals"]["tensors"] == 9
    assert facts["totals"]["storages"] == 8
    assert facts["totals"]["params"] == 4 * 1024 + 2 * 2048 + 300_000
    (optimizer,) = facts["optimizers"]
    assert (optimizer["at"], optimizer["step"], optimizer["state_ids"]) == ("optimizer", 7, [0])
    assert optimizer["groups"][0]["params"] == [0, 1]
    assert optimizer["groups"][0]["with_state"] == [0]
    assert facts["structure"]["keys"]["model"]["tensors"] == 7


def test_what_is_counted_as_a_parameter(here, tmp_path):
    model = {"w": torch.zeros(4, 3), "scale": torch.tensor(1.0), "norm.num_batches_tracked": torch.tensor(9)}
    loop = {"step": torch.tensor([7]), "loss": torch.tensor(0.25), "rng": torch.get_rng_state()}
    for name, state, count in (("both", {"model": model, **loop}, 13), ("model", model, 13), ("loop", loop, 1)):
        torch.save(state, tmp_path / f"{name}.pt")
        assert here("inspect", tmp_path / f"{name}.pt", "--json").json["totals"]["params"] == count, name
    marked = {"model": model, "alpha": torch.nn.Parameter(torch.tensor([2.0]))}
    torch.save(marked, tmp_path / "marked.pt")
    assert here("inspect", tmp_path / "marked.pt", "--json").json["totals"]["params"] == 14
    torch.save(torch.get_rng_state(), tmp_path / "rng.pt")
    assert " parameter" not in here("inspect", tmp_path / "rng.pt").out


def test_offsets_lead_to_the_bytes(here, samples):
    state = torch.load(samples.pt)
    expected = state["model"]["bias"].view(torch.uint8).numpy().tobytes()
    for path in (samples.pt, samples.legacy, samples.fckpt):
        tensor = here("inspect", path, "--json").json["tensors"]["model.bias"]
        assert path.read_bytes()[tensor["offset"] : tensor["offset"] + tensor["nbytes"]] == expected


def test_what_only_a_fckpt_has(here, samples, tmp_path):
    facts = here("inspect", samples.fckpt, "--json").json
    assert facts["version"] == 2
    assert facts["root"] == fastckpt.open(samples.fckpt).root
    assert facts["metadata"] == {"loss": "NaN", "run": "a"}
    assert list(facts["codecs"]) == ["none"]
    fastckpt.convert(samples.pt, tmp_path / "a.fckpt", codec="zstd")
    facts = here("inspect", tmp_path / "a.fckpt", "--json").json
    assert "zstd" in facts["codecs"]
    assert facts["original"] == {"format": "torch-zip", "size": samples.pt.stat().st_size}
    assert facts["optimizers"][0]["step"] == 7


def test_text_collapses_layers_and_shows_step_and_config(here, samples):
    ended = here("inspect", samples.pt)
    assert ended.code == 0
    assert "model.layers.{0..3}.attn.weight" in ended.out
    assert "4 x  (32, 32)" in ended.out
    assert "step: 7" in ended.out
    assert "n_layer 4" in ended.out
    assert "shared storage: model.wte.weight, model.lm_head.weight" in ended.out
    assert "optimizer at optimizer: 1 group, 2 parameters, state under 0, step 7" in ended.out


def test_the_tree_shows_values_too(here, samples):
    out = here("inspect", samples.pt, "--tree").out
    assert "{0..3}.attn.weight" in out
    assert "= 'tiny'" in out


def test_keys_lists_tensors_one_by_one(here, samples):
    lines = here("inspect", samples.pt, "--keys", "*.attn.*").out.splitlines()
    assert [line.split()[0] for line in lines] == [f"model.layers.{i}.attn.weight" for i in range(4)]
    facts = here("inspect", samples.pt, "--keys", "*.attn.*", "--json").json
    assert len(facts["tensors"]) == 4
    assert facts["totals"]["tensors"] == 9
    ended = here("inspect", samples.pt, "--keys", "nothing")
    assert ended.code == 2
    assert "nothing" in ended.err


def test_values_that_json_does_not_have(here, tmp_path):
    path = tmp_path / "a.fckpt"
    state = {
        "huge": 1 << 100_000,
        "nan": float("nan"),
        "minus": float("-inf"),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "empty": {},
        "mixed": [1, "a", None, (2.5,)],
        1: "int key",
    }
    fastckpt.save(state, path)
    scalars = here("inspect", path, "--json").json["scalars"]
    assert scalars["huge"] == hex(1 << 100_000)
    assert (scalars["nan"], scalars["minus"], scalars["bytes"]) == ("NaN", "-Infinity", "00ff")
    assert (scalars["complex"], scalars["dtype"], scalars["device"]) == ("(1+2j)", "torch.bfloat16", "cpu")
    assert (scalars["size"], scalars["mixed"], scalars["1"]) == ([2, 3], [1, "a", None, [2.5]], "int key")
    assert here("inspect", path).code == 0
    assert here("inspect", path, "--tree").code == 0


@pytest.mark.parametrize("state", [torch.ones(2), [], {}, 5, None, [torch.ones(1), {"a": ()}], OrderedDict()])
def test_odd_roots(state, here, tmp_path):
    for path in (tmp_path / "a.fckpt", tmp_path / "a.pt"):
        fastckpt.save(state, path) if path.suffix == ".fckpt" else torch.save(state, path)
        for arguments in ([], ["--json"], ["--tree"]):
            assert here("inspect", path, *arguments).code == 0


def test_devices_and_strides_are_noted(here, tmp_path):
    path = tmp_path / "a.fckpt"
    fastckpt.save({"t": torch.ones(3, 4).t(), "p": torch.nn.Parameter(torch.ones(2))}, path)
    out = here("inspect", path).out
    assert "stride (1, 4)" in out
    assert "requires_grad" in out


def test_two_gigabytes_are_inspected_as_quickly_as_two_kilobytes(here, tmp_path):
    def of_layers(size: int) -> Path:
        path = tmp_path / f"{size}.safetensors"
        table = {
            f"layers.{i}.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
            for i in range(64)
        }
        header = json.dumps(table).encode()
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 64 * size)
        return path

    def seconds(path: Path) -> float:
        start = time.process_time()
        assert here("inspect", path).code == 0
        return time.process_time() - start

    small, large = of_layers(32), of_layers(1 << 25)
    assert min(seconds(large) for _ in range(3)) < 5 * min(seconds(small) for _ in range(3))


def test_engine(here, samples):
    facts = here("inspect", "--engine", samples.pt, "--json").json
    assert facts["simd"] in facts["simd_available"]
    assert facts["packages"]["torch"] == torch.__version__
    assert isinstance(facts["o_direct"], bool)
    assert [on["device"] for on in facts["verification"]][:1] == ["cpu"]
    assert len(facts["verification"]) == 1 + torch.cuda.device_count()
    assert all(on["engine"] in ("triton", "host") and on["why"] for on in facts["verification"])
    ended = here("inspect", "--engine")
    assert ended.code == 0
    assert "simd" in ended.out
    assert "verify, cpu" in ended.out


def test_nanochat_files(here, real):
    facts = here("inspect", real / "base_checkpoints/d4/model_000004.pt", "--json").json["nanochat"]
    assert (facts["role"], facts["step"], facts["depth"], facts["n_embd"]) == ("model", 4, 4, 256)
    assert facts["meta"]["model_config"]["vocab_size"] == 1000
    assert facts["meta"]["val_bpb"] == pytest.approx(4.1033, abs=1e-3)
    facts = here("inspect", real / "base_checkpoints/d4_w4/optim_000004_rank3.pt", "--json").json
    assert (facts["nanochat"]["rank"], facts["nanochat"]["world_size"]) == (3, 4)
    assert len(facts["optimizers"][0]["groups"]) == 10
    assert facts["optimizers"][0]["step"] == 4
    assert facts["optimizers"][0]["state_ids"][-3:] == [11, 27, 31]
    facts = here("inspect", real / "legacy_2025_10_w4/optim_000002.pt", "--json").json
    assert [(o["at"], o["step"]) for o in facts["optimizers"]] == [("0", 2), ("1", None)]
    assert "zero_buffer" in facts["optimizers"][1]["groups"][0]["options"]


def test_a_swapped_rank_file_is_noted(here, real, tmp_path):
    source = real / "base_checkpoints/d4_w4/optim_000004_rank3.pt"
    shutil.copy(source, tmp_path / "optim_000004_rank1.pt")
    assert "saved under the name optim_000004_rank3" in here("inspect", tmp_path / "optim_000004_rank1.pt").out


def test_directories(here, real, samples, tmp_path):
    facts = here("inspect", real / "base_checkpoints", "--json").json
    assert [len(inner["steps"]) for inner in facts["directories"]] == [1, 1]
    (step,) = here("inspect", real / "base_checkpoints/d4_w4", "--json").json["steps"]
    assert step["step"] == 4
    assert [file["rank"] for file in step["optim"]] == [0, 1, 2, 3]
    assert step["meta"] == "meta_000004.json"
    assert step["notes"] == []
    shutil.copy(real / "base_checkpoints/d4_w4/optim_000004_rank3.pt", tmp_path)
    shutil.copy(samples.pt, tmp_path / "other.pt")
    facts = here("inspect", tmp_path, "--json").json
    assert facts["steps"][0]["notes"] == ["no model", "no meta", "no optimizer of rank {0..2}"]
    assert [file["name"] for file in facts["others"]] == ["other.pt"]
    out = here("inspect", tmp_path).out
    assert "no model" in out
    assert "other.pt" in out
