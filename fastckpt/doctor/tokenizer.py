"""Does the tokenizer beside the checkpoints have the vocabulary they were trained with?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from fastckpt.doctor.diagnosis import Diagnosis
from fastckpt.doctor.facts import StepFacts
from fastckpt.errors import FastckptError
from fastckpt.stored.inspection import inspect_file

_FILES = ("tokenizer.pkl", "token_bytes.pt")


def diagnose_tokenizer(base: str, newest: StepFacts | None) -> Iterator[Diagnosis]:
    """Compare ``tokenizer/token_bytes.pt``, which has one number for each token, with a model's config.

    Args:
        base: What ``NANOCHAT_BASE_DIR`` names.
        newest: A whole step of the newest model.
    """
    directory = os.path.join(base, "tokenizer")
    config = newest.meta.section("model_config") if newest is not None and newest.meta is not None else {}
    vocabulary = config.get("vocab_size")
    if type(vocabulary) is not int or not os.path.isdir(directory):
        return
    train = shlex.join(["python", "-m", "scripts.tok_train", f"--vocab-size={vocabulary}"])
    missing = [name for name in _FILES if not os.path.isfile(os.path.join(directory, name))]
    if missing:
        yield Diagnosis(
            "tokenizer",
            "warn",
            directory,
            None,
            f"tokenizer: there is no {' and no '.join(missing)}",
            "chat and evaluation need it; trained on the same data it is the same again",
            train,
        )
        return
    path = os.path.join(directory, "token_bytes.pt")
    try:
        entries = inspect_file(path).entries
    except FastckptError as error:
        yield Diagnosis(
            "tokenizer",
            "warn",
            path,
            None,
            f"tokenizer: token_bytes.pt: {error.message}",
            "its save or copy was cut short, or its bytes were changed",
            train,
        )
        return
    tokens = entries[0].numel if len(entries) == 1 else None
    if tokens != vocabulary:
        yield Diagnosis(
            "tokenizer",
            "bad",
            path,
            None,
            f"the tokenizer has {tokens} tokens, the model's vocab_size is {vocabulary}",
            "it was trained anew with another size: nanochat refuses to load the model with it",
            train,
        )
