"""Seven ways to keep a state on the disk, each used as its documentation has it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import fastckpt

State = dict[str, Any]


class Format(NamedTuple):
    """A way to keep a state.

    Attributes:
        package: What it comes from, whose version counts.
        suffix: Of the file; "" where it is a directory.
        save: Writes a state to a path, and returns when that is done.
        load: Reads it again.
        check: Loads, or looks, with all the checking that can be asked for; raises for damage. None if nothing can be
            asked for.
        load_mapped: Loads with tensors in a map of the file, where that can be asked for.
        load_one: Reads one tensor by its name.
        save_async: Begins to save, and returns what waits for the end.
        load_like: Loads a nested state into one of the same structure, if that is how it is done.
        fills: Whether it loads into tensors that are there, so that they say how bytes lie.
    """

    package: str
    suffix: str
    save: Callable[[State, Path], Any]
    load: Callable[[Path], State]
    load_one: Callable[[Path, str], torch.Tensor]
    check: Callable[[Path], Any] | None = None
    load_mapped: Callable[[Path], State] | None = None
    save_async: Callable[[State, Path], Callable[[], Any]] | None = None
    load_like: Callable[[Path, State], State] | None = None
    fills: bool = False


def files_of(path: Path) -> Iterator[Path]:
    """The file, or those of a directory."""
    yield from [path] if path.is_file() else (file for file in sorted(path.rglob("*")) if file.is_file())


# --- zTensor -------------------------------------------------------------------

_ZTENSOR_LOGICAL = {
    torch.bool: "bool",
    torch.float8_e4m3fn: "f8_e4m3fn",
    torch.float8_e5m2: "f8_e5m2",
    torch.float8_e8m0fnu: "f8_e8m0",
    torch.float4_e2m1fn_x2: "f4_e2m1",
}


def _ztensor_type(dtype: torch.dtype) -> tuple[str, str | None]:
    if dtype in _ZTENSOR_LOGICAL:
        return "u8", _ZTENSOR_LOGICAL[dtype]
    kind, bits = str(dtype).removeprefix("torch.").rstrip("0123456789"), dtype.itemsize * 8
    return {"float": "f", "bfloat": "bf", "int": "i", "uint": "u"}[kind] + str(bits), None


def save_ztensor(state: State, path: Path) -> None:
    """It takes tensors in the order of their names; with ``publish`` the file gets its name when it is whole."""
    with importlib.import_module("ztensor").Writer(str(path), publish=True) as writer:
        for name, tensor in sorted(state.items()):
            dtype, logical = _ztensor_type(tensor.dtype)
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            writer.add(name, raw, list(tensor.shape), dtype, logical=logical)


def load_ztensor(path: Path, *, verify: bool = False) -> State:
    """All tensors in its map; with ``verify`` after all digests were compared."""
    source = importlib.import_module("ztensor").open(str(path))
    if verify:
        checked, undigested = source.verify(deep=True)
        if undigested:
            raise ValueError(f"{undigested} of {checked + undigested} parts have no digest")
    return {name: torch.from_dlpack(tensor) for name, tensor in source.items()}


# --- moonclip ------------------------------------------------------------------


def _moonclip(path: Path, *, in_background: bool = False) -> Any:
    return importlib.import_module("moonclip.pytorch").CheckpointManager(str(path), async_save=in_background)


def save_moonclip(state: State, path: Path) -> None:
    """One more snapshot in its directory."""
    manager = _moonclip(path)
    manager.save(len(manager.list_snapshots()) + 1, extra=state)


def load_moonclip(path: Path) -> State:
    """The newest snapshot."""
    return {name.removeprefix("extra/"): value for name, value in _moonclip(path).load_latest()[1].items()}


def load_one_moonclip(path: Path, name: str) -> torch.Tensor:
    """The bytes of one tensor, by the name that it has in there."""
    manager = _moonclip(path)
    raw = manager.load_tensors(manager.list_snapshots()[-1]["id"], [f"extra/{name}/t0"])
    (found,) = raw.values()
    return torch.frombuffer(bytearray(found[-1] if isinstance(found, tuple) else found), dtype=torch.float32)


def save_async_moonclip(state: State, path: Path) -> Callable[[], Any]:
    """In its own thread."""
    manager = _moonclip(path, in_background=True)
    manager.save(1, extra=state)
    flush: Callable[[], Any] = manager.flush
    return flush


# --- torch.distributed.checkpoint ----------------------------------------------


@contextmanager
def _raised_as_usual() -> Iterator[None]:
    """Its error is no Exception, but a BaseException."""
    try:
        yield
    except CheckpointException as error:
        raise RuntimeError(str(error)) from error


def save_dcp(state: State, path: Path) -> None:
    """In one process."""
    with _raised_as_usual():
        dcp.save(state, checkpoint_id=str(path), no_dist=True)


def load_dcp(path: Path) -> State:
    """Into fresh tensors, of the shapes that the checkpoint tells."""
    told = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    state = {name: _empty(entry) for name, entry in told.items()}
    with _raised_as_usual():
        dcp.load(state, checkpoint_id=str(path), no_dist=True)
    return state


def load_like_dcp(path: Path, state: State) -> State:
    """Into a state of the same structure, with other values in it."""
    other: State = _emptied(state)
    with _raised_as_usual():
        dcp.load(other, checkpoint_id=str(path), no_dist=True)
    return other


def _emptied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value)
    if isinstance(value, dict):
        return {key: _emptied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_emptied, value))
    return None if value is None else type(value)()


def _empty(entry: Any) -> torch.Tensor | None:
    return torch.empty(entry.size, dtype=entry.properties.dtype) if hasattr(entry, "properties") else None


def load_one_dcp(path: Path, name: str) -> torch.Tensor:
    """Only this one is asked for."""
    told = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    state = {name: _empty(told[name])}
    dcp.load(state, checkpoint_id=str(path), no_dist=True)
    tensor = state[name]
    assert tensor is not None
    return tensor


# --- tensorizer ----------------------------------------------------------------


def save_tensorizer(state: State, path: Path) -> None:
    """A .tensors file."""
    writer = importlib.import_module("tensorizer").TensorSerializer(str(path))
    writer.write_state_dict(state)
    writer.close()


def load_tensorizer(path: Path, *, verify: bool = False) -> State:
    """All of a .tensors file, to the host."""
    reader = importlib.import_module("tensorizer").TensorDeserializer(str(path), device="cpu", verify_hash=verify)
    with reader:
        return {name: tensor.data for name, tensor in reader.items()}


def load_one_tensorizer(path: Path, name: str) -> torch.Tensor:
    """One tensor, when it is asked for."""
    with importlib.import_module("tensorizer").TensorDeserializer(str(path), device="cpu", lazy_load=True) as reader:
        tensor: torch.Tensor = reader[name].data
        return tensor


# --- files that are one library's own ---------------------------------------------


def _load_one_safetensors(path: Path, name: str) -> torch.Tensor:
    with safetensors.safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _load_one_fckpt(path: Path, name: str) -> torch.Tensor:
    with fastckpt.open(path) as file:
        tensor: torch.Tensor = file[name]
        return tensor


FORMATS = {
    "torch": Format(
        "torch",
        ".pt",
        torch.save,
        torch.load,
        lambda path, name: torch.load(path, mmap=True)[name].clone(),
        load_mapped=functools.partial(torch.load, mmap=True),
    ),
    "safetensors": Format(
        "safetensors",
        ".safetensors",
        safetensors.torch.save_file,
        safetensors.torch.load_file,
        _load_one_safetensors,
        load_mapped=safetensors.torch.load_file,
    ),
    "zTensor": Format(
        "ztensor",
        ".zt",
        save_ztensor,
        load_ztensor,
        lambda path, name: load_ztensor(path)[name].clone(),
        check=functools.partial(load_ztensor, verify=True),
        load_mapped=load_ztensor,
    ),
    "moonclip": Format(
        "moonclip", "", save_moonclip, load_moonclip, load_one_moonclip, load_moonclip, save_async=save_async_moonclip
    ),
    "DCP": Format(
        "torch",
        "",
        save_dcp,
        load_dcp,
        load_one_dcp,
        save_async=lambda state, path: dcp.async_save(state, checkpoint_id=str(path), no_dist=True).result,
        load_like=load_like_dcp,
        fills=True,
    ),
    "tensorizer": Format(
        "tensorizer",
        ".tensors",
        save_tensorizer,
        load_tensorizer,
        load_one_tensorizer,
        check=functools.partial(load_tensorizer, verify=True),
    ),
    "fastckpt": Format(
        "fastckpt",
        ".fckpt",
        fastckpt.save,
        fastckpt.load,
        _load_one_fckpt,
        check=fastckpt.load,
        load_mapped=functools.partial(fastckpt.load, mmap=True),
        save_async=lambda state, path: fastckpt.save_async(state, path).result,
    ),
}
