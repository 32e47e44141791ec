"""Ctrl-C while bytes move, with someone looking at a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from slowness import within

import fastckpt

# A chunk takes long enough that the work outlasts any machine's start.
SLOW = """
import sys, time
import fastckpt.fckpt.payload, fastckpt.codec.zstd
from fastckpt.cli.main import main

def slow(function):
    def wrapped(*args, **kwargs):
        time.sleep(0.05)
        return function(*args, **kwargs)
    return wrapped

fastckpt.fckpt.payload.read_chunk = slow(fastckpt.fckpt.payload.read_chunk)
fastckpt.codec.zstd.ZstdCodec.encode = slow(fastckpt.codec.zstd.ZstdCodec.encode)
sys.exit(main(sys.argv[1:]))
"""


def interrupt_when_busy(*arguments: object) -> tuple[int, str, str, float]:
    """Press Ctrl-C as soon as the progress bar appears; exit code, stdout, terminal, seconds until the end."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)], stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    shown = b""
    deadline = time.monotonic() + 30
    while b"%" not in shown and b"MB" not in shown and time.monotonic() < deadline:
        if select.select([screen], [], [], 0.1)[0]:
            shown += os.read(screen, 4096)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    while True:
        try:
            piece = os.read(screen, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    out = process.communicate(timeout=30)[0]
    os.close(screen)
    return process.returncode, out, shown.decode(errors="replace"), time.monotonic() - pressed


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupt") / "large.fckpt"
    fastckpt.save({"w": torch.zeros(100_000_000, dtype=torch.uint8)}, path, codec="zstd:1", durable=False)
    return path


@pytest.mark.serial
@pytest.mark.parametrize("as_json", [False, True])
def test_verify_stops_at_once(encoded, as_json):
    arguments = ["--json"] if as_json else []
    code, out, shown, seconds = interrupt_when_busy("verify", encoded, "--threads", "1", *arguments)
    assert code == 130
    assert "verifying large.fckpt" in shown
    assert "fastckpt: error: interrupted" in shown
    assert "Traceback" not in shown
    assert '"KeyboardInterrupt"' in out if as_json else out == ""
    assert within(seconds, 3)


def test_convert_stops_and_leaves_nothing(tmp_path):
    source = tmp_path / "large.pt"
    torch.save({"w": torch.zeros(100_000_000, dtype=torch.uint8)}, source)
    code, _, shown, _ = interrupt_when_busy("convert", source, "--codec", "zstd:1", "--threads", "1")
    assert code == 130
    assert "interrupted" in shown
    assert os.listdir(tmp_path) == ["large.pt"]


def test_no_color_is_honoured(encoded, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, _, shown, _ = interrupt_when_busy("verify", encoded, "--threads", "1")
    assert "\033[31m" not in shown
