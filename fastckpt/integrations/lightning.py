"""Lightning saves ``.fckpt`` files, by its own names for them: ``Trainer(plugins=[FastckptCheckpointIO()])``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import TorchCheckpointIO

from fastckpt.errors import UsageError
from fastckpt.loading.load import load
from fastckpt.saving.save import save
from fastckpt.saving.save_async import Pending, save_async


class FastckptCheckpointIO(TorchCheckpointIO):
    """Saves whole or not at all, loads verified. ``codec``, ``durable``, ``threads`` are those of `fastckpt.save`."""

    def __init__(self, *, codec: str = "none", durable: bool = True, threads: int | None = None) -> None:
        super().__init__()
        self._options: dict[str, Any] = {"codec": codec, "durable": durable, "threads": threads}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a path, or to a URL that Lightning takes. Raises what `fastckpt.save` does."""
        if storage_options is not None:
            raise UsageError("storage_options is not known here", next_step="save without it")
        files, place = url_to_fs(str(path))
        if isinstance(files, LocalFileSystem):
            self._save(checkpoint, place)
        else:
            with files.transaction, files.open(place, "wb") as file:
                save(checkpoint, file, **self._options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load what this or Lightning has saved, executing nothing: to host memory, or the device ``map_location``."""
        self.teardown()  # Of a save that goes on.
        files, place = url_to_fs(str(path))
        device = map_location if isinstance(map_location, str | torch.device) else "cpu"
        with nullcontext(place) if isinstance(files, LocalFileSystem) else files.open(place, "rb") as file:
            return load(file, device=device, threads=self._options["threads"])  # type: ignore[no-any-return]

    def _save(self, checkpoint: dict[str, Any], path: str) -> None:
        save(checkpoint, path, **self._options)


class AsyncFastckptCheckpointIO(FastckptCheckpointIO):
    """The same in the background: an older checkpoint goes only when the newer one is safe on the disk."""

    _pending: Pending | None = None
    _doomed: tuple[Any, ...] = ()

    def _save(self, checkpoint: dict[str, Any], path: str) -> None:
        self.teardown()
        self._pending = save_async(checkpoint, path, **self._options)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove it as soon as no save goes on."""
        self._doomed += (path,)
        if self._pending is None or self._pending.done():
            self.teardown()

    def teardown(self) -> None:
        """Wait for the save that goes on and raise what went wrong with it; else remove what is to be removed."""
        pending, self._pending = self._pending, None
        doomed, self._doomed = self._doomed, ()
        if pending is not None:
            pending.result()
        for path in doomed:
            super().remove_checkpoint(path)
