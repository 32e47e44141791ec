"""The tables of docs/speed.md, docs/comparison.md and README.md, from the results of the scripts beside this one.

    python benchmarks/table.py             # print them
    python benchmarks/table.py --update    # put them where they belong

A test compares both pages with the committed results, so that no figure in
them can be anything but measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import dcp_ratios
from cpu_ratios import row_of

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cpu.json"
ACCIDENTS = ROOT / "benchmarks" / "results" / "accidents.json"
DCP = ROOT / "benchmarks" / "results" / "dcp.json"
REMOTE = ROOT / "benchmarks" / "results" / "remote.json"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
DCP_BEGIN, DCP_END = "<!-- dcp table: begin -->", "<!-- dcp table: end -->"
REMOTE_BEGIN, REMOTE_END = "<!-- remote table: begin -->", "<!-- remote table: end -->"

GROUPS = (
    (
        "load through a map, file in the page cache",
        (
            ("limit: read the warm map", "limit: every byte read through a map", ""),
            ("fastckpt.load(mmap=True)", "**`fastckpt.load(mmap=True)`**", "yes"),
            ("fastckpt.load(mmap=True) + touch", "**`fastckpt.load(mmap=True)`**, then read", "yes"),
            (
                "fastckpt.load(mmap=True, verify=False) + touch",
                "**`fastckpt.load(mmap=True, verify=False)`**, then read",
                "no",
            ),
            ("safetensors.load_file + touch", "`safetensors.load_file`, then read", "no"),
            ("torch.load(mmap=True) + touch", "`torch.load(mmap=True)`, then read", "no"),
            ("ztensor.open + touch", "`ztensor.open`, then read", "no"),
            ("ztensor.open, verified + touch", "`ztensor.open`, verified, then read", "yes"),
            ("fastckpt.verify", "**`fastckpt.verify`**", "yes"),
            ("ztensor.verify", "`ztensor.verify`", "yes"),
        ),
    ),
    (
        "load into memory, file in the page cache",
        (
            ("limit: pread into fresh huge pages", "limit: read into fresh memory", ""),
            ("fastckpt.load", "**`fastckpt.load`**", "yes"),
            ("fastckpt.load (.pt, CRCs checked)", "`fastckpt.load` of the `.pt` itself", "CRC"),
            ("fastckpt.load (.safetensors)", "`fastckpt.load` of the `.safetensors` itself", "no"),
            ("safetensors.load_file, copied", "`safetensors.load_file`, copied", "no"),
            ("runai-model-streamer", "`runai-model-streamer`", "no"),
            ("torch.load", "`torch.load`", "no"),
            ("dcp.load", "`torch.distributed.checkpoint`", "no"),
            ("moonclip.load_latest", "`moonclip`", "yes"),
            ("limit: pread into huge pages in use", "limit: read into huge pages in use", ""),
            ("limit: pread into the tensors", "limit: read into the tensors", ""),
            ("fastckpt.load_into", "**`fastckpt.load_into`**", "yes"),
        ),
    ),
    (
        "load, cold",
        (
            ("limit: O_DIRECT read", "limit: O_DIRECT read into memory in use", ""),
            ("limit: O_DIRECT read into the tensors", "limit: O_DIRECT read into the tensors", ""),
            ("fastckpt.load_into, cold", "**`fastckpt.load_into`**", "yes"),
            ("fastckpt.verify, cold", "**`fastckpt.verify`**", "yes"),
            ("limit: O_DIRECT into fresh huge pages", "limit: O_DIRECT read into fresh memory", ""),
            ("fastckpt.load, cold", "**`fastckpt.load`**", "yes"),
            ("fastckpt.stream, cold", "**`fastckpt.stream`**", "yes"),
            ("fastckpt.load(mmap=True) + touch, cold", "**`fastckpt.load(mmap=True)`**, then read", "yes"),
            ("fastckpt.load (.pt, CRCs checked), cold", "`fastckpt.load` of the `.pt` itself", "CRC"),
            ("fastckpt.load (.safetensors), cold", "`fastckpt.load` of the `.safetensors` itself", "no"),
            ("runai-model-streamer, cold", "`runai-model-streamer`", "no"),
            ("ztensor.open, verified + touch, cold", "`ztensor.open`, verified, then read", "yes"),
            ("torch.load, cold", "`torch.load`", "no"),
            ("safetensors.load_file + touch, cold", "`safetensors.load_file`, then read", "no"),
        ),
    ),
    (
        "save, durable",
        (
            ("limit: O_DIRECT write + fsync", "limit: O_DIRECT write + fsync, from the tensors", ""),
            ("limit: hashed, O_DIRECT write + fsync", "limit: the same, hashed on the way", ""),
            ("fastckpt.save", "**`fastckpt.save`**", "yes"),
            ("torch.save + fsync", "`torch.save` + fsync", "no"),
            ("safetensors.save_file + fsync", "`safetensors.save_file` + fsync", "no"),
            ("ztensor.Writer + fsync", "`ztensor` + fsync", "yes"),
            ("dcp.save (syncs)", "`torch.distributed.checkpoint`", "no"),
            ("moonclip.save (syncs)", "`moonclip`", "yes"),
        ),
    ),
    (
        "save, not durable",
        (
            ("limit: buffered pwrite", "limit: buffered pwrite", ""),
            ("fastckpt.save(durable=False)", "**`fastckpt.save(durable=False)`**", "yes"),
            ("torch.save", "`torch.save`", "no"),
            ("safetensors.save_file", "`safetensors.save_file`", "no"),
            ("ztensor.Writer", "`ztensor`", "yes"),
        ),
    ),
    (
        "save in the background, until training goes on",
        (
            ("limit: clone every tensor", "`torch.clone` of every tensor", ""),
            ("fastckpt.save_async, until it returns", "**`fastckpt.save_async`**", "yes"),
            ("dcp.async_save, until it returns", "`torch.distributed.checkpoint.async_save`", "no"),
        ),
    ),
    (
        "convert",
        (
            ("fastckpt.convert (.pt, durable)", "**`fastckpt.convert`** of a `.pt`, durable", "CRC"),
            ("torch.load + torch.save + fsync", "`torch.load` + `torch.save` + fsync", "no"),
            ("torch.load(mmap=True) + torch.save + fsync", "`torch.load(mmap=True)` + `torch.save` + fsync", "no"),
        ),
    ),
)


# Of the README: what, and the job of torch, of safetensors and of fastckpt.
SHORT = (
    ("load", "torch.load", "safetensors.load_file + touch", "fastckpt.load"),
    (
        "load through a map, then read",
        "torch.load(mmap=True) + touch",
        "safetensors.load_file + touch",
        "fastckpt.load(mmap=True) + touch",
    ),
    ("load a cold file", "torch.load, cold", "safetensors.load_file + touch, cold", "fastckpt.load, cold"),
    ("save that survives a power cut", "torch.save + fsync", "safetensors.save_file + fsync", "fastckpt.save"),
)
# Rows of the comparison that the README has, too.
SHORT_ACCIDENTS = (
    "a bit of a weight flips",
    "the file is cut at 60 %",
    "`kill -9` during a save over the last file",
    "size of the file beside that of bf16 tensors",
)


def render(result: dict[str, Any]) -> str:
    """The table of docs/speed.md in Markdown."""
    jobs, host = result["jobs"], result["machine"]
    size = jobs["fastckpt.load"]["bytes"]
    rounds = sorted({len(row["seconds"]) for row in jobs.values() if "seconds" in row})
    how_many = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    others = "".join(f", {package} {version}" for package, version in host.get("peers", {}).items())
    lines = [
        f"{size / 1e9:.2f} GB of GPT-shaped bf16 and fp32 state; {host['cpu']}, {host['cpus']} CPUs, "
        f"{host['memory_gb']} GB, {host['file_system']}, Linux {host['kernel']}; torch {host['torch'].split('+')[0]}, "
        f"safetensors {host['safetensors']}{others}. Medians of {how_many} interleaved rounds.",
        "",
        "| | GB/s | seconds | verified |",
        "|---|---:|---:|---|",
    ]
    for title, rows in GROUPS:
        found = []
        for key, label, verified in rows:
            row = row_of(jobs, key)
            if row is not None:
                speed = row["bytes"] / row["median"] / 1e9
                found.append(f"| {label} | {speed:.1f} | {row['median']:.2f} | {verified} |")
            elif "not_installed" in jobs.get(key, {}):
                found.append(f"| {label} | not installed | | |")
        if found:
            lines += [f"| *{title}* | | | |", *found]
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
        "",
        "| times as fast | measured | wanted |",
        "|---|---:|---:|",
    ]
    for what, (value, wanted) in result["ratios"].items():
        lines.append(f"| {what} | {value:.2f} | {wanted:g}{'' if value >= wanted else ', missed'} |")
    return "\n".join(lines)


def render_short(result: dict[str, Any], accidents: dict[str, Any]) -> str:
    """The README's table in Markdown: seconds, and what accidents do."""
    jobs, host, made = result["jobs"], result["machine"], accidents["versions"]
    lines = [
        f"| {jobs['fastckpt.load']['bytes'] / 1e9:.2f} GB on {host['cpus']} CPUs | torch {made['torch']} "
        f"| safetensors {made['safetensors']} | fastckpt, every byte verified |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {what} | " + " | ".join(f"{jobs[name]['median']:.2f} s" for name in names) + " |"
        for what, *names in SHORT
        if all(name in jobs for name in names)
    ]
    for what in SHORT_ACCIDENTS:
        outcome = accidents["rows"][what]
        lines.append(f"| {what} | " + " | ".join(outcome[name] for name in ("torch", "safetensors", "fastckpt")) + " |")
    return "\n".join(lines)


def render_comparison(accidents: dict[str, Any]) -> str:
    """The table of docs/comparison.md in Markdown: each format is a column, under its version."""
    made = accidents["versions"]
    lines = [
        "| | " + " | ".join(f"{name} {version}" for name, version in made.items()) + " |",
        "|---|" + "---|" * len(made),
    ]
    lines += [
        f"| {what} | " + " | ".join(outcome[name] for name in made) + " |"
        for what, outcome in accidents["rows"].items()
    ]
    return "\n".join(lines)


def render_dcp(result: dict[str, Any]) -> str:
    """The table about torch.distributed.checkpoint in Markdown."""
    jobs = result["jobs"]
    size, rounds = (next(iter(jobs.values()))[key] for key in ("bytes", "seconds"))
    threads = f"{result['writer_threads']} threads" if result["writer_threads"] > 1 else "one thread"
    lines = [
        f"{size / 1e6:.0f} MB of FSDP2 and AdamW state on {result['ranks']} gloo ranks of {result['machine']['cpu']}, "
        f"medians of {len(rounds)} rounds in turns. FileSystemWriter has {threads} on each rank.",
        "",
        "| seconds | ours, every byte verified | beside it | | times as fast | wanted |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for job, ours, theirs, wanted in dcp_ratios.BARS:
        if not {f"{job}: {ours}", f"{job}: {theirs}"} <= jobs.keys():
            continue
        a, b = (jobs[f"{job}: {name}"]["median"] for name in (ours, theirs))
        missed = "" if b / a >= wanted else ", missed"
        lines.append(f"| {job} | {a:.2f} | {theirs} | {b:.2f} | {b / a:.2f} | {wanted:g}{missed} |")
    if "reads" in result:
        lines += ["", "| MB | read | needed | wanted, at most |", "|---|---:|---:|---:|"]
    for what, row in result.get("reads", {}).items():
        most = dcp_ratios.may_read(row)
        numbers = " | ".join(f"{number / 1e6:.1f}" for number in (row["read"], row["needed"], most))
        lines.append(f"| {what} | {numbers}{'' if row['read'] <= most else ', missed'} |")
    return "\n".join(lines)


def render_remote(result: dict[str, Any]) -> str:
    """The table about an object store in Markdown."""
    read, save = result["read"], result["save"]
    machine = read["machine"]
    lines = [
        f"{read['bytes'] / 1e6:.0f} MB from and to a server in Python on the same computer: {machine['cpu']}, "
        f"{machine['cpus']} CPUs, load average {machine['load_average']:.0f}. Ranges of 8 MiB, {read['workers']} "
        f"under way at a time; medians of {read['rounds']} interleaved rounds.",
        "",
        "| | GB/s, median | best |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {way} | {speed['median']:.2f} | {speed['best']:.2f} |"
        for run in (read, save)
        for way, speed in run["gb_per_s"].items()
    ]
    if skipped := read.get("skipped"):
        lines += ["", "Not measured: " + "; ".join(f"{name} ({why})" for name, why in skipped.items()) + "."]
    lines += ["", "| ratio of medians | | wanted |", "|---|---:|---:|"]
    for run in (read, save):
        for what, ratio in run["ratios"].items():
            wanted = run["targets"][what]
            lines.append(f"| {what} | {ratio:.2f} | {wanted:g}{'' if ratio >= wanted else ', missed'} |")
    return "\n".join(lines)


class Table(NamedTuple):
    """A table: the page that it is in, what stands around it there, and its text."""

    page: Path
    begin: str
    end: str
    text: str

    def put(self, page: str) -> str:
        """The text of the page with this table in its place."""
        before, rest = page.split(self.begin)
        _, after = rest.split(self.end)
        return f"{before}{self.begin}\n{self.text}\n{self.end}{after}"


def tables() -> list[Table]:
    """All tables, from the committed results."""
    result = json.loads(RESULT.read_text())
    accidents = json.loads(ACCIDENTS.read_text())
    speed = ROOT / "docs" / "speed.md"
    return [
        Table(speed, BEGIN, END, render(result)),
        Table(speed, DCP_BEGIN, DCP_END, render_dcp(json.loads(DCP.read_text()))),
        Table(speed, REMOTE_BEGIN, REMOTE_END, render_remote(json.loads(REMOTE.read_text()))),
        Table(ROOT / "README.md", BEGIN, END, render_short(result, accidents)),
        Table(ROOT / "docs" / "comparison.md", BEGIN, END, render_comparison(accidents)),
    ]


def main() -> None:
    """Print the tables, or put them into their pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    for table in tables():
        if options.update:
            table.page.write_text(table.put(table.page.read_text()))
        else:
            print(f"{table.page.name}\n\n{table.text}\n")


if __name__ == "__main__":
    main()
