"""``equal digests``: two .fckpt files were saved with the same content; bytes were not read, and that is said."""

from __future__ import annotations

from pathlib import Path

import torch
from claim_inputs import tensors
from claim_pairs import flat_nested, nested, one_bit, other_value, pair, tied, untied, with_
from claim_tables import Claim, Make, Row, Tell
from claim_tests import test_it_is_not_said, test_it_is_said  # noqa: F401

from fastckpt.verdicts import Verdict

OWN = (("fckpt", "fckpt"), ("fckpt", "zstd"), ("zstd", "zstd"), ("zstd", "planes"))
WITHOUT = (("pt", "fckpt"), ("fckpt", "safetensors"), ("pt", "pt"))


def by_text(tell: Tell, inputs: list[Path]) -> bool:
    told = tell("diff", *inputs, "--digests")
    return any(line.startswith("equal digests: ") for line in told.text.splitlines())


def own(what: str, a: object, b: object) -> dict[str, Make]:
    return {f"{' and '.join(forms)}: {what}": pair(a, b, forms) for forms in OWN}  # type: ignore[arg-type]


CLAIM = Claim(
    Verdict.EQUAL_DIGESTS,
    {"text": by_text},
    {" and ".join(forms): pair(tensors, tensors, forms) for forms in OWN},
    [
        Row("the digests of every tensor are the same", own("one bit", tensors, other_value("w", one_bit))),
        Row(
            "all else is the same",
            {
                **own("a value", with_(step=1), with_(step=2)),
                **own("a tensor more", tensors, with_(more=torch.ones(1))),
                **own("nesting", nested, flat_nested),
                **own("tied", tied, untied),
            },
        ),
        Row(
            "there are digests on both sides: else it is compared",
            {
                " and ".join(f): pair(tensors, tensors, f)
                for f in (("pt", "fckpt"), ("fckpt", "safetensors"), ("pt", "pt"))
            },
        ),
    ],
)
