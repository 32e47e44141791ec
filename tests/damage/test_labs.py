"""Both labs, the one of damage and the one of mixes, in the size that fits into every run.

``FASTCKPT_LAB_CASES`` chooses how many cases of each (20,000 in .ci/run), ``FASTCKPT_LAB_SEED`` the first of them. The
nightly size is ``pytest tests/damage/test_labs.py -m nightly``, or ``python tests/damage/lab.py --nightly`` (or
``mixes.py``) for the table as JSON.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lab
import mixes
import pytest
import trials
from goods import good_files
from trials import NIGHTLY, Outcome, Tally, Trials, check, scratch

SEED = int(os.environ.get("FASTCKPT_LAB_SEED", "1"))


class Lab(NamedTuple):
    """A set of trials.

    Attributes:
        trials: They.
        program: Runs one of them again.
        cases: How many are tried without being asked for more.
        parts: Tests that one run is divided into, so that they run beside each other and beside other suites.
        once_wrong: Cases that went wrong once.
    """

    trials: Trials
    program: str
    cases: int
    parts: int
    once_wrong: tuple[str, ...]


LABS = {
    "damage": Lab(
        lab.TRIALS,
        "tests/damage/lab.py",
        600,
        3,
        (
            "structure-destroyed:1000009378",  # one bit of a header's name, and all else that tells its place
            "structure-destroyed:700001779",  # a header of .safetensors that is JSON, and no table
            "bytes-removed:1000045714",  # two storages reach over one another: one has its header, one its descriptor
            "twice:1000084440",  # behind a record that its CRC-32 proves, header gone, and the file ends there
            "bytes-removed:1000216524",  # a descriptor ties the end of a storage, another one stands at its beginning
            "twice:50088340",  # moved and changed, without a CRC-32: nothing can tell
            "twice:11076",  # the end, with torch's last record, is of another save: which tensors are, nothing tells
            "names-damaged:19268",  # the name of a class in front of every tensor: all of them are in unknown objects
            "headers-destroyed:2812",  # a header has its name, and a length beyond the end of the file
        ),
    ),
    "mixes": Lab(
        mixes.TRIALS,
        "tests/damage/mixes.py",
        240,
        4,
        (
            "things-elsewhere:4641",  # bytes with their descriptor behind another tensor's header, and no directory
            "behind-another-file:133",  # a .safetensors in front, which no checksum proves
        ),
    ),
}
PARTS = [(name, part) for name, lab_ in LABS.items() for part in range(lab_.parts)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_cases(name: str, part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of damage, on every good file; every kind of mix, of every format."""
    chosen = LABS[name]
    count = int(os.environ.get("FASTCKPT_LAB_CASES", chosen.cases)) // chosen.parts
    workers = 1 if "PYTEST_XDIST_WORKER" in os.environ else None
    tally = chosen.trials.run(count, SEED + part * count, workers=workers)
    with capsys.disabled():
        print()
        check(tally, count, chosen.program)
    # The labs themselves: most of what comes back is compared, and hardly a file is refused.
    if count >= 200:
        assert tally.written > 2 * count
        assert tally.refused < count / 20
    if name == "damage" and count >= 500:
        assert set(tally.goods) == set(_good_files())
        assert tally.required > count


def _good_files() -> list[str]:
    with scratch():
        return list(good_files())


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, chosen in LABS.items() for case in chosen.once_wrong]
)
def test_cases_that_once_went_wrong(name: str, case: str, tmp_path: Path) -> None:
    kind, _, seed = case.partition(":")
    tally = Tally()
    with scratch():
        LABS[name].trials.try_case(kind, int(seed), tmp_path, tally)
    check(tally, 1, LABS[name].program)


@pytest.mark.nightly
@pytest.mark.parametrize("name", LABS)
def test_nightly(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A million cases, with seeds of their own."""
    tally = LABS[name].trials.run(NIGHTLY, SEED + 10**9, say=True)
    with capsys.disabled():
        check(tally, NIGHTLY, LABS[name].program)


def dies(seed: int) -> None:
    if seed == 6:
        os._exit(3)


def hears_no_alarm(seed: int) -> None:
    if seed == 6:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)


@pytest.mark.parametrize(("ends", "code"), [(dies, 3), (hears_no_alarm, -9)])
def test_a_worker_that_does_not_come_back_is_a_failure(
    ends: Callable[[int], None], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it takes all that it counted with it: the case at which it was is named, and nobody waits for it."""
    monkeypatch.setattr(trials, "STUCK_SECONDS", 0.5)

    def run_case(kind: str, seed: int, directory: Path) -> Outcome:
        ends(seed)
        return Outcome(kind, "none")

    def show(*_: object) -> None:
        raise AssertionError

    tally = Trials(["one"], run_case, lambda *_: "none", show).run(10, 0, workers=2)
    assert (tally.cases["one"], tally.count("died")) == (5, 1)
    assert tally.failures[0]["case"] == "one:6"
    with pytest.raises(AssertionError, match=f"exit code {code}"):
        check(tally, 10, "none")
