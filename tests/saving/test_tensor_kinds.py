"""Tensors that are not plain come back as what they were; what is made of damaged parts is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

import fastckpt
from fastckpt.errors import DamagedError, UnsupportedStateError, UsageError
from fastckpt.layout.named import NamedRef, SizeRef, TensorRef
from fastckpt.layout.tree import encode_tree
from fastckpt.tensor.rebuild import unflatten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
DENSE = torch.tensor([[0, 1.0, 0, 2], [0, 0, 3, 0]])


class Wrapped(torch.Tensor):
    """A wrapper as torchao's: no bytes of its own, and plain tensors inside."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, tag: str) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor, tag: str) -> None:
        self.inner, self.tag = inner, tag

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["inner"], {"tag": self.tag}

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], context: Any, size: Any, stride: Any) -> Wrapped:
        assert inner["inner"].shape == size
        return cls(inner["inner"], context["tag"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"not for this test: {function}")


def kinds() -> dict[str, torch.Tensor]:
    """One of each kind."""
    return {
        "coo": DENSE.to_sparse(),
        "not coalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2)),
        "hybrid": torch.sparse_coo_tensor([[0]], [[1.0, 2.0]], (2, 2)),
        "csr": DENSE.to_sparse_csr(),
        "csc": DENSE.to_sparse_csc(),
        "bsr": DENSE.to_sparse_bsr((1, 2)),
        "bsc": DENSE.to_sparse_bsc((2, 2)),
        "without values": torch.zeros(3, 3).to_sparse(),
        "gradient": DENSE.to_sparse().requires_grad_(),
        "parameter": torch.nn.Parameter(DENSE.to_sparse()),
        "per tensor": torch.quantize_per_tensor(DENSE, 0.1, 3, torch.qint8),
        "per channel": torch.quantize_per_channel(
            DENSE, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
        ),
        "32 bits": torch.quantize_per_tensor(DENSE, 0.1, 0, torch.qint32),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        "jagged": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged),
        "meta": torch.empty(3, 4, dtype=torch.bfloat16, device="meta").t(),
        "meta parameter": torch.nn.Parameter(torch.empty(2, device="meta")),
    }


def parts_of(tensor: torch.Tensor) -> list[Any]:
    """All that makes a tensor, as plain values."""
    found = [type(tensor), tensor.layout, tensor.dtype, tensor.requires_grad, tensor.device]
    plain = tensor.detach()
    if plain.is_nested:
        return [*found, *(part.tolist() for part in plain.unbind())]
    found.append(tensor.shape)
    if plain.is_meta:
        return [*found, plain.stride()]
    if plain.is_quantized:
        per_tensor = plain.qscheme() is torch.per_tensor_affine
        scales = plain.q_scale() if per_tensor else plain.q_per_channel_scales().tolist()
        return [*found, plain.qscheme(), plain.int_repr().tolist(), scales, plain.dequantize().tolist()]
    if plain.layout is torch.sparse_coo:
        return [*found, plain.is_coalesced(), plain._indices().tolist(), plain._values().tolist()]
    return [*found, plain.values().tolist(), plain.to_dense().tolist()]


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_a_tensor_comes_back_as_what_it_was(tmp_path: Path, name: str, codec: str) -> None:
    tensor = kinds()[name]
    fastckpt.save({"t": tensor, "w": torch.ones(2)}, tmp_path / "s", codec=codec)
    assert fastckpt.verify(tmp_path / "s").ok
    for options in ({}, {"mmap": True}):
        loaded = fastckpt.load(tmp_path / "s", **options)
        assert parts_of(loaded["t"]) == parts_of(tensor)
    with fastckpt.open(tmp_path / "s") as checkpoint:
        assert "t" in checkpoint.tree()
    fastckpt.save(loaded, tmp_path / "again", codec=codec)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_wrapper_is_a_placeholder_until_its_class_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    fastckpt.save([Wrapped(torch.arange(3.0), "x")], tmp_path / "s")
    (loaded,) = fastckpt.load(tmp_path / "s")
    assert (loaded.kind, loaded.name) == ("subclass", f"{__name__}.Wrapped")
    assert loaded.content["tensors"]["inner"].tolist() == [0, 1, 2]
    fastckpt.save([loaded], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()
    fastckpt.register(Wrapped)
    (loaded,) = fastckpt.load(tmp_path / "again")
    assert type(loaded) is Wrapped
    assert (loaded.inner.tolist(), loaded.tag) == ([0, 1, 2], "x")


def test_a_dtensor_is_refused_with_the_way_to_all_of_it() -> None:
    script = """if True:
        import torch, fastckpt
        from torch.distributed.tensor import distribute_tensor, Replicate
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        try:
            fastckpt.save({"w": distribute_tensor(torch.ones(4), mesh, [Replicate()])}, "never")
        except fastckpt.errors.UnsupportedStateError as error:
            assert "state['w']: cannot store a DTensor" in str(error) and "x.full_tensor()" in str(error), error
        else:
            raise SystemExit("not refused")
        torch.distributed.destroy_process_group()
    """
    done = forked.run("-c", script)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_kept_of_a_tensor_is_refused(tmp_path: Path) -> None:
    for name in ("coo", "per tensor", "nested", "jagged", "meta"):
        tagged = kinds()[name]
        tagged.tag = 1
        with pytest.raises(UnsupportedStateError, match=r"state\[0\]: cannot store attributes .*: tag"):
            fastckpt.save([tagged], tmp_path / "s")
    lazy = torch.empty(3, dtype=torch.complex64, device="meta").conj()
    with pytest.raises(UnsupportedStateError, match=r"lazy view of a meta tensor.*resolve_conj"):
        fastckpt.save([lazy], tmp_path / "s")
    fastckpt.save([kinds()["per tensor"]], tmp_path / "s")
    with pytest.raises(UsageError, match="in place"):
        fastckpt.load_into([kinds()["per tensor"]], tmp_path / "s")


def test_a_parameter_of_any_kind_is_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    fastckpt.register(Wrapped)
    wrapped = Wrapped(torch.arange(3.0), "x")
    wrapped._is_param = True  # As nn.Parameter(wrapped) does, if the class can be detached.
    monkeypatch.setattr(Wrapped, "detach", lambda self: Wrapped(self.inner, self.tag), raising=False)
    jagged = torch.nn.Parameter(kinds()["jagged"])
    fastckpt.save([wrapped, jagged, torch.nn.Parameter(kinds()["nested"])], tmp_path / "s")
    for loaded in fastckpt.load(tmp_path / "s"):
        assert isinstance(loaded, torch.nn.Parameter)


class Named(torch.Tensor):
    """A subclass without bytes or a flattening of its own."""


def test_a_registered_tensor_class_is_saved_as_it_was_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    with pytest.raises(UnsupportedStateError, match=r"register\(Named, to_plain, from_plain\)"):
        fastckpt.save([torch.ones(2).as_subclass(Named)], tmp_path / "s")
    fastckpt.register(Named, lambda it: it.as_subclass(torch.Tensor), lambda plain: plain.as_subclass(Named))
    fastckpt.save([torch.ones(2).as_subclass(Named)], tmp_path / "s")
    (loaded,) = fastckpt.load(tmp_path / "s")
    assert type(loaded) is Named
    assert loaded.tolist() == [1, 1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor([[0, 5]], [1.0, 2.0], (2,), check_invariants=False),
        torch.sparse_csr_tensor([0, 2, 2], [1, 0], [1.0, 2.0], (2, 2), check_invariants=False),
    ],
    ids=["index outside", "columns not in order"],
)
def test_a_sparse_tensor_that_load_would_refuse_is_not_saved(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(UnsupportedStateError, match=r"state\['w'\]: cannot store a sparse tensor that is not valid"):
        fastckpt.save({"w": tensor}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_sparse_tensors_are_filled_in_place(tmp_path: Path) -> None:
    fastckpt.save([DENSE.to_sparse()], tmp_path / "s")
    here = (DENSE * 5).to_sparse()
    fastckpt.load_into([here], tmp_path / "s")
    assert torch.equal(here.to_dense(), DENSE)


ONE, TWO = torch.ones(3), torch.tensor([[0, 5], [0, 1]])
SIZE = SizeRef((2, 2))


@pytest.mark.parametrize(
    "value",
    [
        NamedRef("sparse", ("sparse_coo", {"indices": TWO, "values": torch.ones(2)}, SIZE, False, 0)),
        NamedRef("sparse", ("sparse_coo", {"values": ONE}, SIZE, False, 0)),
        NamedRef("sparse", ("sparse_coo", {"indices": TWO * 0, "values": torch.ones(2)}, SIZE, True, 0)),
        NamedRef("sparse", ("dense", {}, SIZE, False, 0)),
        NamedRef(
            "sparse",
            (
                "sparse_csr",
                {"crow_indices": torch.tensor([0, 1, 99]), "col_indices": torch.tensor([7]), "values": torch.ones(1)},
                SIZE,
                False,
                0,
            ),
        ),
        NamedRef("quantized", ("per_tensor_affine", {"values": ONE, "scale": 1.0, "zero_point": 0}, 0)),
        NamedRef(
            "quantized", ("per_channel_affine", {"values": TWO.int(), "scales": ONE, "zero_points": ONE, "axis": 0}, 0)
        ),
        NamedRef("nested", ("strided", [1, 2], 0)),
        NamedRef("nested", ("open", [], 0)),
        NamedRef("meta", ("float32", SizeRef((2,)), SIZE, 0)),
        NamedRef("meta", ("int32", SIZE, SIZE, 1)),
        NamedRef("meta", ("int32", SIZE, SIZE, 64)),
    ],
    ids=str,
)
def test_damaged_parts_make_no_tensor(value: NamedRef) -> None:
    tensors: list[torch.Tensor] = []

    def resolve(found: Any, path: Any) -> Any:
        tensors.append(found)
        return TensorRef(len(tensors) - 1)

    raw = encode_tree([value], resolve)
    with pytest.raises(DamagedError, match="the tree is not valid"):
        unflatten(raw, tensors)


def test_salvage_leaves_out_what_is_lost_of_a_named_value(tmp_path: Path) -> None:
    """The others in the same value stay; a tensor that takes all of its parts is left out as a whole."""

    def large(number: int) -> torch.Tensor:
        return torch.full((100_000,), float(number))

    broken = torch.sparse_coo_tensor(torch.arange(100_000)[None], large(7), (100_000,))
    state = {
        "space": argparse.Namespace(lost=large(7), kept=large(2), rate=0.1),
        "pair": fastckpt.Placeholder("namedtuple", "my.Pair", {"lost": large(7), "kept": large(3)}),
        "sparse": broken,
        "whole": DENSE.to_sparse(),
        "set": {1, 2},
    }
    fastckpt.save(state, tmp_path / "s")
    data = bytearray((tmp_path / "s").read_bytes())
    wrong, at = torch.tensor(7.0).numpy().tobytes() * 100, 0
    for _ in range(3):
        at = data.index(wrong, at)
        data[at] ^= 1
        at += 400_000
    (tmp_path / "s").write_bytes(data)
    report = fastckpt.salvage(tmp_path / "s", tmp_path / "out.fckpt")
    assert report.exit_code == 3  # Written, and not complete.
    loaded = fastckpt.load(tmp_path / "out.fckpt")
    assert sorted(loaded) == ["pair", "set", "space", "whole"]
    assert torch.equal(loaded["space"].kept, large(2))
    assert (loaded["space"].rate, sorted(vars(loaded["space"]))) == (0.1, ["kept", "rate"])
    assert (loaded["pair"].content["lost"], loaded["pair"].content["kept"].sum()) == (None, 300_000)
    assert parts_of(loaded["whole"]) == parts_of(state["whole"])
    assert loaded["set"] == {1, 2}
