"""A URL where a command takes a path: an error that says so, no secret in it, and nothing made here."""

from __future__ import annotations

import os

import pytest

import fastckpt

URLS = ["https://user:HIDDEN@localhost:9/run/x.fckpt?signature=HIDDEN", "s3://KEY:HID/DEN@bucket/x.fckpt"]
NO_URL = [
    ["diff", "a.fckpt", "a.fckpt", "--html", "URL"],
    ["plot", "run", "-o", "URL"],
    ["convert", "a.fckpt", "URL", "--replace"],
    ["convert", "URL", "b.fckpt", "--replace"],
    ["convert", "run", "URL"],
    ["salvage", "a.fckpt", "-o", "URL"],
    ["salvage", "a.fckpt", "--like", "URL"],
    ["salvage", "a.fckpt", "--backfill", "URL"],
    ["repair", "a.fckpt", "-o", "URL"],
    ["repair", "URL"],
    ["seal", "URL"],
    ["prune", "URL"],
    ["doctor", "URL"],
    ["demo", "URL"],
    ["reshard", "URL", "--step", "1", "--world-size", "2"],
    ["backup", "URL", "copies"],
    ["sync", "URL", "s3://bucket/run"],
    ["run", "URL"],
    ["run", "-m", "URL"],
    ["completion", "URL"],
    ["man", "URL"],
]


@pytest.mark.parametrize("line", NO_URL, ids=" ".join)
def test_no_url(line, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("run")
    fastckpt.save({"a": 1}, "a.fckpt", durable=False)
    for url in URLS:
        ended = here(*(url if word == "URL" else word for word in line), "--json")
        assert ended.code == 64, ended.err
        assert "HID" not in ended.out + ended.err
        assert "unexpected" not in ended.err
    assert sorted(os.listdir()) == ["a.fckpt", "run"]
