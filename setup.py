"""Builds the native core. Everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

LIMITED_API = "0x030B0000"
"""Python 3.11: the first whose limited API has the buffer protocol."""

use_limited_api = (
    platform.python_implementation() == "CPython"
    and sys.version_info >= (3, 11)
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)


class Abi3Wheel(bdist_wheel):
    """Tags the wheel for 3.11 and later when it was built against the limited API."""

    def finalize_options(self) -> None:
        if use_limited_api:
            self.py_limited_api = "cp311"
        super().finalize_options()


class RequiredExtension(build_ext):
    """Says last, where pip leaves it to be seen, what a build that failed needs."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            raise CCompilerError(
                f"{error}\nfastckpt has a native core: installing it from source needs a C++17 compiler and Python's "
                "headers. Debian, Ubuntu: apt install g++ python3-dev"
            ) from error


core = Extension(
    "fastckpt._core",
    sources=sorted(str(path) for part in ("core", "python") for path in Path("csrc", part).glob("*.cc")),
    depends=sorted(str(path) for part in ("core", "python") for path in Path("csrc", part).glob("*.h")),
    language="c++",
    define_macros=[("Py_LIMITED_API", LIMITED_API)] if use_limited_api else [],
    py_limited_api=use_limited_api,
    # No -march: the instruction sets beyond the baseline are chosen at run time, per function.
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=[core], cmdclass={"bdist_wheel": Abi3Wheel, "build_ext": RequiredExtension})
