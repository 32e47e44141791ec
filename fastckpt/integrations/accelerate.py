"""accelerate's ``save_state`` and ``load_state`` with models and optimizers in one ``.fckpt``: `install`."""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator

from fastckpt.errors import UsageError
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.io.transfer import thread_count
from fastckpt.loading.load_into import load_into
from fastckpt.saving.save import save
from fastckpt.sets.accelerate import OWN, PARTS, recognise
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing
from fastckpt.sets.require_sound import require_whole


def install(accelerator: Accelerator, *, threads: int | None = None, **options: Any) -> tuple[Any, Any]:
    """Let an accelerator save models and optimizers as ``accelerate.fckpt``, and verify all of a step before it loads.

    What is sharded (FSDP, DeepSpeed, Megatron), and steps that were saved without this, stay accelerate's own.
    ``threads``, ``codec`` and ``durable`` are those of `fastckpt.save`. Returns accelerate's handles of the two hooks.

    Raises (from ``save_state`` and ``load_state``): What `fastckpt.save` and `fastckpt.load_into` raise;
        UsageError for a directory with a whole step; DamagedError for one that is not whole, before it is loaded.
    """

    def save_state(models: list[Any], weights: list[Any], directory: str) -> None:
        if len(weights) != len(models):
            return
        on_each_node = accelerator.project_configuration.save_on_each_node
        writes = accelerator.is_local_main_process if on_each_node else accelerator.is_main_process
        if writes:
            _remove_remains(directory, thread_count(threads))
        accelerator.wait_for_everyone()  # The others write beside it.
        if writes:
            state = {"models": weights, "optimizers": [each.state_dict() for each in accelerator._optimizers]}
            save(state, os.path.join(directory, OWN), metadata={PARTS: _parts(accelerator)}, threads=threads, **options)
        weights.clear()
        _keep_optimizers(accelerator)

    def load_state(models: list[Any], directory: str) -> None:
        path = os.path.join(directory, OWN)
        if exists(path):
            require_whole(recognise(Listing(directory))[0], threads=thread_count(threads))
            load_into({"models": models, "optimizers": accelerator._optimizers}, path, threads=threads)
            models.clear()
            _keep_optimizers(accelerator)

    return accelerator.register_save_state_pre_hook(save_state), accelerator.register_load_state_pre_hook(load_state)


def _remove_remains(directory: str, threads: int) -> None:
    """Remove what a save that was cut short has left, the models first."""
    for step in recognise(Listing(directory)):
        report = judge(step, threads=threads)
        if report.is_whole or report.unread:
            raise UsageError("a step is here already", path=directory, next_step="save into another directory")
        for path in (member.path for member in step.members if exists(member.path)):
            with typed_os_errors(path, doing="remove what a save has left"):
                os.unlink(path)


def _keep_optimizers(accelerator: Accelerator) -> None:
    """Empty the list of optimizers that accelerate goes on with: it saves and loads none. Its own list is a copy."""
    going_on_with, accelerator._optimizers = accelerator._optimizers, list(accelerator._optimizers)
    going_on_with.clear()


def _parts(accelerator: Accelerator) -> list[str]:
    """What accelerate is going to write into the step, as far as that can be told before."""
    on_each_node = accelerator.project_configuration.save_on_each_node
    ranks = [accelerator.process_index] if on_each_node else range(accelerator.num_processes)
    names = [f"random_states_{rank}.pkl" for rank in ranks]
    names += [f"scheduler_{n}.bin" if n else "scheduler.bin" for n in range(len(accelerator._schedulers))]
    names += [f"custom_checkpoint_{n}.pkl" for n in range(len(accelerator._custom_objects))]
    return names + ["scaler.pt"] * (accelerator.scaler is not None)
