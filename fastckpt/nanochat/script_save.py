"""`fastckpt run --emergency-save`: a signal makes an unchanged nanochat script save now, with its own code.

Only the script knows what belongs to a step: its model, optimizer, data loader
and counters. It also knows how to save them, and asks itself at each step whether
to: ``step % args.save_every == 0`` (until January 2026 ``save_every`` was a
variable of the script itself). So a wish to save is granted by setting that to 1
for a moment, after the optimizer's step in which the ranks have agreed on it
(`fastckpt.EmergencySave`). Evaluation, which nanochat does before it saves, is
switched off meanwhile.

A script can have several optimizers, as nanochat had two of them until January
2026: then a step is over, for what is said here, each time that one of them
steps which has done so before.

One process ends as soon as that save is done. Several do one more step first: some
scripts save on one rank only, and the others are in the middle of that step,
waiting for it, when the save is done.

Until the first optimizer step there is nothing to save, and signals end the
script as ever. They are taken all the same, so that the data-loader workers that
it starts meanwhile survive what is meant for the run (`fastckpt.emergency`).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from types import FrameType, ModuleType
from typing import Any, Final

from fastckpt.emergency import EmergencySave, ends_run, say

_SAVE: Final = "save_every"
_BEFORE_SAVE: Final = ("eval_every", "core_metric_every", "sample_every", "chatcore_every")
"""How often nanochat does other things that take long, at the same place, before it saves."""
_NEVER: Final = 2**62
"""More steps than there will be. Not -1: some scripts do not take that for never."""


class _Guard(EmergencySave):
    """Takes signals from the beginning, and acts on them once it is armed."""

    armed = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.armed or os.getpid() != self._pid:
            super()._receive(number, frame)
        else:
            self.release()
            signal.raise_signal(number)


class ScriptSave:
    """Grants wishes to save in a script that has a ``save_every``; a context manager around its run."""

    def __init__(self) -> None:
        self._guard: _Guard | None = None
        self._hook: Any = None
        self._stepped: list[Any] = []
        self._granting: signal.Signals | None = None
        self._saves = 0
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> ScriptSave:
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()

    def attach(self, manager: ModuleType) -> None:
        """Watch the script's saves and optimizer steps.

        Args:
            manager: ``nanochat.checkpoint_manager``, before the script takes functions from it.

        Raises:
            UsageError: This is not the main thread.
        """
        from torch.optim.optimizer import register_optimizer_step_post_hook

        save = manager.save_checkpoint

        @functools.wraps(save)
        def watched(*args: Any, **named: Any) -> Any:
            result = save(*args, **named)
            self._after_save()
            return result

        manager.save_checkpoint = watched  # type: ignore[attr-defined]
        self._guard = _Guard(lambda: None)
        self._guard.__enter__()
        self._hook = register_optimizer_step_post_hook(self._after_step)

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def _after_save(self) -> None:
        self._saves += 1
        if self._granting is not None and self._guard is not None and self._guard.agreement.alone:
            self._conclude()

    def _after_step(self, optimizer: object, *_: object) -> None:
        """A boundary, unless this is a further optimizer of the step that has had its boundary."""
        if self._stepped and not any(optimizer is other for other in self._stepped):
            self._stepped.append(optimizer)
            return
        self._stepped = [optimizer]
        assert self._guard is not None
        if not self._guard.armed:
            if not isinstance(_settings().get(_SAVE), int):
                say("this script has neither args.save_every nor save_every: signals end it without a save")
                self._detach()
                return
            self._guard.armed = True
        if self._granting is not None:
            self._conclude()
        number = self._guard.decide()
        if number is not None:
            self._grant(number)

    def _grant(self, number: signal.Signals) -> None:
        """Let the script save at the next place where it does so."""
        self._granting, self._saves = number, 0
        settings = _settings()
        wanted = {_SAVE: 1} | {name: _NEVER for name in _BEFORE_SAVE if name in settings}
        self._kept = {name: settings[name] for name in wanted}
        settings.update(wanted)

    def _conclude(self) -> None:
        """Put the script's settings back; end it if that is wished."""
        number, self._granting = self._granting, None
        assert self._guard is not None
        assert number is not None
        _settings().update(self._kept)
        saved = self._guard.agreement.highest(self._saves)
        say(f"{number.name}: the script has saved" if saved else f"{number.name}: the script did not save")
        if ends_run(number):
            raise SystemExit(128 + number)


def _settings() -> dict[str, Any]:
    """Where the script looks up its settings: in ``args``, or among its own variables."""
    variables = vars(sys.modules["__main__"])
    arguments = getattr(variables.get("args"), "__dict__", {})
    return arguments if _SAVE in arguments else variables
