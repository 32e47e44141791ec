"""torch's dtypes by name. A dtype that this torch lacks is simply absent."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import torch

from fastckpt.errors import UnsupportedStateError
from fastckpt.layout.dtypes import BY_NAME

_BY_NAME: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, name) for name in BY_NAME if isinstance(getattr(torch, name, None), torch.dtype)
}
NAMES: Final = MappingProxyType({dtype: name for name, dtype in _BY_NAME.items()})


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of this name.

    Raises:
        UnsupportedStateError: The installed torch does not have it.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnsupportedStateError(
            f"torch {torch.__version__} has no dtype {name}", next_step="upgrade torch to load this checkpoint"
        ) from None
