"""What the tests can ask of the Triton that is installed."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

import pytest

_VERSION = metadata.version("triton") if find_spec("triton") else ""
can_decode_planes = pytest.mark.skipif(_VERSION.startswith("3.2."), reason="Triton 3.2 has no tl.gather")
