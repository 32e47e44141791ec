"""Processes in which Triton is what a test needs it to be.

Triton decides when it is imported whether kernels are interpreted or compiled,
for the whole process. So neither kind runs in the process of the tests: each
has a child of its own, with the environment it needs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import pytest
from kernel_jobs import Call, set_environment


def _child(changes: dict[str, str | None]) -> Iterator[Call]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=set_environment, initargs=(changes,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=120)


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Call]:
    """Calls a function of ``kernel_jobs`` where kernels are interpreted, on CPU tensors."""
    yield from _child({"TRITON_INTERPRET": "1"})


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Calls a function of ``kernel_jobs`` where kernels are compiled, each anew."""
    cache = str(tmp_path_factory.mktemp("triton_cache"))
    yield from _child({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": cache})
