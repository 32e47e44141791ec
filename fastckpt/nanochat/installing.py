"""Putting fastckpt's functions in the place of nanochat's, in a process that runs nanochat.

The functions are replaced in ``nanochat.checkpoint_manager`` and wherever else a
module that is imported already holds them (``from nanochat.checkpoint_manager
import save_checkpoint``). Either all of them are replaced or none: what one
writes, the others must find.

Older revisions lack some functions or parameters. What they have is replaced
by what takes the same arguments; a fork that takes others is refused.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final, Protocol

from fastckpt.errors import UsageError
from fastckpt.nanochat.save_mark import is_first_rank

logger = logging.getLogger("fastckpt.nanochat")

MANAGER: Final = "nanochat.checkpoint_manager"
FUNCTIONS: Final = (
    "save_checkpoint",
    "load_checkpoint",
    "find_last_step",
    "find_largest_model",
    "load_optimizer_state",
)

Function = Callable[..., Any]


class Keeping(Protocol):
    """What `fastckpt.Retention` is for nanochat: a save, and what is done after it."""

    def after(self, save: Function, /) -> Function:
        """``save``, followed by deleting what is not to be kept."""


_originals: dict[Function, Function] = {}
"""nanochat's own function by the one that took its place."""


def install(*, retention: Keeping | None = None) -> list[str]:
    """Replace nanochat's checkpoint functions by those of `fastckpt.nanochat`. Calling it again changes nothing.

    Args:
        retention: Which steps to keep; rank 0 deletes the others after each save.

    Returns:
        What was replaced by this call, as ``module.name``.

    Raises:
        UsageError: nanochat cannot be imported, or is a fork whose functions take other arguments; nothing
            was replaced.

    Example:
        >>> len(fastckpt.nanochat.install())
        5
    """
    return _replace_in(_import_manager(), retention)


def uninstall() -> list[str]:
    """Put nanochat's own functions back; returns what was put back, as ``module.name``.

    Example:
        >>> installed = fastckpt.nanochat.install()
        >>> sorted(fastckpt.nanochat.uninstall()) == sorted(installed)
        True
    """
    restored = _exchange(_originals)
    _originals.clear()
    return restored


def _import_manager() -> ModuleType:
    try:
        return importlib.import_module(MANAGER)
    except ModuleNotFoundError as error:
        # Another module that is missing is for nanochat's user to see as it is.
        if error.name not in (MANAGER, MANAGER.partition(".")[0]):
            raise
        raise not_importable() from None


def not_importable() -> UsageError:
    """The error for a nanochat that is not there."""
    return UsageError(
        "nanochat cannot be imported here",
        next_step="run this in the directory of your nanochat checkout, or put that on PYTHONPATH",
    )


def _replace_in(manager: ModuleType, retention: Keeping | None) -> list[str]:
    present = {name: getattr(manager, name) for name in FUNCTIONS if hasattr(manager, name)}
    own = {name: function for name, function in present.items() if function not in _originals}
    exchange = {function: _stand_in(name, function, retention) for name, function in own.items()}
    _originals.update((new, old) for old, new in exchange.items())
    replaced = _exchange(exchange)
    if replaced and is_first_rank():
        logger.info("fastckpt saves and loads the checkpoints: replaced %s", ", ".join(replaced))
    return replaced


def _stand_in(name: str, original: Function, retention: Keeping | None) -> Function:
    """A function with the face of nanochat's that calls ours."""
    signature = inspect.signature(original)
    function = _counterpart(name, signature)
    if name == "save_checkpoint" and retention is not None:
        function = retention.after(function)

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        return function(*given.args, **given.kwargs)

    return stand_in


def _counterpart(name: str, signature: inspect.Signature) -> Function:
    """The function of ours that takes these arguments."""
    from fastckpt.nanochat import checkpoints, choosing

    newest: Function = getattr(choosing if name.startswith("find") else checkpoints, name)
    older = [checkpoints.save_checkpoint_without_ranks] if name == "save_checkpoint" else []
    wanted = _parameters(signature)
    for function in (*older, newest):
        if _parameters(inspect.signature(function))[: len(wanted)] == wanted:
            return function
    raise UsageError(
        f"{MANAGER}.{name} takes other arguments here, and was not replaced",
        expected=str(inspect.signature(newest)),
        actual=str(signature),
        next_step="call the functions of fastckpt.nanochat where this nanochat calls its own",
    )


def _parameters(signature: inspect.Signature) -> list[str]:
    # The one parameter that was renamed is always the first, and called by position.
    return [name.replace("checkpoints_dir", "checkpoint_dir") for name in signature.parameters]


def _exchange(exchange: dict[Function, Function]) -> list[str]:
    """Put each function's replacement wherever a module holds the function; returns where."""
    by_identity = {id(old): new for old, new in exchange.items()}
    changed = []
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in by_identity:
                setattr(module, name, by_identity[id(value)])
                changed.append(f"{module_name}.{name}")
    return changed


class InstallOnImport(importlib.abc.MetaPathFinder):
    """Installs as soon as ``nanochat.checkpoint_manager`` is imported; a context manager.

    A script sets environment variables before it imports torch and nanochat,
    and means them to be seen. Importing nanochat for it, earlier, would undo that.

    Args:
        then: Called with ``nanochat.checkpoint_manager`` once that was done.
        retention: See `install`.

    Attributes:
        replaced: What was replaced, as ``module.name``.
    """

    def __init__(
        self, then: Callable[[ModuleType], None] = lambda manager: None, *, retention: Keeping | None = None
    ) -> None:
        self.replaced: list[str] = []
        self._then = then
        self._retention = retention

    def __enter__(self) -> InstallOnImport:
        if MANAGER in sys.modules:
            self.replaced = install(retention=self._retention)
            self._then(sys.modules[MANAGER])
        else:
            sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that the other finders give, with a loader that installs once the module was executed."""
        if fullname != MANAGER:
            return None
        specs: Iterator[importlib.machinery.ModuleSpec | None] = (
            finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self
        )
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_install(module: ModuleType) -> None:
            execute(module)
            self.replaced = _replace_in(module, self._retention)
            self._then(module)

        spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec
