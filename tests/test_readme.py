"""The README says only what is so: its table is the committed measurement, its code runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _table_module() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_table", ROOT / "benchmarks" / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_the_committed_measurement() -> None:
    table = _table_module()
    result = json.loads(table.RESULT.read_text())
    assert table.update(README, table.render(result)) == README


def test_first_example_runs(tmp_path: Path, monkeypatch: Any) -> None:
    import torch

    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(model.state_dict(), "model_000500.pt")
    exec(compile(code[1], "README.md", "exec"), {"model": model, "optimizer": optimizer})
