"""What an installation without torch must do, for any Python and machine: python tests/bare.py; needs no pytest.

``.ci/run`` runs it with each version of Python that is there, and cibuildwheel with each wheel.
"""

from __future__ import annotations

import contextlib
import io
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / "golden"


def run(*arguments: object, code: int) -> str:
    """What a command prints; it ends with ``code``, and says nothing else."""
    from fastckpt.cli.main import main as command

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = command([str(argument) for argument in arguments])
    assert (ended, err.getvalue()) == (code, ""), (arguments, ended, out.getvalue(), err.getvalue())
    return out.getvalue()


def require_all_levels(levels: Sequence[str]) -> None:
    """The core uses what the system says that this CPU has, whichever compiler made it."""
    known = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and known.exists():
        flags = known.read_text().partition("\nflags")[2].partition("\n")[0].split()
        has = {"avx2": "avx2" in flags, "avx512": "avx512f" in flags}
        assert has == {name: name in levels for name in has}, (levels, flags)


def main() -> None:
    before = time.process_time()
    import fastckpt

    seconds = time.process_time() - before
    assert seconds < 0.5, f"the import took {seconds:.3f} s of CPU time"  # 0.01, and 0.1 in an emulator
    assert sys.modules.keys().isdisjoint({"numpy", "rich", "torch", "xxhash", "zstandard"})
    from fastckpt import _core

    files = sorted([*GOLDEN.glob("v?/*.fckpt"), *GOLDEN.glob("v?/foreign_*.pt")])
    assert files
    levels = _core.simd_levels()
    require_all_levels(levels)
    for level in levels:
        _core.set_simd_level(level)
        for file in files:
            assert fastckpt.verify(file).ok, (level, file)
    with tempfile.TemporaryDirectory() as name:
        whole, cut = Path(name, "whole.pt"), Path(name, "cut.pt")
        shutil.copy(GOLDEN / "v1" / "foreign_zip.pt", whole)
        cut.write_bytes(whole.read_bytes()[:-200])  # into the directory that torch.load looks for first
        assert "intact" in run("verify", whole, code=0)
        assert "elements" in run("inspect", whole, code=0)
        assert "damaged" in run("verify", cut, code=1)
        assert "(complete)" in run("salvage", cut, "-o", Path(name, "rescued.pt"), code=1)
        assert "intact" in run("verify", Path(name, "rescued.pt"), code=0)
    have = " and ".join(name for name in ("numpy", "torch") if find_spec(name)) or "nothing"
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {'/'.join(levels)}, with {have} besides: "
        f"{len(files)} files verified; import {seconds * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
