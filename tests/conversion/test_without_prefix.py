"""``convert --strip-prefix``: the same tensors under shorter names, from any format to .fckpt and .pt."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from states import assert_same, compressible, of_dtype

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, UnsupportedStateError, UsageError
from fastckpt.nanochat.save_mark import SaveMark, parse_mark

WRITERS = {
    "pt": torch.save,
    "legacy.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "fckpt": lambda state, path: fastckpt.save(state, path, metadata={"run": 7}),
    "zstd.fckpt": lambda state, path: fastckpt.save(state, path, codec="zstd", metadata={"run": 7}),
}


def state_of(prefix: str) -> Any:
    shared = of_dtype(torch.float32, 80_000)
    model = OrderedDict(
        [
            (f"{prefix}w", torch.nn.Parameter(shared)),
            (f"{prefix}tied", shared[5:50]),
            (f"{prefix}strided", shared[:60].view(6, 10).T),
            (f"{prefix}empty", torch.empty(0, 3)),
        ]
    )
    modules = {"": {"version": 1}, prefix[:-1]: {"version": 2}, f"{prefix}norm": {"version": 3}}
    if not prefix:
        modules = {"": {"version": 2}, "norm": {"version": 3}}
    model._metadata = OrderedDict(modules)  # type: ignore[attr-defined]
    return {
        "model": model,
        "large": compressible(1_200_000),
        "lr": 0.1,
        "conj": torch.ones(3, dtype=torch.complex64).conj(),
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ["pt", "fckpt"])
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_from_every_format(tmp_path: Path, prefix: str, suffix: str, to: str) -> None:
    source, result = tmp_path / f"model.{suffix}", tmp_path / f"result.{to}"
    WRITERS[suffix](state_of(prefix), source)
    before = source.read_bytes()
    (done,) = fastckpt.convert(source, result, strip_prefix=prefix)
    assert (done.exact, done.source_verified) == (False, suffix != "legacy.pt")
    lost = to == "pt" and suffix.endswith("fckpt")
    assert done.notes[0] == f"4 of 6 tensors had the prefix {prefix}"
    assert [note for note in done.notes if "metadata (run)" in note] == list(done.notes[1:])
    assert len(done.notes) == 1 + lost
    assert_same(fastckpt.load(result), state_of(""))
    assert fastckpt.verify(result).ok
    if to == "pt":
        assert_same(torch.load(result, weights_only=True), state_of(""))
    elif suffix.endswith("fckpt"):
        assert fastckpt.open(result).metadata == {"run": 7, "fastckpt.strip_prefix": [prefix]}
    assert source.read_bytes() == before


def test_from_safetensors(tmp_path: Path) -> None:
    state = {"module.w": torch.ones(2, 3), "module.b": torch.zeros(3).half(), "step": torch.tensor(3)}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    for to in ("pt", "fckpt"):
        (done,) = fastckpt.convert(tmp_path / "m.safetensors", tmp_path / f"m.{to}", strip_prefix="module.")
        assert not done.source_verified
        loaded = fastckpt.load(tmp_path / f"m.{to}")
        assert set(loaded) == {"w", "b", "step"}
        assert torch.equal(loaded["w"], state["module.w"])


def test_a_pt_is_what_torch_would_write(tmp_path: Path) -> None:
    state = {"w": torch.arange(6.0), "step": 3}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    fastckpt.convert(tmp_path / "a.pt", tmp_path / "model.pt", strip_prefix="module.")
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "torch" / "model.pt").read_bytes()


@pytest.mark.parametrize("to", ["pt", "fckpt"])
@pytest.mark.parametrize("suffix", ["pt", "fckpt", "zstd.fckpt"])
def test_a_damaged_source(tmp_path: Path, suffix: str, to: str) -> None:
    source, result = tmp_path / f"m.{suffix}", tmp_path / f"r.{to}"
    WRITERS[suffix]({"module.w": of_dtype(torch.float32, 50_000)}, source)
    raw = bytearray(source.read_bytes())
    raw[len(raw) // 2] ^= 1
    source.write_bytes(raw)
    result.write_bytes(b"old")
    with pytest.raises(DamagedError):
        fastckpt.convert(source, result, strip_prefix="module.")
    assert result.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, result.name])


class Unknown:
    """Something that only a pickle can hold."""


def test_what_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "m.pt"
    torch.save({"module.w": torch.ones(1), "w": torch.zeros(1)}, source)
    with pytest.raises(UsageError, match="would be called 'w'"):
        fastckpt.convert(source, tmp_path / "r.pt", strip_prefix="module.")
    torch.save({"module.w": torch.ones(1)}, source)
    for prefix, options in (
        ("_orig_mod.", {}),
        ("module.w", {}),
        ("module.", {"replace": True}),
    ):
        with pytest.raises(UsageError):
            fastckpt.convert(source, tmp_path / "r.out", strip_prefix=prefix, **{"to": "pt", **options})
    with pytest.raises(UsageError):
        fastckpt.convert(source, source, to="pt", strip_prefix="module.")
    with pytest.raises(UsageError, match="single file"):
        fastckpt.convert(tmp_path, strip_prefix="module.")
    torch.save({"module.w": torch.ones(1), "x": Unknown()}, source)
    with pytest.raises(UnsupportedStateError):
        fastckpt.convert(source, tmp_path / "r.pt", strip_prefix="module.")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"_orig_mod.w": torch.ones(2)}, tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--strip-prefix", "_orig_mod."]) == 0
    assert "1 of 1 tensors had the prefix _orig_mod." in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]) == 1
    assert "the same names under the prefix _orig_mod. (A); 1 tensor: 1 identical" in capsys.readouterr().out


def test_a_step_keeps_its_mark_and_says_what_its_names_were(tmp_path: Path) -> None:
    """The weights are still those of the save: with the optimizer beside it the step is whole."""
    mark = SaveMark("model", 4, None, 1, "0" * 32, optimizer=False)
    fastckpt.save({"module._orig_mod.w": torch.ones(3)}, tmp_path / "model_000004.fckpt", metadata=mark.as_metadata())
    fastckpt.convert(tmp_path / "model_000004.fckpt", tmp_path / "a.fckpt", strip_prefix="module.")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.fckpt", strip_prefix="_orig_mod.")
    with fastckpt.open(tmp_path / "b.fckpt") as file:
        assert list(file) == ["w"]
        assert parse_mark(file.metadata) == mark
        assert file.metadata["fastckpt.strip_prefix"] == ["module.", "_orig_mod."]
