"""NaN, infinity and moments that never moved; and zeros that are there by design."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from doctor_builds import meta, model, optimizer, write_step
from doctor_types import Doctor, Shell

import fastckpt.nanochat
from fastckpt.doctor import numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_that_are_not_finite(value: float, run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    state = optimizer(4)
    state["state"][1]["exp_avg_sq"][5, :3] = value
    torch.save(state, directory / "optim_000004_rank0.pt")
    quick = doctor(".").the("not-finite")["what"]
    assert "3 NaN or infinite numbers in 1 of 24 tensors, of each of which the first 16.4 kB were looked at" in quick
    told = doctor(".", "--deep")
    found = told.the("not-finite")
    assert "3 NaN or infinite numbers in 1 of 24 tensors: state.1.exp_avg_sq" in found["what"]
    assert (told.code, told.tag["newest_sound"]) == (1, 2)
    assert shell(found["next"]).returncode == 0
    assert doctor(".", "--deep").kinds == []


def test_moments_of_the_only_step(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(4, world=2)
    state = optimizer(4, 1, 2)
    state["state"][0]["exp_avg"][0] = math.nan
    torch.save(state, directory / "optim_000004_rank1.pt")
    told = doctor(".", "--deep")
    assert "cannot warm up again" in told.the("not-finite")["cause"]
    done = shell(told.the("not-finite")["next"])
    assert done.returncode == 0, done.stderr
    assert doctor(".", "--deep").kinds == []
    assert torch.load(directory / "optim_000004_rank1.pt")["state"] == {}


def test_a_model_that_diverged(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    state = model(4)
    state["lm_head.weight"][0, 0] = math.nan
    torch.save(state, directory / "model_000004.pt")
    told = doctor(".", "--deep")
    assert "lm_head.weight" in told.the("not-finite")["what"]
    assert shell(told.the("not-finite")["next"]).returncode == 0
    assert doctor(".", "--deep").tag["newest_sound"] == 2
    torch.save({name: value * math.nan for name, value in model(2).items()}, directory / "model_000002.pt")
    assert doctor(".", "--deep").code == 2, "no weights are left that could be used"


def test_moments_that_never_moved(run_of, doctor: Doctor, shell: Shell):
    directory = run_of(2, 4)
    state = optimizer(4)
    for held in state["state"].values():
        for value in held.values():
            if torch.is_tensor(value):
                value.zero_()
    torch.save(state, directory / "optim_000004_rank0.pt")
    told = doctor(".", "--deep")
    found = told.the("zero-moments")
    assert found["severity"] == "bad"
    assert "all of 24" in found["what"]
    assert shell(found["next"]).returncode == 0
    assert doctor(".", "--deep").kinds == []


def test_one_moment_that_never_moved(run_of, doctor: Doctor):
    directory = run_of(2, 4)
    state = optimizer(4)
    state["state"][2]["exp_avg"].zero_()
    torch.save(state, directory / "optim_000004_rank0.pt")
    found = doctor(".", "--deep").the("zero-moments")
    assert found["severity"] == "warn"
    assert "state.2.exp_avg" in found["what"]


def test_rows_that_no_rank_owns_are_zero_by_design(run_of, doctor: Doctor):
    directory = run_of(4, world=4)
    gates = torch.load(directory / "optim_000004_rank3.pt")["state"][8]["momentum_buffer"]
    assert not gates.any(), "one gate on four ranks: the last three own none"
    assert doctor(".", "--deep").kinds == []


def test_a_swapped_file_has_the_zeros_of_its_own_rank(run_of, doctor: Doctor):
    directory = run_of(2, 4, world=2)
    (directory / "optim_000004_rank0.pt").rename(directory / "x")
    (directory / "optim_000004_rank1.pt").rename(directory / "optim_000004_rank0.pt")
    (directory / "x").rename(directory / "optim_000004_rank1.pt")
    assert doctor(".", "--deep").kinds == ["swapped"]


def test_an_owned_row_that_is_zero_is_seen(run_of, doctor: Doctor):
    directory = run_of(4, world=4)
    state = optimizer(4, 0, 4)
    state["state"][8]["momentum_buffer"].zero_()
    torch.save(state, directory / "optim_000004_rank0.pt")
    assert doctor(".", "--deep").kinds == ["zero-moments"]


def test_own_format(tmp_path: Path, doctor: Doctor, shell: Shell):
    directory = tmp_path / "base_checkpoints" / "d2"
    write_step(directory, 2)
    state = optimizer(4)
    state["state"][0]["exp_avg"][0, 0] = math.nan
    fastckpt.nanochat.save_checkpoint(directory, 4, model(4), state, meta(4))
    told = doctor(".", "--deep")
    assert told.kinds == ["not-finite"]
    assert shell(told.the("not-finite")["next"]).returncode == 0
    assert doctor(".", "--deep").tag["newest_sound"] == 2


def test_tensors_larger_than_one_piece(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numbers, "_PIECE", 128)
    directory = tmp_path / "d2"
    write_step(directory, 4, world=4)
    assert doctor(directory, "--deep").kinds == []
    state = optimizer(4, 2, 4)
    state["state"][0]["exp_avg"][-1, -1] = math.inf
    torch.save(state, directory / "optim_000004_rank2.pt")
    assert "has 1 NaN or infinite" in doctor(directory, "--deep").the("not-finite")["what"]


def test_every_kind_of_float(tmp_path: Path, doctor: Doctor):
    names = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"]
    names += ["float8_e5m2fnuz", "complex64", "complex128"]
    directory = tmp_path / "d2"
    write_step(directory, 4)
    for bad in (None, *names):
        state = model(4)
        for name in names:
            value = torch.tensor([1.0, math.nan if name == bad else 2.0], dtype=torch.float32)
            state[f"extra.{name}"] = value.to(getattr(torch, name))
        state["extra.int"], state["extra.packed"] = torch.arange(3), torch.ones(4, dtype=torch.float8_e8m0fnu)
        torch.save(state, directory / "model_000004.pt")
        told = doctor(directory, "--deep")
        assert ("not-finite" in told.kinds) == (bad is not None), bad
        if bad is not None:
            assert f"has 1 NaN or infinite numbers in 1 of 32 tensors: extra.{bad}" in told.the("not-finite")["what"]


def test_a_step_that_diverged_is_nothing_to_go_back_to(run_of, doctor: Doctor, shell: Shell):
    """Every save since is full of NaN, too: none of them speaks for setting another one aside."""
    directory = run_of(2, 4, 6)
    for step in (4, 6):
        state = model(step)
        state["lm_head.weight"][0, 0] = math.nan
        torch.save(state, directory / f"model_{step:06d}.pt")
    (directory / "model_000002.pt").unlink()
    told = doctor(".", "--deep")
    assert told.code == 2
    found = [one for one in told.facts["findings"] if one["kind"] == "not-finite"]
    assert [(one["step"], one["loss"]) for one in found] == [(6, True), (4, True)]
    assert all("no other step here is sound" in one["cause"] for one in found)
    torch.save(model(2), directory / "model_000002.pt")
    told = doctor(".", "--deep")
    assert told.code == 1
    for one in told.facts["findings"]:
        if one["severity"] == "bad":
            assert shell(one["next"]).returncode == 0
    after = doctor(".", "--deep")
    assert (after.kinds, after.tag["steps"]) == ([], [2])


def test_moments_of_every_step_are_sick_and_the_weights_are_kept(run_of, doctor: Doctor, shell: Shell):
    """With NaN in the moments of all steps, no command takes a model away: the moments are begun anew."""
    directory = run_of(2, 4)
    for step in (2, 4):
        state = optimizer(step)
        state["state"][0]["exp_avg"][0, 0] = math.nan
        torch.save(state, directory / f"optim_{step:06d}_rank0.pt")
    told = doctor(".", "--deep")
    for one in told.facts["findings"]:
        if one["severity"] == "bad":
            assert shell(one["next"]).returncode == 0
    after = doctor(".", "--deep")
    assert (after.kinds, after.tag["steps"], after.tag["newest_whole"]) == ([], [2, 4], 4)


_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_BYTES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("dtype", [*_WIDTHS, *_BYTES])
def test_what_is_no_number_is_what_torch_says(dtype: str):
    """Of types of two bytes or less, all that there are; of longer ones all last two bytes."""
    width = _WIDTHS.get(dtype, 1)
    fronts = (b"", b"\0" * 6, b"\1" * 6)[: 1 if width < 4 else 3]
    tops = [n.to_bytes(min(width, 2), "little") for n in range(256 ** min(width, 2))]
    raw = b"".join((front + top)[-width:] for front in fronts for top in tops)
    values = torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).to(torch.float64)
    assert numbers.not_finite(raw, dtype) == int((~values.isfinite()).sum())
    for at in range(0, len(raw), 97 * width):
        one = raw[at : at + width]
        assert numbers.is_zero(one, dtype) == (not values[at // width].any()) or dtype.endswith(("fnuz", "e8m0fnu"))


@pytest.mark.parametrize("form", ["pt", "fckpt", "safetensors"])
def test_a_file_by_itself(form: str, tmp_path: Path, doctor: Doctor, text):
    """The first 16 KiB of each tensor are looked at, and that is what the sentence says."""
    path = tmp_path / f"final.{form}"

    def write(at: int | None) -> None:
        state = {"w": torch.ones(100, 100), "b": torch.ones(7)}
        if at is not None:
            state["w"].view(-1)[at] = math.nan
        if form == "fckpt":
            fastckpt.save(state, path)
        else:
            (torch.save if form == "pt" else safetensors.torch.save_file)(state, path)

    write(None)
    assert text(path).splitlines()[-1] == (
        "nothing wrong; no NaN or infinity in the first 16.4 kB of each tensor; --deep would read every byte"
    )
    write(4095)
    told = doctor(path)
    assert (told.code, told.kinds) == (1, ["not-finite"])
    assert told.the("not-finite")["what"].endswith("were looked at: w")
    write(4096)
    assert (doctor(path).kinds, doctor(path, "--deep").kinds) == ([], ["not-finite"])


def test_damage_where_the_numbers_are_looked_at(tmp_path: Path, doctor: Doctor):
    path = tmp_path / "final.fckpt"
    fastckpt.save({"w": torch.arange(9000.0)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.find(torch.arange(9000.0).numpy().tobytes()) + 300] ^= 1
    path.write_bytes(raw)
    assert doctor(path).kinds == ["rotted"]


def test_tensors_that_are_not_looked_at_are_said(tmp_path: Path, text, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numbers, "_MOST_SAMPLED", 2)
    torch.save({f"w{i}": torch.ones(9) for i in range(5)}, tmp_path / "a.pt")
    assert "in the first 16.4 kB of 2 of 5 tensors; --deep" in text(tmp_path / "a.pt")
