"""The README's table, from a result of ``benchmarks/cpu.py``.

    python benchmarks/table.py                  # print it
    python benchmarks/table.py --update README.md

A test compares the README with the committed result, so that no figure in it
can be anything but measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "cpu.json"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

GROUPS = (
    (
        "load, file in the page cache",
        (
            ("limit: read the warm map", "limit: every byte read through a map", ""),
            ("fastckpt.load(mmap=True)", "**`fastckpt.load(mmap=True)`**", "yes"),
            ("safetensors.load_file + touch", "`safetensors.load_file`, then read", "no"),
            ("torch.load(mmap=True) + touch", "`torch.load(mmap=True)`, then read", "no"),
            ("limit: pread into fresh huge pages", "limit: read into fresh memory", ""),
            ("fastckpt.load", "**`fastckpt.load`**", "yes"),
            ("fastckpt.load (.pt, CRCs checked)", "`fastckpt.load` of the `.pt` itself", "CRC"),
            ("torch.load", "`torch.load`", "no"),
            ("dcp.load", "`torch.distributed.checkpoint`", "no"),
            ("limit: pread into touched memory", "limit: read into memory in use", ""),
            ("fastckpt.load_into", "**`fastckpt.load_into`**", "yes"),
        ),
    ),
    (
        "load, cold",
        (
            ("limit: O_DIRECT read", "limit: O_DIRECT read into memory in use", ""),
            ("fastckpt.load_into, cold", "**`fastckpt.load_into`**", "yes"),
            ("limit: O_DIRECT into fresh huge pages", "limit: O_DIRECT read into fresh memory", ""),
            ("fastckpt.load, cold", "**`fastckpt.load`**", "yes"),
            ("torch.load, cold", "`torch.load`", "no"),
            ("safetensors.load_file + touch, cold", "`safetensors.load_file`, then read", "no"),
        ),
    ),
    (
        "save, durable",
        (
            ("limit: O_DIRECT write + fsync", "limit: O_DIRECT write + fsync", ""),
            ("fastckpt.save", "**`fastckpt.save`**", "yes"),
            ("torch.save + fsync", "`torch.save` + fsync", "no"),
            ("safetensors.save_file + fsync", "`safetensors.save_file` + fsync", "no"),
            ("dcp.save (syncs)", "`torch.distributed.checkpoint`", "no"),
        ),
    ),
    (
        "save, not durable",
        (
            ("limit: buffered pwrite", "limit: buffered pwrite", ""),
            ("fastckpt.save(durable=False)", "**`fastckpt.save(durable=False)`**", "yes"),
            ("torch.save", "`torch.save`", "no"),
            ("safetensors.save_file", "`safetensors.save_file`", "no"),
        ),
    ),
    (
        "other",
        (
            ("fastckpt.verify", "**`fastckpt.verify`**", "yes"),
            ("fastckpt.convert (.pt, durable)", "**`fastckpt.convert`** of a `.pt`, durable", "CRC"),
            ("torch.load + torch.save + fsync", "`torch.load` + `torch.save` + fsync", "no"),
        ),
    ),
)


def _row(jobs: dict[str, Any], key: str) -> dict[str, Any]:
    """The job of this name; a limit that was measured in several ways counts with its best."""
    rows = [
        row for name, row in jobs.items() if name == key or (key.startswith("limit:") and name.startswith(key + ","))
    ]
    return min(rows, key=lambda row: float(row["median"]))


def render(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    jobs, host = result["jobs"], result["machine"]
    size = jobs["fastckpt.load"]["bytes"]
    rounds = sorted({len(row["seconds"]) for row in jobs.values() if "seconds" in row})
    how_many = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    lines = [
        f"{size / 1e9:.2f} GB of GPT-shaped bf16 and fp32 state; {host['cpu']}, {host['cpus']} CPUs, "
        f"{host['memory_gb']} GB, {host['file_system']}, Linux {host['kernel']}; torch {host['torch'].split('+')[0]}, "
        f"safetensors {host['safetensors']}. Medians of {how_many} interleaved rounds.",
        "",
        "| | GB/s | seconds | verified |",
        "|---|---:|---:|---|",
    ]
    for title, rows in GROUPS:
        lines.append(f"| *{title}* | | | |")
        for key, label, verified in rows:
            row = _row(jobs, key)
            lines.append(f"| {label} | {row['bytes'] / row['median'] / 1e9:.1f} | {row['median']:.2f} | {verified} |")
    count = next(name for name in jobs if name.startswith("tiny: fastckpt.save")).rsplit(" ", 2)[1]
    tiny = {
        name.split(",")[0].removeprefix("tiny: "): row["median"]
        for name, row in jobs.items()
        if name.startswith("tiny:")
    }
    lines += [
        "",
        f"{int(count):,} tensors of 64 bytes: `fastckpt.save` {tiny['fastckpt.save']:.2f} s, `open` "
        f"{tiny['fastckpt.open']:.2f} s, `load` {tiny['fastckpt.load']:.2f} s; safetensors "
        f"{tiny['safetensors.save_file']:.2f} s and {tiny['safetensors.load_file']:.2f} s. Converting this "
        f"`.pt` took {jobs['convert: peak memory']['bytes'] / 1e6:.0f} MB of memory.",
    ]
    return "\n".join(lines)


def update(readme: str, table: str) -> str:
    """``readme`` with the table between its markers replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Print the table, or put it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", type=Path)
    options = parser.parse_args()
    table = render(json.loads(RESULT.read_text()))
    if options.update is None:
        print(table)
    else:
        options.update.write_text(update(options.update.read_text(), table))


if __name__ == "__main__":
    main()
