"""`fastckpt.EmergencySave`: a signal saves at the end of the step, and only then ends the run.

Schedulers take a machine back with SIGTERM and some seconds of notice, people
press Ctrl-C; either may come in the middle of a step, where a save would mix old
weights with new ones. So the signal is only noted, and acted on where the loop
says that a step is over:

    with fastckpt.EmergencySave(save) as guard:
        for batch in loader:
            train_on(batch)
            guard.step()

- **SIGINT, SIGTERM** and others that end a program: at the next boundary
  ``save()`` is called once, then the program ends with 128 + the signal's number
  (130, 143) by SystemExit, so that ``finally`` blocks run.
- **SIGUSR1, SIGUSR2**: save at the next boundary and go on.
- **The same signal again**, a second or more after the first: ends at once, without
  saving, and a save that is under way is given up; `fastckpt.save` leaves the old
  file then. Within that second both count as one: torchrun passes on the Ctrl-C that
  the terminal has sent to the ranks already.

Ranks agree at every boundary (`Agreement`), so all of them have to be
in the block: if one of them got the signal, all save the same step, and none
ends before all have saved, because torchrun ends the others with the first one
that goes. To a rank that leaves by an exception the others' next agreement fails.

A process forked in the block, such as a data-loader worker, takes no part. The
step needs it, so it survives the terminal's Ctrl-C and a SIGUSR1 to all processes
of a job; SIGTERM ends it, and a step that waits for it fails. So the SIGTERM of
a scheduler should go to the training process alone, or be announced by SIGUSR1.
A process that was started before, or not by fork, knows nothing of this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

from fastckpt.errors import UsageError, require_positive

ONE_SIGNAL_SECONDS: Final = 1.0
"""Signals this soon after the first that asks to stop count as one."""

_GO_ON: Final = frozenset((signal.SIGUSR1, signal.SIGUSR2))
_STOP: Final = 1000
"""Added to the number of a signal that ends the run: it outweighs those that do not."""


class EmergencySave:
    """Saves at the end of a step when a signal asks for it; a context manager for the main thread.

    Leaving the block without an exception is a boundary, too. The handlers that
    were there before come back then; blocks can be nested, and the inner one
    gets the signals.

    Attributes:
        agreement: How the ranks decide together.

    Args:
        save: Called without arguments, to save the state as it is between two
            steps; the save is done when it returns (of `fastckpt.save_async`, wait for
            the result). Its exceptions reach the caller of `step`.
        signals: Which signals to take.
        every: Agree with the other ranks only at every n-th boundary. Alone, a process looks at each.

    Raises (on entering the block):
        UsageError: This is not the main thread, or the block has been entered already.

    Example:
        >>> with fastckpt.EmergencySave(lambda: fastckpt.save({"w": torch.ones(4)}, "last.fckpt")) as emergency:
        ...     asked = [emergency.step() for _ in range(3)]  # after each step of training
    """

    def __init__(
        self,
        save: Callable[[], object],
        *,
        signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1),
        every: int = 1,
    ) -> None:
        require_positive("every", every)
        self._save = save
        self._signals = tuple(dict.fromkeys(signals))
        self._every = every
        self.agreement = Agreement()
        self._before: dict[signal.Signals, Any] = {}
        self._pid = 0
        self._boundaries = 0
        self._pending: set[int] = set()
        self._stop_since: float | None = None

    def __enter__(self) -> EmergencySave:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "signals reach the main thread only", next_step="enter the EmergencySave block in the main thread"
            )
        if self._before:
            raise UsageError("this EmergencySave is in use already", next_step="make another one for an inner block")
        self._pid = os.getpid()
        self._pending, self._stop_since, self._boundaries = set(), None, 0
        try:
            for each in self._signals:
                self._before[each] = signal.signal(signal.Signals(each), self._receive)
        except (OSError, ValueError) as error:
            self.release()
            raise UsageError(f"the signal {each!r} cannot be taken: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # What comes during a save that goes on has no later boundary.
            while kind is None and self._at_boundary():
                pass
        finally:
            self.release()
        if kind is None and self._pending:  # It came behind the last boundary: as if behind the block.
            signal.raise_signal(max(self._pending) % _STOP)

    @property
    def wanted(self) -> bool:
        """Whether a signal has asked this rank for a save that has not begun."""
        return bool(self._pending)

    def step(self) -> bool:
        """Say that a step is over: weights, optimizer and counters belong together now.

        Returns:
            Whether a save was made, and the run goes on.

        Raises:
            SystemExit: A save was made, and the signal ends the run.
        """
        self._boundaries += 1
        if self._boundaries % self._every and not self.agreement.alone:
            return False
        return self._at_boundary()

    def _at_boundary(self) -> bool:
        number = self.decide()
        if number is None:
            return False
        start = time.monotonic()
        try:
            self._save()
        except Exception:
            if ends_run(number):
                self._all_saved(saved=False)
            raise
        say(f"saved in {time.monotonic() - start:.1f} s")
        if ends_run(number):
            if not self._all_saved(saved=True):
                say("another rank could not save: this step is not complete")
            raise SystemExit(128 + number)
        return True

    def decide(self) -> signal.Signals | None:
        """The signal that all ranks now act on; None if none of them got any.

        Every rank calls this at the same boundary, and then acts as told: who
        calls it instead of `step` sees to the save, and to the end.
        """
        brought = set(self._pending)
        agreed = self.agreement.highest(max(brought, default=0))
        self._pending -= brought  # Not what has come meanwhile.
        return signal.Signals(agreed % _STOP) if agreed else None

    def _all_saved(self, *, saved: bool) -> bool:
        """Wait until every rank has saved or failed; whether all have saved."""
        try:
            return not self.agreement.highest(int(not saved))
        except RuntimeError:
            return False  # A rank has gone before it could say how its save went.

    def release(self) -> None:
        """Give the signals back to the handlers they had before, without a boundary. Leaving the block does it, too."""
        while self._before:
            number, handler = self._before.popitem()
            # None stands for a handler that was not set from Python, and cannot be set from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._receive_in_child(number)
            return
        name = signal.Signals(number).name
        if number in _GO_ON:
            self._pending.add(number)
            say(f"{name}: saving at the end of this step, then going on")
            return
        now = time.monotonic()
        if self._stop_since is not None and now - self._stop_since >= ONE_SIGNAL_SECONDS:
            say(f"{name} again: ending at once, without saving; what was saved before stays")
            raise SystemExit(128 + number)
        if self._stop_since is None:
            self._stop_since = now
            say(f"{name}: saving at the end of this step, then ending; once more ends at once")
        self._pending.add(_STOP + number)

    def _receive_in_child(self, number: int) -> None:
        """In a forked process: what is asked of the run is not for it, but whoever wants to end it can."""
        if number == signal.SIGINT or number in _GO_ON:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ends_run(number: signal.Signals) -> bool:
    """Whether a signal asks the run to end after the save."""
    return number not in _GO_ON


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    # Not print: a handler can come in the middle of another one's. If nobody reads, the run goes on all the same.
    with contextlib.suppress(OSError):
        os.write(2, f"fastckpt: {text}\n".encode())


class Agreement:
    """The highest of the numbers that the ranks bring. Without torch.distributed, one's own.

    Every rank asks the same number of times, in the same order. The group is
    made when the first one asks, which all of them do at the same point.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._world: Any = None

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return _world() is None

    def highest(self, value: int) -> int:
        """The highest value of all ranks.

        Raises:
            RuntimeError: Of torch: a rank has gone.
        """
        world = _world()
        if world is None:
            return value
        import torch
        import torch.distributed as dist

        if self._world is not world:
            self._group, self._world = dist.new_group(backend="gloo"), world
        number = torch.tensor([value], dtype=torch.int64, device="cpu")
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number.item())


def _world() -> object:
    """The default process group; None if there is none, or this is its only rank."""
    # A program that has not imported it has not set it up.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    world: object = dist.group.WORLD
    return world
