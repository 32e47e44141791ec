"""``fastckpt diff``: what it says, its JSON, its exit codes, files and nanochat directories."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastckpt

SIDE_KEYS = {"path", "format", "size", "root", "tensors", "bytes_read"}
PAIR_KEYS = {
    "a",
    "b",
    "same",
    "roots_equal",
    "renamed",
    "totals",
    "only_in_a",
    "only_in_b",
    "values",
    "metadata",
    "objects",
    "containers",
    "shared_only_in_a",
    "shared_only_in_b",
    "tensors",
    "uncompared",
    "notes",
    "seconds",
}
TOTAL_KEYS = {
    "identical",
    "differs",
    "damaged",
    "unread",
    "only_in_a",
    "only_in_b",
    "by_digests",
    "objects",
    "objects_unknown",
}
TENSOR_KEYS = {"status", "compared", "dtype", "shape", "changes", "numbers", "error"}
NUMBER_KEYS = {
    "relative_l2",
    "max_abs",
    "cosine",
    "elements",
    "differing",
    "differing_bits",
    "values_equal",
    "nan",
    "inf",
}


def states() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two states with every kind of difference."""
    torch.manual_seed(0)
    tied = torch.randn(8, 8)
    weights = [torch.randn(100, 100) for _ in range(5)]
    a = {
        "same": weights[0],
        "near": weights[1],
        "far": weights[2],
        "nan": weights[3],
        "zero": torch.zeros(9),
        "cast": weights[4],
        "reshaped": torch.ones(2, 3),
        "tied": [tied, tied],
        "gone": torch.ones(1),
        "step": 500,
        "config": {"lr": 0.5, "n": 1},
    }
    b = {
        "same": weights[0].clone(),
        "near": weights[1] * 1.001,
        "far": -weights[2],
        "nan": weights[3].clone(),
        "zero": -torch.zeros(9),
        "cast": weights[4].bfloat16(),
        "reshaped": torch.ones(3, 2),
        "tied": (tied, tied.clone()),
        "new": torch.ones(1),
        "step": 1000,
        "config": {"lr": math.inf, "n": 1.0},
    }
    b["nan"][3, 3] = math.nan
    return a, b


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("diff")
    a, b = states()
    torch.save(a, directory / "a.pt")
    fastckpt.save(b, directory / "b.fckpt")
    return directory / "a.pt", directory / "b.fckpt"


# Two files


@pytest.mark.parametrize(("a", "b"), list(itertools.product(["pt", "legacy", "fckpt"], repeat=2)))
def test_the_same_state_in_every_format_is_0(a, b, here, samples):
    paths = [getattr(samples, name) for name in (a, b)]
    if a != b:  # What a .pt cannot hold would be a difference: see below.
        bare = samples.directory / "without_metadata.fckpt"
        fastckpt.save(fastckpt.load(samples.fckpt), bare)
        paths = [bare if path == samples.fckpt else path for path in paths]
    ended = here("diff", *paths)
    assert (ended.code, ended.err) == (0, "")
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith("identical: ")
    assert "digests" not in verdict


def test_digests_alone_are_not_called_identical(here, samples):
    ended = here("diff", samples.fckpt, samples.fckpt, "--digests")
    assert ended.code == 0
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith("equal digests: 9 tensors and all values were saved the same; ")
    assert "what is there now was not read" in verdict


def test_metadata_that_only_one_file_has_is_a_difference(here, samples):
    ended = here("diff", samples.pt, samples.fckpt)
    assert ended.code == 1
    assert "metadata" in ended.out
    assert "only in B" in ended.out


def test_a_safetensors_against_a_nested_state(here, samples, tmp_path):
    assert here("diff", samples.safetensors, samples.directory / "flat.fckpt").code == 0
    flat = fastckpt.load(samples.safetensors)
    fastckpt.save({"model": flat}, tmp_path / "nested.fckpt")
    save_file({f"model.{name}": tensor for name, tensor in flat.items()}, tmp_path / "flat.safetensors")
    ended = here("diff", tmp_path / "flat.safetensors", tmp_path / "nested.fckpt")
    assert ended.code == 1
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith(
        "not all compared: 7 tensors, no difference found; a .safetensors cannot hold 1 container"
    )
    document = here("diff", tmp_path / "flat.safetensors", tmp_path / "nested.fckpt", "--json").json
    assert (document["same"], document["uncompared"]) == (None, ["1 container"])


def test_a_renamed_model_is_one_difference(here, samples, tmp_path):
    flat = fastckpt.load(samples.safetensors)
    torch.save({f"_orig_mod.module.{name}": tensor for name, tensor in flat.items()}, tmp_path / "compiled.pt")
    ended = here("diff", tmp_path / "compiled.pt", samples.safetensors)
    assert ended.code == 1
    assert len(ended.out.splitlines()) == 3
    expected = "different: the same names under the prefix _orig_mod.module. (A); 7 tensors: 7 identical"
    assert ended.out.splitlines()[-1].startswith(expected)
    document = here("diff", samples.safetensors, tmp_path / "compiled.pt", "--json").json
    assert document["renamed"] == {"prefix_a": "", "prefix_b": "_orig_mod.module."}
    assert document["same"] is False
    assert document["totals"]["identical"] == 7


def test_what_is_said_about_every_difference(pair, here):
    ended = here("diff", *pair)
    assert (ended.code, ended.err) == (1, "")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    for expected in (
        "only in A gone float32 (1,)",
        "only in B new float32 (1,)",
        "dtype cast float32 -> bfloat16",
        "shape reshaped [2, 3] -> [3, 2]",
        "container state['tied'] list -> tuple",
        "shared tied.0, tied.1 in one storage only in A",
        "value step 500 -> 1000",
        "value config.lr 0.5 -> Infinity",
        "value config.n 1 -> 1.0",
        "far float32 (100, 100) 2 8.33 -1.000000 10,000 (100%)",
        "nan float32 (100, 100) NaN NaN 1.000000 1 (<0.1%) NaN 0 -> 1",
    ):
        assert any(expected in line or _without_maximum(expected) == _without_maximum(line) for line in lines), expected
    assert any(line.startswith("zero ") and "equal values, other bits in 9 elements" in line for line in lines)
    order = [
        line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in ("nan", "far", "near", "zero")
    ]
    assert order == ["nan", "far", "near", "zero"]
    assert lines[-1].startswith(
        "different: 11 tensors: 3 identical, 6 differ, 1 only in A, 1 only in B; "
        "3 plain values, 1 container, 2 tensor types, 1 shared storage changed"
    )


def _without_maximum(line: str) -> list[str]:
    """The cells of a line of the table, but for the largest difference."""
    cells = line.split()
    return cells[:5] + cells[6:]


def test_the_json_document(pair, here):
    ended = here("diff", *pair, "--json")
    assert (ended.code, ended.err) == (1, "")
    facts = ended.json
    assert set(facts) == PAIR_KEYS
    assert set(facts["a"]) == set(facts["b"]) == SIDE_KEYS
    assert set(facts["totals"]) == TOTAL_KEYS
    assert (facts["a"]["path"], facts["a"]["format"], facts["b"]["format"]) == (str(pair[0]), "torch-zip", "fckpt")
    assert (facts["same"], facts["roots_equal"]) == (False, False)
    assert facts["only_in_a"] == {"gone": {"dtype": "float32", "shape": [1]}}
    assert facts["values"]["changed"] == {
        "step": {"a": 500, "b": 1000},
        "config.lr": {"a": 0.5, "b": "Infinity"},
        "config.n": {"a": 1, "b": 1.0, "type_a": "int", "type_b": "float"},
    }
    assert facts["containers"] == {"state['tied']": {"a": "list", "b": "tuple"}}
    assert facts["shared_only_in_a"] == [["tied.0", "tied.1"]]
    tensors = facts["tensors"]
    assert all(set(tensor) == TENSOR_KEYS for tensor in tensors.values())
    assert tensors["cast"]["changes"] == {"dtype": {"a": "float32", "b": "bfloat16"}}
    assert tensors["cast"]["numbers"]["differing_bits"] is None
    assert (tensors["reshaped"]["status"], tensors["reshaped"]["numbers"]) == ("differs", None)
    assert set(tensors["nan"]["numbers"]) == NUMBER_KEYS
    assert tensors["nan"]["numbers"]["relative_l2"] == "NaN"
    assert tensors["nan"]["numbers"]["nan"] == {"a": 0, "b": 1}
    assert tensors["zero"]["numbers"]["values_equal"]
    assert tensors["zero"]["numbers"]["cosine"] is None
    assert tensors["near"]["numbers"]["relative_l2"] == pytest.approx(0.001, rel=1e-3)


def test_how_much_is_listed(pair, here):
    def listed(*arguments: object) -> list[str]:
        names = ("nan", "far", "near", "zero", "cast")
        return [
            line.split()[0] for line in here("diff", *pair, *arguments).out.splitlines() if line[2:].startswith(names)
        ]

    assert len(listed()) == len(listed("--all")) == 5
    assert listed("--top", "2") == ["nan", "far"]
    out = here("diff", *pair, "--top", "2").out
    assert "... and 3 more that differ" in out
    assert "... and 1 more (--all lists them)" in out
    assert "... and" not in here("diff", *pair, "--top", "1", "--all").out
    assert listed("--top", "0") == []


def test_keys(pair, here):
    assert here("diff", *pair, "--keys", "sam*").code == 0
    facts = here("diff", *pair, "--keys", "*a*", "--json").json
    assert set(facts["tensors"]) == {"same", "near", "far", "nan", "cast", "reshaped"}
    assert facts["values"]["changed"] == {}
    ended = here("diff", *pair, "--keys", "nothing")
    assert ended.code == 2
    assert "no tensor matches 'nothing'" in ended.err


def test_the_structure_alone(pair, here, samples):
    facts = here("diff", *pair, "--structure-only", "--json").json
    assert facts["totals"]["unread"] == 9
    assert facts["a"]["bytes_read"] == facts["b"]["bytes_read"] == 0
    ended = here("diff", samples.pt, samples.legacy, "--structure-only")
    assert ended.code == 0
    assert "what is in them was not compared" in ended.out.splitlines()[-1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("arguments", "needs_torch"),
    [
        (["a.pt", "same.fckpt"], False),
        (["same.fckpt", "same.zstd.fckpt"], False),
        (["a.pt", "b.fckpt", "--structure-only"], False),
        (["a.pt", "b.fckpt"], True),
    ],
)
def test_torch_is_imported_only_for_numbers(arguments, needs_torch, pair):
    directory = pair[0].parent
    if not (directory / "same.fckpt").exists():
        fastckpt.convert(pair[0], directory / "same.fckpt")
        fastckpt.convert(pair[0], directory / "same.zstd.fckpt", codec="zstd")
    program = (
        "import sys; from fastckpt.cli.main import main; code = main(['diff', *sys.argv[1:]]);"
        "print('torch' in sys.modules, 'rich' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory)
    assert done.stderr.split()[:2] == [str(needs_torch), "False"]


def test_a_tensor_that_has_no_numbers_is_named_all_the_same(here, tmp_path):
    for name, base in (("a", torch.zeros(200_000)), ("b", torch.ones(200_000))):
        torch.save({"x": base.as_strided((100_000, 100_000), (1, 1))}, tmp_path / f"{name}.pt")
    ended = here("diff", tmp_path / "a.pt", tmp_path / "b.pt")
    assert ended.code == 1
    assert "  differs  x: by how much cannot be said" in ended.out.splitlines()


# Damage and other ends


@pytest.mark.parametrize("name", ["damaged", "damaged_pt"])
def test_a_damaged_tensor_is_2_and_the_rest_is_compared(name, here, samples):
    path = getattr(samples, name)
    ended = here("diff", samples.legacy, path)
    assert (ended.code, ended.err) == (2, "")
    *_, damaged, verdict = ended.out.splitlines()
    assert damaged.startswith("  damaged  model.bias: ")
    assert str(path) in damaged
    assert verdict.startswith("damaged: 9 tensors: 8 identical, 1 damaged")
    facts = here("diff", path, samples.legacy, "--json").json
    assert facts["same"] is False
    assert facts["tensors"]["model.bias"]["status"] == "damaged"
    assert facts["tensors"]["model.bias"]["error"]["type"] == "DamagedError"


def test_files_that_cannot_be_compared(here, samples, tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("nothing")
    for path, code in ((text, 4), (samples.cut, 2), (tmp_path / "none.pt", 5)):
        for arguments in ((path, samples.pt), (samples.pt, path)):
            ended = here("diff", *arguments, "--json")
            assert ended.code == code
            assert ended.json["error"]["path"] == str(path)
            assert ended.err.startswith("fastckpt: error: ")
            assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["PT"],
        ["PT", "PT", "PT"],
        ["PT", "DIR"],
        ["DIR", "PT"],
        ["DIR"],
        ["PT", "PT", "--steps", "1", "2"],
        ["PT", "PT", "--steps", "1"],
        ["PT", "PT", "--top", "-1"],
        ["PT", "PT", "--top", "many"],
        ["PT", "PT", "--threads", "0"],
        ["DIR", "--steps", "1", "9"],
        ["DIR", "DIR", "DIR"],
    ],
)
def test_wrong_usage_is_64(arguments, here, samples, steps):
    names = {"PT": samples.pt, "DIR": steps}
    ended = here("diff", *(names.get(argument, argument) for argument in arguments))
    assert ended.code == 64
    assert ended.out == ""


# Directories


def save_step(directory: Path, step: int, *, ranks: int = 2, suffix: str = "pt", change: float = 0) -> None:
    """A step as nanochat writes it, with tensors of a few numbers."""
    directory.mkdir(exist_ok=True)
    files = {f"model_{step:06d}": {"wte": torch.ones(4) + change}}
    files |= {f"optim_{step:06d}_rank{rank}": {"state": {0: torch.full((3,), float(rank))}} for rank in range(ranks)}
    for name, state in files.items():
        torch.save(state, directory / f"{name}.pt")
        if suffix == "fckpt":
            fastckpt.convert(directory / f"{name}.pt", directory / f"{name}.fckpt", replace=True)
    (directory / f"meta_{step:06d}.json").write_text(json.dumps({"step": step}))


@pytest.fixture
def steps(tmp_path) -> Path:
    save_step(tmp_path / "d12", 1)
    save_step(tmp_path / "d12", 2, change=1)
    return tmp_path / "d12"


def test_two_steps_of_a_directory(steps, here):
    ended = here("diff", steps, "--steps", "1", "2")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[-1] == "3 pairs of files: 2 the same, 1 different"
    same = [line for line in ended.out.splitlines() if line.startswith("optim rank")]
    assert [line.partition(" (")[0] for line in same] == [
        f"optim rank {rank}: identical: 1 tensor, every bit" for rank in (0, 1)
    ]
    document = here("diff", steps, "--steps", "1", "2", "--json").json
    assert set(document) == {"a", "b", "same", "only_in_a", "only_in_b", "files"}
    assert [file["role"] for file in document["files"]] == ["model", "optim rank 0", "optim rank 1"]
    assert all(set(file) == PAIR_KEYS | {"role"} for file in document["files"])
    assert [file["same"] for file in document["files"]] == [False, True, True]
    assert here("diff", steps, "--steps", "1", "1").code == 0


def test_two_directories(steps, tmp_path, here):
    save_step(tmp_path / "other", 2, suffix="fckpt", change=1)
    save_step(tmp_path / "other", 3, suffix="fckpt")
    document = here("diff", steps, tmp_path / "other", "--json").json
    assert (document["only_in_a"], document["only_in_b"]) == (["step 1"], ["step 3"])
    assert [file["same"] for file in document["files"]] == [True] * 3
    assert document["files"][0]["b"]["format"] == "fckpt"
    ended = here("diff", steps, tmp_path / "other")
    assert ended.code == 1
    assert "only in A: step 1" in ended.out
    assert here("diff", steps, tmp_path / "other", "--steps", "2", "2").code == 0
    assert here("diff", steps, tmp_path / "other", "--steps", "1", "2", "--keys", "state.*").code == 0


def test_ranks_that_one_side_lacks(steps, tmp_path, here):
    save_step(tmp_path / "other", 1, ranks=1)
    ended = here("diff", steps, tmp_path / "other")
    assert ended.code == 1
    assert "only in A: step 2, step 1 optim rank 1" in ended.out


def test_a_file_that_fails_does_not_stop_the_others(steps, here):
    path = steps / "model_000002.pt"
    shutil.copyfile(steps / "optim_000002_rank0.pt", path)
    with open(path, "r+b") as file:
        file.truncate(300)
    ended = here("diff", steps, "--steps", "1", "2")
    assert ended.code == 2
    assert str(path) in ended.out
    assert ended.out.splitlines()[-1] == "3 pairs of files: 2 the same, 1 not comparable"
    file = here("diff", steps, "--steps", "1", "2", "--json").json["files"][0]
    assert set(file) == {"role", "a", "b", "same", "error"}
    assert file["same"] is None


def test_directories_without_steps(steps, tmp_path, here):
    ended = here("diff", steps.parent, steps)
    assert ended.code == 64
    assert "subdirectories: d12" in ended.err
    (tmp_path / "empty").mkdir()
    assert here("diff", steps, tmp_path / "empty").code == 4
    save_step(tmp_path / "later", 7)
    ended = here("diff", steps, tmp_path / "later")
    assert ended.code == 64
    assert "no step is in both: 1, 2 in A, 7 in B" in ended.err
    assert here("diff", steps, tmp_path / "later", "--steps", "1", "7").code == 0


def test_real_checkpoints(here, real):
    directory = real / "base_checkpoints"
    document = here("diff", directory / "d4", directory / "d4_w4", "--json").json
    assert document["only_in_b"] == ["optim rank 1", "optim rank 2", "optim rank 3"]
    model = document["files"][0]
    assert model["totals"]["differs"] == 35
    assert model["tensors"]["transformer.wte.weight"]["numbers"]["cosine"] > 0.999
