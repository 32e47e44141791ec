"""What the codecs are measured on: a small GPT trained here, the states of its optimizers, and files that are given."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

import fastckpt

WIDTH: Final = 320
LAYERS: Final = 6
HEADS: Final = 5
CONTEXT: Final = 128
BATCH: Final = 4


class Block(nn.Module):
    """Attention, then two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        attended = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        mixed: torch.Tensor = x + self.down(functional.gelu(self.up(self.norm_2(x))))
        return mixed


class Gpt(nn.Module):
    """Predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.head(self.norm(self.blocks(self.bytes(x) + self.places(torch.arange(CONTEXT)))))
        return predicted


def text() -> torch.Tensor:
    """Python's own library, as bytes."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()


def train(seconds: float, *, muon: bool) -> tuple[Gpt, list[torch.optim.Optimizer]]:
    """Train for so long; with Muon for the matrices, AdamW for the rest, or AdamW alone."""
    torch.manual_seed(0)
    data = text()
    model = Gpt()
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if muon else []
    own = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in own]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95))]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=0.02))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,)).tolist()
        batch = torch.stack([data[at : at + CONTEXT + 1] for at in starts])
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


def moments(optimizer: torch.optim.Optimizer, name: str) -> list[torch.Tensor]:
    """One tensor of each parameter's state."""
    return [state[name] for state in optimizer.state.values()]


def corpora(seconds: float, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and state of each. ``files`` are checkpoints of any kind that fastckpt loads."""
    model, (adamw,) = train(seconds, muon=False)
    weights = [p.detach() for p in model.parameters()]
    first, second = moments(adamw, "exp_avg"), moments(adamw, "exp_avg_sq")
    halves = [w.bfloat16() for w in weights]
    yield "gpt, bfloat16", {"w": halves}
    yield "gpt, float32", {"w": weights}
    yield "gpt, AdamW's first moments", {"m": first}
    yield "gpt, AdamW's second moments", {"v": second}
    yield "gpt, bfloat16 with AdamW's state", {"w": halves, "m": first, "v": second}
    _, (_, muon) = train(seconds / 2, muon=True)
    yield "gpt, Muon's momentum", {"m": moments(muon, "momentum_buffer")}
    for file in files:
        state = fastckpt.load(file)
        yield file.name, {"state": state}
        if file.suffix == ".safetensors":
            floats = [t for t in state.values() if t.is_floating_point()]
            yield f"{file.name}, bfloat16", {"state": [t.bfloat16() for t in floats]}
            yield f"{file.name}, float16", {"state": [t.half() for t in floats]}
            yield f"{file.name}, float8", {"state": [(t / t.abs().max() * 448).to(torch.float8_e4m3fn) for t in floats]}
