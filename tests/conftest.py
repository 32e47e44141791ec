"""What holds for all suites: how they run beside each other, what chance they use, what programs find."""

from __future__ import annotations

import fcntl
import gc
import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.internal.constants_ast import Constants, constants_from_module

# Programs that tests start find what the tests find.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

# What is compiled is kept, wherever the suite runs: it starts hundreds of interpreters, and each would compile the
# whole package again, as each worker would all the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts its background jobs with SIGINT ignored, and children inherit that: no Ctrl-C would reach
# the programs that the tests interrupt, and the tests would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A change must fail for what it does: the same examples every time, and more of them where the long forms run too. New
# ones are drawn at night.
_HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("default", max_examples=20, derandomize=True, deadline=None, suppress_health_check=_HEALTH)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=100)
settings.register_profile("nightly", print_blob=True, deadline=None, suppress_health_check=_HEALTH)
settings.load_profile("default")


@cache
def _constants_of_the_package() -> Constants:
    """What property tests draw constants from, besides values of their own: all modules, imported or not."""
    found = Constants()
    for path in (Path(__file__).parents[1] / "fastckpt").rglob("*.py"):
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        found |= constants_from_module(module)
    # Sets of strings have another order in each process.
    in_order = {kind: sorted(getattr(found, kind)) for kind in ("integers", "floats", "bytes", "strings")}
    return Constants(**in_order)  # type: ignore[arg-type]


# Hypothesis takes those of the modules that were imported so far: what it draws would depend on the tests that ran
# before in the same process.
HypothesisProvider._local_constants = property(lambda self: _constants_of_the_package())  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of the property tests here where it is random, so that it can be said."""
    if config.option.hypothesis_profile == "nightly" and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """How to run the same examples again."""
    seed = config.option.hypothesis_seed
    if seed is None:
        return []
    return [f"property tests are random; again: --hypothesis-profile=nightly --hypothesis-seed={seed}"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """The whole suite runs in up to four processes; what is named on the command line runs in this one."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else min(len(os.sched_getaffinity(0)), 4)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Of cases that are sampled the default run takes some, chosen by their names: whatever is added moves no other."""
    sampled = item.get_closest_marker("sampled")
    if sampled is not None and zlib.crc32(item.nodeid.encode()) % sampled.args[0]:
        item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes come first, and those that need the machine for themselves last: few wait for others."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {"long": 0, "serial": 2}
        items.sort(key=lambda item: next((at for name, at in order.items() if item.get_closest_marker(name)), 1))


def pytest_collection_finish() -> None:
    """All these tests stay to the end: no collection of garbage, here or where this is forked, looks through them."""
    gc.collect()
    gc.freeze()


_RUN = pytest.StashKey[int]()
_IMPORTED = 300
"""After so many tests most of what they import is there."""


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What the tests import stays as well."""
    tests = item.session.stash[_RUN] = item.session.stash.get(_RUN, 0) + 1
    if tests == _IMPORTED:
        pytest_collection_finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Nothing else runs while a test marked serial does."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    shared = item.session.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    how = fcntl.LOCK_EX if item.get_closest_marker("serial") else fcntl.LOCK_SH
    with ExitStack() as stack:
        # Who waits for the room waits at the door, and none goes in past it.
        with _locked(shared / "door", fcntl.LOCK_EX):
            stack.enter_context(_locked(shared / "room", how))
        return (yield)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, how)
        yield
    finally:
        # Said, because a child that was forked meanwhile would otherwise hold it too.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)
