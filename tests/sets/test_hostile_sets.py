"""Directories that contradict themselves, hold more than they say, or were made to do harm."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
from set_builds import (
    flip,
    halve,
    write_accelerate_step,
    write_deepspeed_step,
    write_shards,
    write_trainer_step,
)
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.sets.dcp_metadata import GlobalTensor, uncovered
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

STATE = {"a": torch.arange(12.0).reshape(3, 4), "i": torch.arange(12, dtype=torch.int32).reshape(3, 4), "n": [1, 2]}


def verdicts(directory: Path) -> dict[str, bool]:
    return {Path(each.path).name: judge(each, threads=1).is_whole for each in recognise(str(directory))}


def messages(directory: Path) -> str:
    return "\n".join(
        problem.message for each in recognise(str(directory)) for problem in judge(each, threads=1).problems
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dcp") / "step-5"
    torch.distributed.checkpoint.save(dict(STATE), checkpoint_id=place, no_dist=True)
    return place


def changed(saved: Path, into: Path, change: Callable[[Any], None]) -> Path:
    """A copy whose ``.metadata`` says something else."""
    shutil.copytree(saved, into / "step-5")
    path = into / "step-5" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return into


# --- a manifest that says something else than the files -----------------------


def _other_dtype(metadata: Any) -> None:
    metadata.state_dict_metadata["a"].properties.dtype = torch.int32


def _other_shape(metadata: Any) -> None:
    about = metadata.state_dict_metadata["a"]
    about.size = about.chunks[0].sizes = torch.Size([4, 3])


def _no_elements(metadata: Any) -> None:
    about = metadata.state_dict_metadata["a"]
    about.size = about.chunks[0].sizes = torch.Size([0, 4])


def _swapped(metadata: Any) -> None:
    by_name = {index.fqn: index for index in metadata.storage_data}
    places = metadata.storage_data
    places[by_name["a"]], places[by_name["i"]] = places[by_name["i"]], places[by_name["a"]]


def _an_object_instead(metadata: Any) -> None:
    by_name = {index.fqn.partition(".")[0]: index for index in metadata.storage_data}
    places = metadata.storage_data
    places[by_name["a"]], places[by_name["n"]] = places[by_name["n"]], places[by_name["a"]]


@pytest.mark.parametrize("change", [_other_dtype, _other_shape, _no_elements, _swapped, _an_object_instead])
def test_a_metadata_that_says_other_tensors_than_the_files_have(
    saved: Path, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    assert verdicts(saved.parent) == {"step-5": True}
    place = changed(saved, tmp_path, change)
    assert verdicts(place) == {"step-5": False}
    assert "a: " in messages(place)
    assert fastckpt.find_last_whole(place) is None
    with pytest.raises(DamagedError):
        fastckpt.load(place / "step-5")


@pytest.mark.parametrize("name", ["/etc/passwd", "../step-5/__0_0.distcp", "..", "a\0b", "x" * 300])
def test_a_metadata_that_names_files_elsewhere(saved: Path, tmp_path: Path, name: str) -> None:
    def change(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = name

    place = changed(saved, tmp_path, change)
    assert verdicts(place) == {"step-5": False}
    assert "which is not beside it" in messages(place)
    with pytest.raises(DamagedError, match="which is not beside it"):
        fastckpt.load(place / "step-5")


@pytest.mark.parametrize("name", ["a\\u0000b", "a\\ud800b", "x" * 300, "..", "../model.safetensors"])
def test_an_index_that_names_what_no_file_beside_it_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"w": "{name}"}}}}')
    assert verdicts(tmp_path) == {tmp_path.name: False}
    with pytest.raises(DamagedError, match="the name of a file beside it"):
        fastckpt.load(tmp_path)


def test_an_accelerate_step_that_says_it_has_files_elsewhere(tmp_path: Path) -> None:
    step = write_accelerate_step(tmp_path, 5)
    fastckpt.save({"models": []}, step / "accelerate.fckpt", metadata={"parts": ["../../other.bin", "a\0b"]})
    assert verdicts(tmp_path) == {"checkpoint_5": False}
    assert "no name of a file in it" in messages(tmp_path)


@pytest.mark.parametrize("where", ["offset", "sizes", "dims"])
def test_numbers_that_no_file_and_no_tensor_has(saved: Path, tmp_path: Path, where: str) -> None:
    def change(metadata: Any) -> None:
        if where == "offset":
            next(iter(metadata.storage_data.values())).offset = 1 << 20_000
        else:
            chunk = metadata.state_dict_metadata["a"].chunks[0]
            chunk.sizes = (1 << 20_000, 4) if where == "sizes" else (1 << 62,) * 400

    place = changed(saved, tmp_path, change)
    assert verdicts(place) == {"step-5": False}
    with pytest.raises(DamagedError):
        fastckpt.load(place / "step-5")


def test_a_link_that_leads_nowhere_beside_the_shards(saved: Path, tmp_path: Path) -> None:
    place = changed(saved, tmp_path, lambda _: None)
    (place / "step-5" / "__7_0.distcp").symlink_to("/nowhere")
    assert "__7_0.distcp is not named by .metadata" in messages(place)


# --- work in proportion -------------------------------------------------------


def test_pieces_that_a_pickle_has_once_and_means_often(saved: Path, tmp_path: Path) -> None:
    def change(metadata: Any) -> None:
        about = metadata.state_dict_metadata["a"]
        chunks = [ChunkStorageMetadata(torch.Size([at]), torch.Size([1])) for at in range(5000)]
        shared = TensorStorageMetadata(about.properties, torch.Size([5000]), chunks)
        metadata.state_dict_metadata |= {f"t{number}": shared for number in range(5000)}

    place = changed(saved, tmp_path, change)
    start = time.monotonic()
    assert verdicts(place) == {"step-5": False}
    assert time.monotonic() - start < 10


def test_pieces_in_no_grid_are_compared_in_time() -> None:
    count = 20_000  # Each with each would be two hundred million comparisons.
    left = [((2 * at, 0), (2, 1)) for at in range(count)]
    right = [((0, 1), (1, 1)), *(((2 * at + 1, 1), (2, 1)) for at in range(count - 1)), ((2 * count - 1, 1), (1, 1))]
    start = time.monotonic()
    assert uncovered(GlobalTensor("float32", (2 * count, 2), left + right)) is None
    right[7] = right[8]
    assert "overlap" in str(uncovered(GlobalTensor("float32", (2 * count, 2), left + right)))
    assert time.monotonic() - start < 10


def test_pieces_that_overlap_are_found_whatever_their_number_is() -> None:
    def found(*chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
        return str(uncovered(GlobalTensor("float32", (4, 4), list(chunks))))

    # As many elements as there should be, and all corners of the whole.
    halves = ((0, 0), (2, 4)), ((2, 0), (2, 4))
    assert found(*halves) == "None"
    assert "overlap" in found(halves[0], halves[0])
    assert "overlap" in found(((0, 0), (2, 3)), ((2, 0), (2, 3)), ((0, 2), (4, 1)))
    # Three times the same place is odd, and too many elements for the rest.
    assert "overlap" in found(halves[0], ((0, 0), (1, 1)), ((0, 0), (1, 1)), ((2, 0), (2, 3)))


@pytest.mark.parametrize("kind", ["trainer", "accelerate", "shares", "models", "stated"])
def test_one_stray_name_calls_for_no_million_others(tmp_path: Path, kind: str) -> None:
    if kind == "trainer":
        stray = write_trainer_step(tmp_path, 5) / "rng_state_99999999.pth"
    elif kind == "accelerate":
        stray = write_accelerate_step(tmp_path, 5) / "random_states_99999999.pkl"
    else:
        step = write_deepspeed_step(tmp_path, 5)
        model = step / "mp_rank_00_model_states.pt"
        names = {
            "shares": "zero_pp_rank_99999999_mp_rank_00_optim_states.pt",
            "models": "mp_rank_99999999_model_states.pt",
        }
        stray = step / names[kind] if kind != "stated" else model
    torch.save({"dp_world_size": 999_999} if kind == "stated" else {}, stray)
    (checkpoint,) = recognise(str(tmp_path))
    assert 100 < len(checkpoint.members) < 1000
    assert not judge(checkpoint, threads=1).is_whole


# --- more than a manifest says ------------------------------------------------


def test_a_second_model_of_an_accelerate_step_belongs_to_it(tmp_path: Path) -> None:
    steps = [write_accelerate_step(tmp_path, number) for number in (1, 2)]
    for step in steps:
        torch.save({"w": torch.ones(500)}, step / "pytorch_model_1.bin")
        safetensors.torch.save_file({"w": torch.ones(500)}, step / "model_2.safetensors")
    assert verdicts(tmp_path) == {"checkpoint_1": True, "checkpoint_2": True}
    flip(steps[1] / "pytorch_model_1.bin", 2000)
    assert verdicts(tmp_path) == {"checkpoint_1": True, "checkpoint_2": False}
    assert fastckpt.find_last_whole(tmp_path) == str(steps[0])
    (steps[0] / "model_2.safetensors").unlink()
    assert "model_2.safetensors is not there" in messages(tmp_path)


def test_a_tensor_parallel_rank_of_which_nothing_is_there(tmp_path: Path) -> None:
    step = write_deepspeed_step(tmp_path, 5, tensor_ranks=1)
    model = step / "mp_rank_00_model_states.pt"
    torch.save({"module": {}, "dp_world_size": 2, "mp_world_size": 2}, model)
    assert "mp_rank_01_model_states.pt is not there" in messages(tmp_path)
    torch.save({"module": {}, "dp_world_size": 2, "mp_world_size": 1}, model)
    assert verdicts(tmp_path) == {"global_step5": True}


def test_an_optimizer_of_which_nothing_is_there(tmp_path: Path) -> None:
    step = write_deepspeed_step(tmp_path, 5)
    for share in step.glob("*optim_states.pt"):
        share.unlink()
    said = {"module": {}, "dp_world_size": 2, "optimizer": None, "ds_config": {"zero_optimization": {"stage": 1}}}
    torch.save(said, step / "mp_rank_00_model_states.pt")
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is not there" in messages(tmp_path)
    torch.save(said | {"ds_config": {"zero_optimization": {"stage": 0}}}, step / "mp_rank_00_model_states.pt")
    assert verdicts(tmp_path) == {"global_step5": True}


@pytest.mark.parametrize("kind", ["dcp", "own", "trainer", "deepspeed"])
@pytest.mark.parametrize("harm", [flip, halve])
def test_a_checkpoint_file_in_a_step_that_nothing_names_counts(
    saved: Path, tmp_path: Path, kind: str, harm: Callable[[Path], None]
) -> None:
    if kind == "dcp":
        step = changed(saved, tmp_path, lambda _: None) / "step-5"
    elif kind == "own":
        step = tmp_path / "step-5"
        fastckpt.dcp.save(dict(STATE), step, no_dist=True)
    else:
        step = (write_trainer_step if kind == "trainer" else write_deepspeed_step)(tmp_path, 5)
    extra = step / ("layer_01-model_00-model_states.pt" if kind == "deepspeed" else "common.pt")
    torch.save({"w": torch.ones(3000)}, extra)
    (step / "vocabulary.bin").write_bytes(b"no checkpoint at all")
    assert verdicts(tmp_path) == {step.name: True}
    if harm is flip:
        flip(extra, 5000)
    else:
        harm(extra)
    assert verdicts(tmp_path) == {step.name: False}
    assert fastckpt.find_last_whole(tmp_path) is None


def test_steps_of_several_kinds_are_all_judged(saved: Path, tmp_path: Path) -> None:
    changed(saved, tmp_path, lambda _: None)
    for number in (3, 8):
        write_trainer_step(tmp_path, number)
    fastckpt.dcp.save(dict(STATE), tmp_path / "step-9", no_dist=True)
    every = {"checkpoint-3": True, "step-5": True, "checkpoint-8": True, "step-9": True}
    assert list(verdicts(tmp_path).items()) == list(every.items())
    (tmp_path / "step-9" / "set.fckpt").unlink()
    halve(tmp_path / "checkpoint-8" / "optimizer.pt")
    assert verdicts(tmp_path) == every | {"step-9": False, "checkpoint-8": False}
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "step-5")


def test_the_model_beside_the_steps_of_its_run_is_judged_and_nothing_to_go_on_from(tmp_path: Path) -> None:
    step = write_trainer_step(tmp_path, 4)
    write_shards(tmp_path, 2)
    assert verdicts(tmp_path) == {tmp_path.name: True, step.name: True}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert verdicts(tmp_path) == {tmp_path.name: False, step.name: True}
    assert fastckpt.find_last_whole(tmp_path) == str(step)
    (step / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    assert fastckpt.find_last_whole(tmp_path) is None


def test_a_number_in_a_name_is_no_newer_than_a_step(tmp_path: Path) -> None:
    for name in ("step_5", "vocab_50257", "llama-7b"):
        fastckpt.save({"w": torch.ones(3)}, tmp_path / f"{name}.fckpt")
    assert fastckpt.find_last_whole(tmp_path) == str(tmp_path / "step_5.fckpt")
