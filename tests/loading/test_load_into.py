"""load_into: the bytes of a checkpoint in tensors that exist, all of them or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from states import (
    assert_same,
    assert_same_elements,
    copied,
    element_bytes,
    everything,
    module,
    of_dtype,
    pattern,
    states,
    tensors_of,
)

import fastckpt
from fastckpt.errors import DamagedError, MismatchError, NotACheckpointError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def blank(state: Any) -> Any:
    """A state of the same build whose tensors hold other bytes, those of bools valid."""
    result = copied(state)
    for tensor in tensors_of(result):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(1)
    return result


def assert_equal_elements(actual: Any, expected: Any) -> None:
    for a, b in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert_same_elements(a, b)


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_everything(tmp_path: Path, codec: str) -> None:
    state = everything()
    fastckpt.save(state, tmp_path / "s", codec=codec)
    destination = blank(state)
    pointers = [tensor.data_ptr() for tensor in tensors_of(destination)]
    fastckpt.load_into(destination, tmp_path / "s")
    assert_equal_elements(destination, state)
    assert [tensor.data_ptr() for tensor in tensors_of(destination)] == pointers


@given(state=states(), codec=st.sampled_from(["none", "zstd", "planes"]))
def test_any_state(tmp_path: Path, state: Any, codec: str) -> None:
    # An arbitrary byte under a bool is no bool, and copying one may change it.
    assume(not any(tensor.dtype is torch.bool and tensor.is_neg() for tensor in tensors_of(state)))
    fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
    destination = blank(state)
    fastckpt.load_into(destination, tmp_path / "s")
    assert_equal_elements(destination, state)


def test_module(tmp_path: Path) -> None:
    source, destination = module(), module()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
        source.norm.running_mean.fill_(3)
    fastckpt.save(source.state_dict(), tmp_path / "s")
    before = dict(destination.named_parameters())
    fastckpt.load_into(destination, tmp_path / "s")
    assert_same(destination.state_dict(), source.state_dict())
    assert destination.head.weight is destination.embed.weight, "tied weights stay tied"
    assert dict(destination.named_parameters()) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in destination.parameters())


def test_optimizer_state(tmp_path: Path) -> None:
    model = module()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    fastckpt.save(state, tmp_path / "s", codec="zstd")
    expected = copied(state)
    with torch.no_grad():
        for tensor in tensors_of(state):
            tensor.zero_()
    fastckpt.load_into(state, tmp_path / "s")
    assert_equal_elements(state, expected)


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_destinations_of_every_build(tmp_path: Path, codec: str) -> None:
    """Small and large, contiguous and not, on either side."""
    large, small = of_dtype(torch.int32, 600 * 500).view(600, 500), of_dtype(torch.int32, 30).view(5, 6)
    for name, stored in {"large": large, "small": small}.items():
        sources = {"plain": stored, "transposed": stored.t().contiguous().t(), "part": stored.repeat(1, 2)[:, ::2]}
        for kind, source in sources.items():
            fastckpt.save({"t": source}, tmp_path / "s", codec=codec)
            for destination in (
                torch.zeros_like(stored),
                torch.zeros(*reversed(stored.shape), dtype=stored.dtype).t(),
                torch.zeros(stored.shape[0] * 2, stored.shape[1], dtype=stored.dtype)[::2],
                torch.nn.Parameter(torch.zeros_like(stored), requires_grad=False),
            ):
                fastckpt.load_into({"t": destination}, tmp_path / "s")
                assert torch.equal(destination, source), (name, kind)


def test_bytes_between_the_elements_stay(tmp_path: Path) -> None:
    fastckpt.save({"t": torch.arange(100_000)}, tmp_path / "s")
    home = torch.full((200_000,), -1)
    fastckpt.load_into({"t": home[::2]}, tmp_path / "s")
    assert torch.equal(home[::2], torch.arange(100_000))
    assert bool((home[1::2] == -1).all())


def test_aliases(tmp_path: Path) -> None:
    shared = of_dtype(torch.float64, 50_000)
    state = {"a": shared, "b": shared, "part": shared[100:200]}
    fastckpt.save(state, tmp_path / "s")
    apart = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    fastckpt.load_into(apart, tmp_path / "s")
    assert_equal_elements(apart, state)
    home = torch.zeros_like(shared)
    fastckpt.load_into({"a": home, "b": home, "part": home[100:200]}, tmp_path / "s")
    assert_same_elements(home, shared)


@pytest.mark.parametrize("numel", [10, 2_000_000])
def test_tied_here_and_not_in_the_file(tmp_path: Path, numel: int) -> None:
    """The last one wins, as with load_state_dict; never a mixture."""
    fastckpt.save({"a": torch.zeros(numel), "b": torch.ones(numel)}, tmp_path / "s")
    for _ in range(5):
        home = torch.full((numel,), 5.0)
        fastckpt.load_into({"a": home, "b": home}, tmp_path / "s", threads=4)
        assert bool((home == 1).all())
    longer = torch.full((numel + 5,), 5.0)
    fastckpt.load_into({"a": longer[:numel], "b": longer[5:]}, tmp_path / "s", threads=4)
    assert bool((longer[:5] == 0).all())
    assert bool((longer[5:] == 1).all())


def test_expanded_destination(tmp_path: Path) -> None:
    fastckpt.save({"t": torch.arange(3.0).expand(4, 3)}, tmp_path / "s")
    home = torch.zeros(3)
    fastckpt.load_into({"t": home.expand(4, 3)}, tmp_path / "s")
    assert home.tolist() == [0, 1, 2]
    fastckpt.save({"other": torch.ones(300_000), "t": torch.arange(12.0).view(4, 3)}, tmp_path / "s")
    home, other = torch.zeros(3), torch.zeros(300_000)
    with pytest.raises(MismatchError, match=r"t: .*stride 0"):
        fastckpt.load_into({"other": other, "t": home.expand(4, 3)}, tmp_path / "s")
    assert not home.any()
    assert not other.any()


def test_mismatches_are_all_listed_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state = {
        "same": torch.ones(300_000),
        "shape": torch.ones(3),
        "dtype": torch.ones(3),
        "only in the file": [torch.ones(1), torch.ones(1)],
    }
    destination = {
        "same": torch.zeros(300_000),
        "shape": torch.zeros(4),
        "dtype": torch.zeros(3, dtype=torch.float16),
        "only here": torch.zeros(2),
    }
    before = [element_bytes(tensor) for tensor in tensors_of(destination)]
    expected = (
        "shape: float32[3] in the checkpoint, float32[4] here",
        "dtype: float32[3] in the checkpoint, float16[3] here",
        "only in the file.0: not in the destination",
        "only in the file.1: not in the destination",
        "only here: not in the checkpoint",
    )
    fastckpt.save(state, path)
    torch.save(state, tmp_path / "s.pt")
    fastckpt.save(state, tmp_path / "z", codec="zstd")
    for source in (path, tmp_path / "s.pt", tmp_path / "z"):
        with pytest.raises(MismatchError) as caught:
            fastckpt.load_into(destination, source)
        for line in expected:
            assert line in str(caught.value)
        assert "5 differences, nothing was written" in str(caught.value)
        assert [element_bytes(tensor) for tensor in tensors_of(destination)] == before


def test_foreign_sources(tmp_path: Path) -> None:
    state = {"a": of_dtype(torch.bfloat16, 200_000), "b": of_dtype(torch.int64, 20).view(4, 5)}
    torch.save(state, tmp_path / "s.pt")
    torch.save(state, tmp_path / "l.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "s.safetensors")
    for name in ("s.pt", "l.pt", "s.safetensors"):
        destination = {"a": torch.zeros(400_000, dtype=torch.bfloat16)[::2], "b": torch.zeros(4, 5, dtype=torch.int64)}
        fastckpt.load_into(destination, tmp_path / name)
        assert_equal_elements(destination, state)


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_damaged_file(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s"
    fastckpt.save({"a": pattern(400_000), "b": pattern(1000)}, path, codec=codec)
    with fastckpt.open(path) as ck:
        payloads = [record.payload for record in ck._file.records]
    intact = path.read_bytes()
    for payload in payloads:
        raw = bytearray(intact)
        raw[payload.offset + 7] ^= 1
        path.write_bytes(raw)
        with pytest.raises(DamagedError, match="partly overwritten and must not be used") as caught:
            fastckpt.load_into({"a": pattern(400_000), "b": pattern(1000)}, path)
        assert caught.value.tensor in ("a", "b")
    torch.save({"a": pattern(400_000)}, tmp_path / "s.pt")
    raw = bytearray((tmp_path / "s.pt").read_bytes())
    raw[200_000] ^= 1
    (tmp_path / "s.pt").write_bytes(raw)
    with pytest.raises(DamagedError, match="partly overwritten and must not be used") as caught:
        fastckpt.load_into({"a": pattern(400_000)}, tmp_path / "s.pt")
    assert caught.value.tensor == "a"


def test_bad_destination_or_file(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(1)}, tmp_path / "s")
    destination = {"a": torch.zeros(1), "b": object()}
    destination["a"].note = object()
    fastckpt.load_into(destination, tmp_path / "s")  # Only tensors are of interest.
    assert destination["a"] == 1
    (tmp_path / "x").write_bytes(b"no checkpoint")
    with pytest.raises(NotACheckpointError):
        fastckpt.load_into({"a": torch.ones(1)}, tmp_path / "x")


PREFIXES = ["_orig_mod.", "module.", "_orig_mod.module.", "wrapped_by_me."]
WRITERS = {
    "fckpt": lambda state, path: fastckpt.save(state, path),
    "pt": torch.save,
    "safetensors": safetensors.torch.save_file,
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("where", ["file", "destination"])
def test_a_prefix_on_either_side(tmp_path: Path, prefix: str, suffix: str, where: str) -> None:
    state = {"h.0.w": pattern(6).float(), "h.1.w": pattern(3).long()}
    prefixed = {f"{prefix}{name}": tensor.clone() for name, tensor in state.items()}
    there, here = (prefixed, state) if where == "file" else (state, prefixed)
    path = tmp_path / f"s.{suffix}"
    WRITERS[suffix](there, path)
    destination = {name: torch.zeros_like(tensor) for name, tensor in here.items()}
    with pytest.raises(MismatchError) as caught:
        fastckpt.load_into(destination, path)
    if prefix in PREFIXES[:3]:  # Those that are known are named.
        assert f"prefix {prefix!r}" in caught.value.message
        assert caught.value.next_step == f"load_into(..., strip_prefix={prefix!r})"
    assert not any(tensor.any() for tensor in destination.values())
    fastckpt.load_into(destination, path, strip_prefix=prefix)
    assert_same(destination, here)


def test_a_compiled_model_inside_a_state(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    fastckpt.save({"model": torch.compile(net).state_dict(), "head.bias": torch.ones(4)}, tmp_path / "s.fckpt")
    other = torch.nn.Linear(3, 2)
    destination = {"model": other.state_dict(), "head.bias": torch.zeros(4)}
    fastckpt.load_into(destination, tmp_path / "s.fckpt", strip_prefix="_orig_mod.")
    assert_same(other.state_dict(), net.state_dict())
    assert destination["head.bias"].eq(1).all()


def test_a_prefix_does_not_hide_other_differences(tmp_path: Path) -> None:
    fastckpt.save({"module.w": torch.ones(2), "module.v": torch.ones(2)}, tmp_path / "s.fckpt")
    for destination in ({"w": torch.zeros(2)}, {"w": torch.zeros(2), "v": torch.zeros(3)}):
        with pytest.raises(MismatchError, match="nothing was written"):
            fastckpt.load_into(destination, tmp_path / "s.fckpt", strip_prefix="module.")
        assert not any(tensor.any() for tensor in destination.values())


def test_a_prefix_without_which_two_names_are_one(tmp_path: Path) -> None:
    fastckpt.save({"module.w": torch.ones(2), "w": torch.ones(2)}, tmp_path / "s.fckpt")
    with pytest.raises(UsageError, match="two tensors or values would be called 'w'"):
        fastckpt.load_into({"w": torch.zeros(2)}, tmp_path / "s.fckpt", strip_prefix="module.")


def test_one_difference_is_not_called_differences(tmp_path: Path) -> None:
    fastckpt.save({"w": torch.ones(3)}, tmp_path / "a.fckpt")
    with pytest.raises(MismatchError, match="1 difference, nothing was written"):
        fastckpt.load_into({"w": torch.ones(4)}, tmp_path / "a.fckpt")
