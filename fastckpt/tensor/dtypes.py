"""torch's dtypes by name. A dtype that this torch lacks is simply absent."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

import torch

from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry

_BY_NAME: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, name) for name in BY_NAME if isinstance(getattr(torch, name, None), torch.dtype)
}
NAMES: Final = MappingProxyType({dtype: name for name, dtype in _BY_NAME.items()})


def require_dtypes(entries: Sequence[Entry], path: str) -> None:
    """Refuse, before a byte is read, what this torch has no dtype for.

    Raises:
        UnsupportedStateError: Names the first tensor of such a dtype.
    """
    for dtype, tensor in {entry.dtype: entry.name for entry in reversed(entries)}.items():
        torch_dtype(dtype, tensor=tensor, path=path)


def torch_dtype(name: str, *, tensor: str | None = None, path: str | None = None) -> torch.dtype:
    """The torch dtype of this name.

    Args:
        name: As torch spells it.
        tensor: Flat name of the tensor that has it, for the error.
        path: The file that holds it, for the error.

    Raises:
        UnsupportedStateError: The installed torch does not have it.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnsupportedStateError(
            f"torch {torch.__version__} has no dtype {name}",
            path=path,
            tensor=tensor,
            next_step="upgrade torch, or name the tensors to load with keys=",
        ) from None
