"""Is it right? What the GPU benchmark asks before it measures anything.

Every check works on a state of some ten megabytes with all that is awkward in
it, and fails with an AssertionError. Run as a program, it runs those that
compute-sanitizer shall watch.

    compute-sanitizer python benchmarks/gpu_checks.py cuda
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.kernels.dispatch import engine_for

LEAF = 16 * 1024
CHUNK = 1024 * 1024


def awkward_state(device: torch.device) -> dict[str, Any]:
    """Large and tiny tensors, views, tied and transposed ones, a CPU tensor among them, many dtypes."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    noise = torch.randint(0, 256, (6 * CHUNK + 12345,), dtype=torch.uint8, generator=generator)
    base = noise.to(device)
    wide = base[: 2 * CHUNK].clone().view(torch.float32).view(512, 1024)
    return {
        "base": base,
        "view": base[5 * LEAF + 3 : 5 * LEAF + 5003],
        "turned": wide.t(),
        "tied": [wide, wide],
        "bf16": base[: 3 * CHUNK].clone().view(torch.bfloat16),
        "small": [base[i : i + i * 7].clone() for i in range(60)],
        "step": torch.tensor(7.0),
        "empty": torch.empty(0, device=device),
    }


def same_bits(a: Any, b: Any) -> bool:
    """Whether two states have the same tensors, bit for bit, wherever these are."""
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        flat_a, flat_b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b.to(a.device)))
        return bool(torch.equal(flat_a, flat_b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return bool(a == b)


def moved(state: Any, device: torch.device) -> Any:
    """The same nesting with every tensor on ``device``."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: moved(item, device) for key, item in state.items()}
    return [moved(item, device) for item in state] if isinstance(state, list) else state


def poison(device: torch.device, nbytes: int) -> None:
    """Leave device memory full of 0xAA behind, which the next allocations get: what is not written then shows."""
    for size in (nbytes, CHUNK, LEAF):
        kept = [torch.full((size,), 0xAA, dtype=torch.uint8, device=device) for _ in range(4)]
        del kept


def raw_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the storage behind a tensor."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def check_saves(device: torch.device, directory: Path) -> str:
    """A save from the device is the file that a save from the host is, plainly and in the background."""
    there = awkward_state(device)
    fastckpt.save(there, directory / "there", durable=False)
    # The aliases are what a copy to the host would lose, so that state comes from the file.
    fastckpt.save(fastckpt.load(directory / "there"), directory / "host", durable=False)
    expected = (directory / "host").read_bytes()
    assert (directory / "there").read_bytes() == expected
    for snapshot in ("host", "device"):
        pending = fastckpt.save_async(there, directory / "later", snapshot=snapshot, durable=False)
        there["base"].add_(1)
        pending.result()
        there["base"].sub_(1)
        assert (directory / "later").read_bytes() == expected, snapshot
    assert fastckpt.verify(directory / "there").ok
    return "the same bytes from device and host, plain and in the background"


def check_loads(device: torch.device, directory: Path) -> str:
    """Every way to load gives every bit, over poisoned memory."""
    there = awkward_state(device)
    path = directory / "loads"
    engine_for(device, "decode_planes")  # So small a file is not worth a compiler.
    for codec in ("none", "planes", *(["zstd"] if _has("zstandard") else [])):
        fastckpt.save(there, path, codec=codec, durable=False)
        for verify in (True, "host", False):
            poison(device, there["base"].nbytes)
            loaded = fastckpt.load(path, device=device, verify=verify)
            assert same_bits(there, loaded), (codec, verify)
            assert loaded["tied"][0].data_ptr() == loaded["tied"][1].data_ptr()
            assert loaded["view"].untyped_storage().data_ptr() == loaded["base"].untyped_storage().data_ptr()
        into = moved(awkward_state(torch.device("cpu")), device)
        into["base"].zero_()
        into["small"][-1].zero_()
        fastckpt.load_into(into, path)
        assert same_bits(there, into), codec
        poison(device, there["base"].nbytes)
        for name, tensor in fastckpt.stream(path, device=device):
            part: Any = there
            for key in name.split("."):
                part = part[int(key)] if isinstance(part, list) else part[key]
            assert same_bits(part, tensor), name
    return "bit for bit by load, load_into and stream, over poisoned memory"


def damage_of(path: Path, device: torch.device) -> DamagedError | None:
    """What a load says of a damaged file."""
    try:
        fastckpt.load(path, device=device)
    except DamagedError as error:
        return error
    return None


def check_flips(device: torch.device, directory: Path) -> str:
    """One bit, in the file or in memory, is found in the right tensor and leaf."""
    path = directory / "flips"
    there = awkward_state(device)
    fastckpt.save(there, path, durable=False)
    whole = bytearray(path.read_bytes())
    start = whole.index(bytes(there["base"][:64].cpu().tolist()))
    for byte in (0, LEAF, 3 * CHUNK + 7 * LEAF - 1, there["base"].nbytes - 1):
        whole[start + byte] ^= 4
        path.write_bytes(whole)
        error = damage_of(path, device)
        assert error is not None, f"a flipped bit in byte {byte} was loaded"
        assert (error.tensor, error.chunk) == ("base", byte // CHUNK), error
        assert f"leaf {byte // LEAF} " in f"{error.message} ", error
        whole[start + byte] ^= 4
    path.write_bytes(whole)
    assert fastckpt.verify_tensors(there, path).findings == []
    for byte in (LEAF - 1, 4 * CHUNK + 9 * LEAF):
        raw_of(there["base"])[byte] ^= 4
        (finding,) = fastckpt.verify_tensors(there, path).findings
        assert finding.leaf == byte // LEAF, finding
        assert "base" in finding.tensors, finding
        raw_of(there["base"])[byte] ^= 4
    return "found in its tensor, chunk and leaf, in the file and in memory"


def check_foreign(device: torch.device, directory: Path) -> str:
    """A .pt and a .safetensors file arrive bit for bit."""
    import safetensors.torch

    flat = {"a": awkward_state(device)["bf16"], "b": torch.arange(1000, device=device)}
    torch.save(flat, directory / "m.pt")
    safetensors.torch.save_file(flat, directory / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        assert same_bits(flat, fastckpt.load(directory / name, device=device)), name
    return "bit for bit"


CHECKS: dict[str, Callable[[torch.device, Path], str]] = {
    "saves": check_saves,
    "loads": check_loads,
    "flipped bits": check_flips,
    "foreign files": check_foreign,
}


def run_checks(device: torch.device, directory: Path) -> Iterator[tuple[str, str]]:
    """Each check by name, with what it showed: "FAILED", and how, where it failed."""
    checks = {name: partial(check, device, directory) for name, check in CHECKS.items()}
    if device.type == "cuda":
        checks["compute-sanitizer"] = sanitized
    else:
        checks["compute-sanitizer"] = lambda: "not run: no GPU"
        checks["kernels"] = interpreted
    for name, check in checks.items():
        try:
            showed = check()
        except Exception:
            showed = f"FAILED: {traceback.format_exc()[-3000:]}"
        yield name, showed


def sanitized(seconds: int = 60) -> str:
    """What compute-sanitizer says of the kernels and copies."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):
        return "not present"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__, "cuda"]
    # Each tensor gets an allocation of its own, so that reading past one is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # A group of its own: the tool's child must not go on beside what is measured afterwards.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"not finished in {seconds} s"
    assert process.returncode != 9, stdout[-3000:]
    if process.returncode:
        return f"did not run here: {(stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    return "clean (memcheck)"


def interpreted(size: int = 3 * LEAF + 100) -> str:
    """The Triton kernel in its interpreter, on a sample: that shows the digests, not the speed."""
    if not _has("triton"):
        return "not run: triton is not installed"
    program = (
        "import sys, torch; from fastckpt import _core; from fastckpt.kernels.dispatch import engine_for;"
        "from fastckpt.kernels.launch import hash_leaves, leaf_table;"
        "raw = torch.arange(int(sys.argv[1])).mul(31).to(torch.uint8); engine = engine_for('cpu', 'hash_kernel');"
        "assert engine.name == 'triton', engine.why;"
        "addresses, sizes = leaf_table(raw.data_ptr(), len(raw), device='cpu');"
        "out = torch.empty(len(addresses), dtype=torch.int64); hash_leaves(addresses, sizes, out);"
        "assert out.view(torch.uint8).tolist() == list(_core.leaf_digests(bytes(raw.tolist())))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(size)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return f"interpreted on {size} bytes: digests as on the host; no speed was measured"


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def main() -> None:
    """The checks that compute-sanitizer watches."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("saves", "loads"):
            print(name, CHECKS[name](torch.device(sys.argv[1]), Path(directory)))


if __name__ == "__main__":
    main()
