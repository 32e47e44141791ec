"""What docs/comparison.md says of fastckpt and safetensors is still so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SLOW = (
    "dtypes of torch that come back",
    "a save in the background saves",
    "tensors in a map of the file",
    "one tensor without the others",
)


@pytest.mark.thorough
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not beside these tests")
def test_features_are_those_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import features

    told = json.loads((BENCHMARKS / "results" / "accidents.json").read_text())["rows"]
    for title in features.ROWS.keys() - {*SLOW, "reads the files of"}:
        for name in ("safetensors", "fastckpt"):
            (directory := tmp_path / f"{name}-{title}").mkdir()
            assert features.ROWS[title](name, directory) == told[title][name], (title, name)
    for module in ("features", "peer_formats"):
        sys.modules.pop(module)
