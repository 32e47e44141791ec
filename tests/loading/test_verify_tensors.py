"""`fastckpt.verify_tensors`: every difference is found in its place, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import device_engine, pretend
from hypothesis import example, given
from hypothesis import strategies as st
from states import element_bytes, everything, module, pattern, states, tensors_of

import fastckpt
import fastckpt.loading.verify_tensors
from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import MismatchError, NotACheckpointError, TensorNotFoundError
from fastckpt.findings import Kind
from fastckpt.staging.ring import Ring

MIB = 2**20
CODECS = ["none", "zstd", "planes"]
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def state() -> dict[str, Any]:
    """Records of their own, a pack, views, a transposed tensor and tied ones."""
    base = pattern(3 * MIB + 100, 3)
    tied = pattern(280 * 1024).view(torch.float32)
    return {
        "large": base,
        "view": base[LEAF_SIZE * 5 : LEAF_SIZE * 5 + 4000],
        "turned": pattern(400 * 1024, 4).view(torch.int32).view(256, 400).t(),
        "tied": [tied, tied],
        "matrix": torch.arange(300_000, dtype=torch.int64).view(3000, 100),
        "small": {str(i): torch.full((i,), i) for i in range(40)},
    }


@pytest.fixture(params=["host", "device by way of slots", "device with an engine"])
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tensors are."""
    if request.param == "host":
        return
    pretend(monkeypatch, ring=Ring(2, MIB))
    if request.param == "device with an engine":
        device_engine(monkeypatch)


def flip(tensor: torch.Tensor, byte: int) -> None:
    """Change one bit of a byte of a tensor's memory, counted from its first element."""
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    raw[tensor.storage_offset() * tensor.element_size() + byte] ^= 16


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.usefixtures("home")
def test_what_was_loaded_is_proven(tmp_path: Path, codec: str) -> None:
    saved = {"all": everything(), "more": state()}
    fastckpt.save(saved, tmp_path / "s", codec=codec)
    for here in (saved, fastckpt.load(tmp_path / "s"), fastckpt.load(tmp_path / "s", mmap=True)):
        report = fastckpt.verify_tensors(here, tmp_path / "s")
        assert report.findings == []
        assert report.ok
        assert report.exit_code == 0
        assert report.verified >= 5 * MIB
        assert report.root == fastckpt.verify(tmp_path / "s").root


@pytest.mark.usefixtures("home")
def test_the_data_of_the_file_is_not_read(tmp_path: Path) -> None:
    fastckpt.save(state(), tmp_path / "s")
    raw = bytearray((tmp_path / "s").read_bytes())
    with fastckpt.open(tmp_path / "s") as ck:
        record = ck._file.records[0]
        raw[record.payload.offset : record.payload.end] = bytes(record.payload.size)
    (tmp_path / "s").write_bytes(raw)
    assert not fastckpt.verify(tmp_path / "s").ok
    assert fastckpt.verify_tensors(state(), tmp_path / "s").findings == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("byte", [0, LEAF_SIZE - 1, LEAF_SIZE, CHUNK_SIZE + 5 * LEAF_SIZE + 3, 2_399_999])
@pytest.mark.usefixtures("home")
def test_a_flipped_bit_is_found_in_its_leaf_and_row(tmp_path: Path, codec: str, byte: int) -> None:
    here = state()
    fastckpt.save(here, tmp_path / "s", codec=codec)
    flip(here["matrix"], byte)
    report = fastckpt.verify_tensors(here, tmp_path / "s")
    (finding,) = report.findings
    leaf = byte // LEAF_SIZE
    assert (finding.kind, finding.tensors, finding.leaf, finding.leaves) == (Kind.ROTTED, ("matrix",), leaf, 1)
    assert finding.chunk == leaf // 64
    assert isinstance(finding, fastckpt.loading.verify_tensors.TensorFinding)
    (span,) = finding.spans
    assert (span.name, span.start, span.end) == ("matrix", leaf * LEAF_SIZE, min((leaf + 1) * LEAF_SIZE, 2_400_000))
    assert span.row == leaf * LEAF_SIZE // 800
    assert "matrix" in finding.message
    assert f"row {span.row}" in finding.message
    assert (report.ok, report.exit_code) == (False, 1)
    assert report.damaged_tensors == ["matrix"]
    json.dumps(report.as_dict())
    flip(here["matrix"], byte)
    assert fastckpt.verify_tensors(here, tmp_path / "s").ok


@pytest.mark.usefixtures("home")
def test_bad_leaves_side_by_side_are_one_finding(tmp_path: Path) -> None:
    here = state()
    fastckpt.save(here, tmp_path / "s")
    here["large"][10 * LEAF_SIZE : 70 * LEAF_SIZE].bitwise_xor_(1)
    here["large"][100 * LEAF_SIZE : 102 * LEAF_SIZE] = 0
    findings = fastckpt.verify_tensors(here, tmp_path / "s").findings
    assert [(f.leaf, f.leaves, f.kind) for f in findings] == [
        (10, 54, Kind.ROTTED),
        (64, 6, Kind.ROTTED),
        (100, 2, Kind.TORN),
    ]
    assert "zeros" in findings[2].message


@pytest.mark.usefixtures("home")
def test_a_leaf_that_several_tensors_share_names_all_of_them(tmp_path: Path) -> None:
    here = {str(i): torch.full((100,), i) for i in range(60)}
    fastckpt.save(here, tmp_path / "s")
    here["30"][5] += 1
    (finding,) = fastckpt.verify_tensors(here, tmp_path / "s").findings
    assert "30" in finding.tensors
    assert len(finding.tensors) in (20, 21)  # 832 bytes each in 16 KiB
    assert "one of" in finding.message


@pytest.mark.usefixtures("home")
def test_other_layouts_of_the_same_values_are_proven(tmp_path: Path) -> None:
    fastckpt.save(state(), tmp_path / "s")
    here = state()
    here["turned"] = here["turned"].contiguous()
    here["view"] = here["view"].clone()
    here["tied"] = [here["tied"][0], here["tied"][1].clone()]
    here["matrix"] = torch.stack([here["matrix"], here["matrix"]], 2)[:, :, 1]
    together = torch.cat(list(here["small"].values())).split(list(range(40)))
    here["small"] = {str(i): part for i, part in enumerate(together)}
    report = fastckpt.verify_tensors(here, tmp_path / "s")
    assert report.findings == []
    assert report.verified == fastckpt.verify_tensors(state(), tmp_path / "s").verified
    here["turned"][399, 255] += 1
    here["view"][3] ^= 1
    here["tied"][1][-1] += 1
    here["small"]["39"][0] += 1
    report = fastckpt.verify_tensors(here, tmp_path / "s")
    named = [finding.tensors for finding in report.findings]
    assert named[:3] == [("view",), ("turned",), ("tied.1",)]
    assert "small.39" in named[3]
    assert [finding.leaf for finding in report.findings[:3]] == [5, 24, 17]


def test_only_some_tensors(tmp_path: Path) -> None:
    here = state()
    fastckpt.save(here, tmp_path / "s")
    flip(here["matrix"], 0)
    assert fastckpt.verify_tensors(here, tmp_path / "s", keys="tied*").findings == []
    assert not fastckpt.verify_tensors(here, tmp_path / "s", keys=["tied*", "matrix"]).ok
    with pytest.raises(TensorNotFoundError):
        fastckpt.verify_tensors(here, tmp_path / "s", keys="missing")
    loaded = fastckpt.load(tmp_path / "s", keys=["turned", "small.7", "view"])
    with pytest.raises(MismatchError, match="large"):
        fastckpt.verify_tensors(loaded, tmp_path / "s", keys=["large", "view"])
    report = fastckpt.verify_tensors(loaded, tmp_path / "s", keys=["turned", "view", "small.7"])
    # The storage behind the view came whole; the pack around the small one did not.
    assert [(f.kind, f.tensors) for f in report.findings] == [(Kind.UNPROVEN, ("small.7",))]
    assert report.ok
    alone = {"view": loaded["view"].clone()}
    (finding,) = fastckpt.verify_tensors(alone, tmp_path / "s", keys="view").findings
    assert (finding.kind, finding.tensors, finding.leaf, finding.leaves) == (Kind.UNPROVEN, ("view",), 5, 1)


def test_holes_that_are_not_here_are_unproven(tmp_path: Path) -> None:
    base = pattern(MIB)
    fastckpt.save({"odd": base[1::2]}, tmp_path / "s")
    assert fastckpt.verify_tensors({"odd": base[1::2]}, tmp_path / "s").findings == []
    report = fastckpt.verify_tensors({"odd": base[1::2].clone()}, tmp_path / "s")
    assert {finding.kind for finding in report.findings} == {Kind.UNPROVEN}
    assert report.verified == 0
    base[MIB // 2] ^= 1
    (finding,) = fastckpt.verify_tensors({"odd": base[1::2]}, tmp_path / "s").findings
    assert (finding.leaf, finding.tensors) == (32, ("odd",))


def test_what_is_not_comparable_is_a_mismatch(tmp_path: Path) -> None:
    fastckpt.save(state(), tmp_path / "s")
    here = state()
    here["matrix"] = here["matrix"].view(100, 3000)
    here["tied"] = [tensor.to(torch.float64) for tensor in here["tied"]]
    here["more"] = torch.ones(1)
    del here["view"]
    with pytest.raises(MismatchError) as caught:
        fastckpt.verify_tensors(here, tmp_path / "s")
    for name in ("matrix", "tied.0", "tied.1", "more", "view"):
        assert f"\n  {name}: " in str(caught.value)
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(NotACheckpointError, match="convert"):
        fastckpt.verify_tensors({"a": torch.ones(2)}, tmp_path / "m.pt")


def test_a_module(tmp_path: Path) -> None:
    model = module()
    fastckpt.save(model.state_dict(), tmp_path / "s")
    assert fastckpt.verify_tensors(model, tmp_path / "s").findings == []
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    assert not fastckpt.verify_tensors(model, tmp_path / "s").ok


@given(saved=states(), seed=st.integers(0, 2**32 - 1))
@example(saved=torch.zeros(1).as_strided((1,), (0,)), seed=0)
def test_any_state_and_any_bit(tmp_path: Path, saved: Any, seed: int) -> None:
    fastckpt.save(saved, tmp_path / "s", durable=False)
    here = fastckpt.load(tmp_path / "s")
    assert fastckpt.verify_tensors(here, tmp_path / "s").findings == []
    found = [tensor for tensor in tensors_of(here) if tensor.numel()]
    if not found:
        return
    tensor = found[seed % len(found)]
    storage = tensor.untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8).set_(storage)
    raw[seed % storage.nbytes()] ^= 1 << seed % 8
    report = fastckpt.verify_tensors(here, tmp_path / "s")
    assert len(report.findings) == 1
    assert not report.ok


def unshared(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements, bit for bit, in a contiguous storage of their own."""
    stored = torch.empty(0, dtype=tensor.dtype)
    stored.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    raw = torch.frombuffer(bytearray(element_bytes(stored) or bytes(1)), dtype=torch.uint8)
    made = torch.empty(0, dtype=tensor.dtype).set_(raw.untyped_storage(), 0, tensor.shape)
    made = made.conj() if tensor.is_conj() else made
    return torch._neg_view(made) if tensor.is_neg() else made


def test_lazy_bits_and_resolved_ones_are_the_same_values(tmp_path: Path) -> None:
    numbers = pattern(400_000).view(torch.int32).float().view(torch.complex64)
    saved = {"conj": numbers.conj(), "neg": numbers[:40_000].conj().imag, "plain": numbers.clone()}
    fastckpt.save(saved, tmp_path / "s")
    here = {name: tensor.resolve_conj().resolve_neg() for name, tensor in saved.items()}
    here["plain"] = here["plain"].conj().resolve_conj().conj()
    here["neg"] = torch.stack([torch.zeros(40_000), here["neg"]], 1)[:, 1]
    report = fastckpt.verify_tensors(here, tmp_path / "s")
    # Of the storage behind "neg", the real parts are not here.
    assert [(finding.kind, finding.tensors) for finding in report.findings] == [(Kind.UNPROVEN, ("neg",))]
    here["conj"][30_000] *= -1
    here["plain"] = here["plain"].resolve_conj()
    here["plain"][49_999] *= -1
    findings = fastckpt.verify_tensors(here, tmp_path / "s").findings
    assert [(finding.tensors, finding.leaf) for finding in findings if finding.kind is Kind.ROTTED] == [
        (("conj",), 30_000 * 8 // LEAF_SIZE),
        (("plain",), 49_999 * 8 // LEAF_SIZE),
    ]


@given(saved=states(), seed=st.integers(0, 2**32 - 1))
def test_copies_that_share_nothing_any_more(tmp_path: Path, saved: Any, seed: int) -> None:
    """What ties, strides and offsets were makes no difference: each tensor is proven, or said to be unproven."""
    fastckpt.save(saved, tmp_path / "s", durable=False)
    with fastckpt.open(tmp_path / "s") as ck:
        here = {name: unshared(ck[name]) for name in ck}
    assert {finding.kind for finding in fastckpt.verify_tensors(here, tmp_path / "s").findings} <= {Kind.UNPROVEN}
    full = [name for name, tensor in here.items() if tensor.numel()]
    if full:
        name = full[seed % len(full)]
        raw = torch.empty(0, dtype=torch.uint8).set_(here[name].untyped_storage())
        raw[seed % len(raw)] ^= 1 << seed % 8
        findings = fastckpt.verify_tensors(here, tmp_path / "s").findings
        assert any(name in finding.tensors for finding in findings)
