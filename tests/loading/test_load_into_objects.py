"""load_into with modules and optimizers in a state: a run goes on as if it had never stopped, or nothing is written."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from states import assert_same, copied, element_bytes, tensors_of

import fastckpt
from fastckpt.errors import MismatchError, TensorNotFoundError, UsageError

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


class Run:
    """A small training run."""

    def __init__(self, make: Any = OPTIMIZERS["AdamW"], width: int = 24) -> None:
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
        )
        self.optimizer = make(self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.step = 0

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            inputs = torch.rand(8, 4, generator=torch.Generator().manual_seed(self.step))

            def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
                loss.backward()
                return loss

            losses.append(self.optimizer.step(closure).item())
            self.scheduler.step()
            self.step += 1
        return losses

    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "step": self.step}

    def plain(self) -> Any:
        return copied([self.model.state_dict(), self.optimizer.state_dict()])


@pytest.fixture(params=OPTIMIZERS)
def make(request: pytest.FixtureRequest) -> Any:
    return OPTIMIZERS[request.param]


@pytest.mark.parametrize(
    ("suffix", "begun"),
    [
        ("fckpt", True),
        ("pt", False),
        pytest.param("fckpt", False, marks=pytest.mark.thorough),
        pytest.param("pt", True, marks=pytest.mark.thorough),
    ],
)
def test_a_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path, make: Any, suffix: str, begun: bool) -> None:
    run = Run(make)
    run.train(3)
    path = tmp_path / f"s.{suffix}"
    if suffix == "pt":
        objects = {"model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler}
        torch.save({name: each.state_dict() for name, each in objects.items()} | {"step": run.step}, path)
    else:
        fastckpt.save(run.state(), path, durable=False)
    expected = run.train(3)
    other = Run(make)
    if begun:
        other.train(1)
    state = other.state()
    assert fastckpt.load_into(state, path) == ([], [])
    other.step = state["step"]
    assert other.step == 3
    assert other.train(3) == expected
    assert_same(other.plain(), run.plain())


def test_it_is_what_load_and_load_state_dict_give(tmp_path: Path, make: Any) -> None:
    run = Run(make)
    run.train(2)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    loaded = fastckpt.load(tmp_path / "s.fckpt")
    by_hand, other = Run(make), Run(make)
    by_hand.model.load_state_dict(loaded["model"])
    by_hand.optimizer.load_state_dict(loaded["optimizer"])
    fastckpt.load_into(other.state(), tmp_path / "s.fckpt")
    assert_same(other.plain(), by_hand.plain())


def test_what_there_is_of_an_optimizer_is_filled_in_place(tmp_path: Path) -> None:
    run, other = Run(), Run()
    run.train(2)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    other.train(1)
    tensors = [t for t in tensors_of(other.optimizer.state_dict()) if t.ndim]
    fastckpt.load_into(other.state(), tmp_path / "s.fckpt")
    assert [t.data_ptr() for t in tensors_of(other.optimizer.state_dict()) if t.ndim] == [t.data_ptr() for t in tensors]
    assert other.optimizer.param_groups[0]["lr"] == run.optimizer.param_groups[0]["lr"]


def test_objects_anywhere(tmp_path: Path) -> None:
    runs, others = [Run(), Run(OPTIMIZERS["SGD"])], [Run(), Run(OPTIMIZERS["SGD"])]
    for run in runs:
        run.train(2)

    def nest(a: Run, b: Run) -> Any:
        return {"all": [(a.model, a.optimizer), {"b": {3: b.model, "o": b.optimizer}}], "tensor": torch.zeros(2)}

    fastckpt.save(nest(*runs), tmp_path / "s.fckpt", durable=False)
    fastckpt.load_into(nest(*others), tmp_path / "s.fckpt")
    for run, other in zip(runs, others, strict=True):
        assert_same(other.plain(), run.plain())
    for run, other, prefix in zip(runs, [Run(), Run(OPTIMIZERS["SGD"])], ["all.0.1", "all.1.b.o"], strict=True):
        other.train(1)
        fastckpt.load_into(other.optimizer, tmp_path / "s.fckpt", prefix=prefix)
        assert_same(other.plain()[1], run.plain()[1])


def contents(run: Run) -> list[bytes]:
    return [element_bytes(tensor) for tensor in tensors_of([run.model.state_dict(), run.optimizer.state_dict()])]


@pytest.mark.parametrize("begun", [False, True])
def test_wrong_shapes_refuse_before_a_byte_is_written(tmp_path: Path, begun: bool) -> None:
    run, other = Run(), Run(width=25)
    run.train(2)
    other.train(begun)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    before = contents(other)
    for strict in (True, False):
        with pytest.raises(
            MismatchError, match=r"0\.weight: float32\[24, 4\] in the checkpoint, float32\[25, 4\] here"
        ):
            fastckpt.load_into(other.state(), tmp_path / "s.fckpt", strict=strict)
        with pytest.raises(MismatchError, match=r"state\.0\.exp_avg: .*\[24, 4\] in the checkpoint, .*\[25, 4\] here"):
            fastckpt.load_into({"optimizer": other.optimizer}, tmp_path / "s.fckpt", strict=strict)
    assert contents(other) == before
    assert other.optimizer.param_groups[0]["lr"] == 0.01 if not begun else True


def test_another_number_of_parameters(tmp_path: Path) -> None:
    run = Run()
    run.train(1)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    few = torch.optim.AdamW(
        [{"params": list(run.model.parameters())[:2]}, {"params": list(run.model.parameters())[2:]}]
    )
    with pytest.raises(MismatchError, match="groups of 6 parameters in the checkpoint, of 2 and 4 here"):
        fastckpt.load_into({"optimizer": few}, tmp_path / "s.fckpt", strict=False)
    with pytest.raises(MismatchError, match="not the state of an optimizer"):
        fastckpt.load_into({"scheduler": few}, tmp_path / "s.fckpt", strict=False)


def test_prefix(tmp_path: Path) -> None:
    run, other = Run(), Run()
    run.train(2)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    with pytest.raises(MismatchError) as caught:
        fastckpt.load_into(other.model, tmp_path / "s.fckpt")
    assert caught.value.next_step == "load_into(..., prefix='model')"
    for prefix in ("model", "model."):
        fastckpt.load_into(other.model, tmp_path / "s.fckpt", prefix=prefix)
    assert_same(other.model.state_dict(), run.model.state_dict())
    layer = torch.nn.Linear(24, 1)
    fastckpt.load_into(layer, tmp_path / "s.fckpt", prefix="model.2")
    assert_same(layer.state_dict(), run.model[2].state_dict())
    bias = torch.zeros(1)
    fastckpt.load_into(bias, tmp_path / "s.fckpt", prefix="model.2.bias")
    assert torch.equal(bias, run.model[2].bias)
    with pytest.raises(TensorNotFoundError, match=r"'modle'.*expected one of model, optimizer"):
        fastckpt.load_into(other.model, tmp_path / "s.fckpt", prefix="modle")


def test_prefix_of_flat_names(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    flat = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"other": torch.ones(2)}
    safetensors.torch.save_file(flat, tmp_path / "s.safetensors")
    fastckpt.load_into(other, tmp_path / "s.safetensors", prefix="model")
    assert_same(other.state_dict(), model.state_dict())


def test_not_strict_returns_names(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(2), "b": torch.ones(3), "c": [torch.ones(1)]}, tmp_path / "s.fckpt", durable=False)
    destination = {"a": torch.zeros(2), "d": torch.zeros(2), "optimizer": Run().optimizer}
    missing, unexpected = fastckpt.load_into(destination, tmp_path / "s.fckpt", strict=False)
    assert (missing, unexpected) == (["optimizer", "d"], ["b", "c.0"])
    assert destination["a"].tolist() == [1, 1]
    assert destination["d"].tolist() == [0, 0]
    with pytest.raises(MismatchError, match=r"optimizer: not in the checkpoint"):
        fastckpt.load_into(destination, tmp_path / "s.fckpt")
    with pytest.raises(MismatchError) as caught:
        fastckpt.load_into({"a": torch.zeros(2)}, tmp_path / "s.fckpt")
    assert "strict=False" in str(caught.value.next_step)


def test_keys(tmp_path: Path) -> None:
    run = Run()
    run.train(2)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    other, untouched = Run(), Run()
    untouched.model.load_state_dict(other.model.state_dict())
    state = other.state()
    fastckpt.load_into(state, tmp_path / "s.fckpt", keys="model.0.*")
    assert_same(other.model[0].state_dict(), run.model[0].state_dict())
    assert_same(other.model[2].state_dict(), untouched.model[2].state_dict())
    assert not other.optimizer.state_dict()["state"]
    assert state["step"] == 0
    fastckpt.load_into(state, tmp_path / "s.fckpt", keys=["optimizer.*", "model.2.bias"])
    assert_same(other.optimizer.state_dict(), run.optimizer.state_dict())
    assert torch.equal(other.model[2].bias, run.model[2].bias)
    assert other.scheduler.last_epoch == 0
    with pytest.raises(TensorNotFoundError, match=r"model\.9"):
        fastckpt.load_into(state, tmp_path / "s.fckpt", keys=["model.9.*"])
    with pytest.raises(MismatchError, match=r"new\.weight: not in the checkpoint"):
        fastckpt.load_into({**state, "new": {"weight": torch.ones(1)}}, tmp_path / "s.fckpt", keys="*.weight")


def test_a_compiled_model_beside_its_optimizer(tmp_path: Path) -> None:
    run = Run()
    run.train(2)
    compiled = {"model": torch.compile(run.model), "optimizer": run.optimizer}
    for saved, wrap in ((compiled, lambda model: model), (run.state(), torch.compile)):
        fastckpt.save(saved, tmp_path / "s.fckpt", durable=False)
        other = Run()
        destination = {"model": wrap(other.model), "optimizer": other.optimizer}
        fastckpt.load_into(destination, tmp_path / "s.fckpt", strip_prefix="_orig_mod.", strict=False)
        assert_same(other.plain(), run.plain())


class Counting(torch.nn.Module):
    """Keeps what is no tensor, makes a tensor anew for its state dict, and wants to know of every load."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), float(seen)))
        self.seen = seen
        self.loads = 0
        self.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.__setitem__(f"{prefix}half", self.half())
        )
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "loads", module.loads + 1))

    def half(self) -> torch.Tensor:
        return self.weight.detach() / 2

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.nn.Sequential(m), lambda m: torch.compile(m)])
def test_a_module_that_loads_in_its_own_way_does(tmp_path: Path, wrap: Any) -> None:
    module, other = Counting(5), Counting(1)
    fastckpt.save({"m": wrap(module)}, tmp_path / "s.fckpt", durable=False)
    fastckpt.load_into({"m": wrap(other)}, tmp_path / "s.fckpt")
    assert (other.seen, other.loads) == (5, 1)
    assert other.weight.tolist() == [5, 5, 5]


class Scaled(torch.nn.Linear):
    """Its state dict has the weight in other units."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.detach() * 8

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict({**state, f"{prefix}weight": state[f"{prefix}weight"] / 8}, prefix, *rest)


def test_what_a_state_dict_makes_anew_reaches_the_module(tmp_path: Path) -> None:
    module, other = Scaled(3, 2), Scaled(3, 2)
    fastckpt.save(module, tmp_path / "s.fckpt", durable=False)
    fastckpt.load_into(other, tmp_path / "s.fckpt")
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other.bias, module.bias)


class Picky:
    """Takes no state at all."""

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": torch.ones(2), "n": 3}

    def load_state_dict(self, state: Any) -> None:
        raise ValueError("not today")


def test_an_object_that_does_not_take_its_state(tmp_path: Path) -> None:
    fastckpt.save({"x": Picky()}, tmp_path / "s.fckpt", durable=False)
    with pytest.raises(MismatchError, match=r"x: Picky\.load_state_dict: ValueError: not today; .*must not be used"):
        fastckpt.load_into({"x": Picky()}, tmp_path / "s.fckpt")


def test_plain_values_are_replaced_where_they_are(tmp_path: Path) -> None:
    saved = {
        "step": 5,
        "config": {"lr": 0.1, "names": ["a", "b"]},
        "pair": (1, 2),
        "list": [1, torch.ones(1), "x"],
        "history": [0.5, 0.25],
        "best": None,
        "new": 1,
        "function": 7,
        "w": torch.ones(2),
        "rng": fastckpt.rng_state(),
    }
    fastckpt.save(saved, tmp_path / "s.fckpt", durable=False)
    torch.rand(3)
    state: dict[str, Any] = {
        "step": 0,
        "config": OrderedDict(lr=0.0, more=3),
        "pair": (0, 0),
        "list": [0, torch.zeros(1), ""],
        "history": [],
        "best": 3.0,
        "own": 9,
        "function": print,
        "w": torch.zeros(2),
        "rng": fastckpt.rng_state(),
    }
    torch.rand(3)
    fastckpt.load_into(state, tmp_path / "s.fckpt")
    assert (state["step"], state["pair"], state["best"], state["history"]) == (5, (1, 2), None, [0.5, 0.25])
    assert state["config"] == {"lr": 0.1, "names": ["a", "b"]}
    assert state["list"] == [1, torch.ones(1), "x"]
    assert (state["own"], state["function"], "new" in state) == (9, print, False)
    assert_same(state["rng"]["python"], saved["rng"]["python"])
    assert torch.equal(state["rng"]["torch"], saved["rng"]["torch"])


def test_generators_and_arrays_that_cannot_be_filled_are_refused_outside_of_objects(tmp_path: Path) -> None:
    fastckpt.save({"g": torch.Generator()}, tmp_path / "s.fckpt", durable=False)
    with pytest.raises(UsageError, match="cannot be filled in place: g"):
        fastckpt.load_into({"g": torch.Generator()}, tmp_path / "s.fckpt")


def test_a_damaged_file_says_that_nothing_may_be_used(tmp_path: Path) -> None:
    run, other = Run(width=20_000), Run(width=20_000)
    run.train(1)
    fastckpt.save(run.state(), tmp_path / "s.fckpt", durable=False)
    raw = bytearray((tmp_path / "s.fckpt").read_bytes())
    at = raw.index(element_bytes(run.optimizer.state_dict()["state"][0]["exp_avg"])[:64])
    raw[at] ^= 1
    (tmp_path / "s.fckpt").write_bytes(raw)
    with pytest.raises(fastckpt.errors.DamagedError, match=r"optimizer\.state\.0\.exp_avg.*must not be used"):
        fastckpt.load_into(other.state(), tmp_path / "s.fckpt")
    assert not other.optimizer.state_dict()["state"]


class Copied:
    """What is saved of it is a copy, so that filling that fills nothing of the object."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


def test_objects_of_registered_classes_are_not_filled_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    fastckpt.register(Copied, lambda it: {"weight": it.weight.clone(), "rate": 1.0}, lambda kept: Copied(**kept))
    fastckpt.save({"x": [Copied(torch.ones(3))], "w": torch.ones(2)}, tmp_path / "s.fckpt")
    here = {"x": [Copied(torch.zeros(3))], "w": torch.zeros(2)}
    with pytest.raises(UsageError, match=r"in place: x\.0\.weight .*registered classes"):
        fastckpt.load_into(here, tmp_path / "s.fckpt")
    assert not here["w"].any()
