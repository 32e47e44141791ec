"""The options of base_train, what they are unless given, and how its learning rate begins: by nanochat's own history.

A meta file keeps all options of its run, most of them as they are anyway. A command
that is to be read names only the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FOREVER: Final = "9999"
"""Later than any date."""

DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "run": {"2025-10-13": "dummy"},
    "device_type": {"2025-10-13": ""},
    "fp8_recipe": {"2026-02-03": "tensorwise"},
    "depth": {"2025-10-13": 20},
    "aspect_ratio": {"2026-01-07": 64},
    "head_dim": {"2026-01-07": 128},
    "max_seq_len": {"2025-10-13": 2048},
    "window_pattern": {"2026-01-11": "SSSL"},
    "num_iterations": {"2025-10-13": -1},
    "target_flops": {"2025-10-13": -1},
    "target_param_data_ratio": {
        "2025-10-13": 20,
        "2026-01-07": 8,
        "2026-01-17": 4,
        "2026-01-27": 10.5,
        "2026-03-24": 12,
    },
    "device_batch_size": {"2025-10-13": 32},
    "total_batch_size": {"2025-10-13": 524288, "2026-02-05": -1},
    "embedding_lr": {"2025-10-13": 0.2, "2026-01-05": 0.3},
    "unembedding_lr": {"2025-10-13": 0.004, "2026-03-09": 0.008},
    "weight_decay": {"2025-10-13": 0.0, "2026-01-11": 0.2, "2026-03-09": 0.28},
    "matrix_lr": {"2025-10-13": 0.02},
    "scalar_lr": {"2026-01-11": 0.5},
    "adam_beta1": {"2026-01-07": 0.8},
    "adam_beta2": {"2026-01-07": 0.95},
    "grad_clip": {"2025-10-13": 1.0},
    "warmup_ratio": {"2025-10-24": 0.0},
    "warmup_steps": {"2026-03-09": 40},
    "warmdown_ratio": {"2025-10-24": 0.2, "2026-01-05": 0.4, "2026-01-31": 0.5, "2026-03-09": 0.65},
    "final_lr_frac": {"2025-10-24": 0.0, "2026-03-09": 0.05},
    "resume_from_step": {"2025-11-13": -1},
    "eval_every": {"2025-10-13": 250},
    "eval_tokens": {"2025-10-13": 10485760, "2026-02-03": 20971520, "2026-03-04": 41943040},
    "core_metric_every": {"2025-10-13": 2000},
    "core_metric_max_per_task": {"2025-10-13": 500},
    "sample_every": {"2025-10-13": 2000},
    "save_every": {"2025-11-13": -1},
}
"""Every default of an option, as the meta file spells it, by the date since which it holds."""


def is_default(name: str, value: object, since: str, before: str = FOREVER) -> bool:
    """Whether an option has this value anyway, in every revision from one date to another."""
    defaults = DEFAULTS.get(name, {})
    # On the day of a change it may be either of them.
    start = max((date for date in defaults if date < since), default=since)
    possible = [default for date, default in defaults.items() if start <= date <= before]
    return bool(possible) and all(type(value) is not bool and value == default for default in possible)


def warm_up(options: Mapping[str, Any], step: int) -> dict[str, int | float] | None:
    """Options with which a run that goes on at a step begins with a tenth of its learning rate; None if there are none.

    nanochat counts its warm-up from step 0, as steps or as a part of the whole run: it can only be made so long
    that this step is at the beginning of it. It must be over before the learning rate goes down again.

    Args:
        options: All of the run, as its meta file has them.
        step: Where it goes on.
    """
    total, down = options.get("num_iterations"), options.get("warmdown_ratio")
    if type(total) is not int or total <= 0 or not isinstance(down, int | float) or not 0 <= down <= 1:
        return None  # How long the run is follows from its model and data, by a rule of each revision.
    end = 10 * (step + 1)
    if end > total - round(down * total):
        return None
    if "warmup_steps" in options:
        return {"warmup_steps": end}
    return {"warmup_ratio": end / total} if "warmup_ratio" in options else None
