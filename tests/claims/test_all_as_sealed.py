"""``every file as sealed``: of all that was asked for, and of every file in a directory; and no sealed file is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from claim_inputs import tensors, write
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

import fastckpt
from fastckpt.cli.main import main
from fastckpt.verdicts import Verdict

FORMS = ("safetensors", "pt")


def model(form: str, change: Callable[[Path], object] | None = None) -> Make:
    """A directory of a model in which all is sealed, and what was done to it."""

    def make(directory: Path) -> list[Path]:
        there = directory / "model"
        (there / "inner").mkdir(parents=True)
        write(tensors(), form, there, "model")
        (there / "config.json").write_text("{}")
        write(tensors(1), form, there / "inner", "more")
        assert main(["seal", str(there)]) == 0
        if change is not None:
            change(there)
        return [there]

    return make


def in_both(what: str, change: Callable[[Path], object]) -> dict[str, Make]:
    return {f"{form}: {what}": model(form, change) for form in FORMS}


def flip(directory: Path, pattern: str) -> None:
    (path,) = (path for path in directory.rglob(pattern) if not path.name.endswith("-sums"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def remove(directory: Path, pattern: str) -> None:
    for path in list(directory.rglob(pattern)):
        if path.name.endswith("-sums") == pattern.endswith("-sums"):
            path.unlink()


def only_one(directory: Path) -> list[Path]:
    """One file by its own name."""
    (directory / "a").write_text("a")
    fastckpt.seal(directory / "a")
    return [directory / "a"]


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("seal", "--check", *inputs)
    return "every file as sealed" in told.text


def by_code(tell: Tell, inputs: list[Path]) -> bool:
    return tell("seal", "--check", "--quiet", *inputs) == (0, "")


def by_json(tell: Tell, inputs: list[Path]) -> bool:
    return bool(tell("seal", "--check", *inputs, "--json").json["verdict"] == "every file as sealed")


def nothing_there(directory: Path) -> list[Path]:
    return [*only_one(directory), directory / "none"]


CLAIM = Claim(
    Verdict.ALL_AS_SEALED,
    {"text": by_text, "code": by_code, "json": by_json},
    {**{form: model(form) for form in FORMS}, "one file": only_one},
    [
        Row(
            "every file is as sealed",
            {
                **in_both("a bit", lambda directory: flip(directory, "model.*")),
                **in_both("a bit in a directory inside", lambda directory: flip(directory, "more.*")),
                **in_both("the configuration", lambda directory: (directory / "config.json").write_text("[]")),
            },
        ),
        Row(
            "each has a seal that can be used",
            {
                **in_both("a new file", lambda directory: (directory / "new").write_text("new")),
                **in_both("no seal", lambda directory: remove(directory, "more.*-sums")),
                **in_both("a seal cut short", lambda directory: (directory / "config.json.fckpt-sums").write_text("x")),
            },
        ),
        Row(
            "no sealed file is gone",
            {
                **in_both("the configuration", lambda directory: (directory / "config.json").unlink()),
                **in_both("one inside", lambda directory: remove(directory, "more.*")),
                "file: named, and not there": nothing_there,
            },
        ),
    ],
)
