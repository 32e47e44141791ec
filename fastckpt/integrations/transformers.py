"""The Trainer of transformers: its checkpoints durable, read back and proven, and the newest whole one."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastckpt.errors import DamagedError
from fastckpt.io.commit import fsync_directory
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.transfer import thread_count
from fastckpt.keeping.retention import Retention
from fastckpt.sealing.seal import seal
from fastckpt.sets import trainer
from fastckpt.sets.find_last_whole import newest_whole
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing


class ProvenCheckpoints(TrainerCallback):
    """``Trainer(callbacks=[ProvenCheckpoints()])``: after each save all of it is on the disk, and was read from there.

    The files stay those that the Trainer writes and reads; a ``.safetensors`` gets a seal, ``NAME.fckpt-sums``. What is
    not whole is logged as an error, with its files and tensors, and training goes on.

    Args:
        keep: Which checkpoints to keep, of those that are proven: instead of the Trainer's ``save_total_limit``.
        threads: Worker threads; None takes one per CPU.

    Raises (from ``Trainer.train``): OutOfSpaceError, CheckpointIOError.
    """

    def __init__(self, *, keep: Retention | None = None, threads: int | None = None) -> None:
        self._prune = keep.after(lambda checkpoint_dir, step: None) if keep is not None else None
        self.threads = thread_count(threads)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Prove the checkpoint that was just saved."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # Each rank saves the state of its random numbers.
        directory = os.path.join(str(args.output_dir), f"checkpoint-{state.global_step}")
        if not state.is_world_process_zero or not exists(directory):
            return
        for place, _directories, names in os.walk(directory):
            for name in names:
                self._settle(os.path.join(place, name))
            fsync_directory(place)
        fsync_directory(str(args.output_dir))
        report = judge(trainer.recognise(Listing(directory))[0], threads=self.threads)
        if not report.is_whole:
            logging.getLogger("fastckpt").error("%s is not whole: %s", directory, "; ".join(report.reasons))
        elif self._prune is not None:
            self._prune(str(args.output_dir), state.global_step)

    def _settle(self, path: str) -> None:
        """Bring a file to the disk, and seal it; what is read of it afterwards comes from there."""
        if path.endswith(".safetensors"):
            with suppress(DamagedError):  # That is found out and told when all is read.
                seal(path, update=True, threads=self.threads)
        with Source(path, may_be_empty=True) as source:
            with typed_os_errors(path, doing="bring the file to the disk"):
                os.fsync(source.fd)
            source.drop_cache()


def find_last_checkpoint(output_dir: str | os.PathLike[str], *, threads: int | None = None) -> str | None:
    """For ``resume_from_checkpoint=``: the newest checkpoint of a Trainer that is whole, every byte read.

    Why newer ones are not is logged. None if there is none yet. Raises what `fastckpt.find_last_whole` does.
    """
    if not exists(output_dir):
        return None
    return newest_whole(trainer.recognise(Listing(os.fspath(output_dir))), threads=thread_count(threads))
