"""The command line on files with the codec planes."""

from __future__ import annotations

import re

import pytest

import fastckpt


@pytest.mark.parametrize("name", ["base_checkpoints/d4", "base_checkpoints/d4_w4", "legacy_2025_10_w4"])
def test_a_real_step_is_smaller_and_comes_back_byte_for_byte(here, real, tmp_path, name):
    source = real / name
    for codec in ("zstd", "planes"):
        assert here("convert", source, tmp_path / codec, "--codec", codec).code == 0
    for path in source.glob("*.pt"):
        sizes = {c: (tmp_path / c / f"{path.stem}.fckpt").stat().st_size for c in ("zstd", "planes")}
        assert path.stat().st_size > 1.18 * sizes["planes"], path
        assert sizes["zstd"] > 1.1 * sizes["planes"], path
    assert here("convert", tmp_path / "planes", tmp_path / "back", "--to", "pt").code == 0
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def small(samples, tmp_path):
    """The sample as a file with planes."""
    fastckpt.convert(samples.pt, tmp_path / "a.fckpt", codec="planes")
    return tmp_path / "a.fckpt"


def test_inspect_shows_the_codec_and_its_ratio(here, small):
    (codecs,) = [here("inspect", small, "--json").json["codecs"]]
    assert codecs["planes"]["stored"] < codecs["planes"]["raw"]
    (line,) = [line for line in here("inspect", small).out.splitlines() if "planes, " in line]
    (ratio,) = re.findall(r" as .*, (\S+) times smaller$", line.rstrip())
    assert float(ratio) == round(codecs["planes"]["raw"] / codecs["planes"]["stored"], 2)


def test_diff_reads_it(here, samples, small):
    assert here("diff", samples.pt, small).code == 0
    fastckpt.convert(samples.pt, small.with_name("plain.fckpt"))
    ended = here("diff", small.with_name("plain.fckpt"), small, "--digests")
    assert ended.code == 0
    assert "equal digests" in ended.out


def test_plot_draws_the_same_tensors(here, samples, small, tmp_path):
    (tmp_path / "plain").mkdir()
    fastckpt.convert(samples.pt, tmp_path / "plain" / "a.fckpt")
    pages = [tmp_path / f"{name}.html" for name in ("planes", "plain")]
    for page, path in zip(pages, (small, tmp_path / "plain" / "a.fckpt"), strict=True):
        assert here("plot", path, "--output", page).code == 0
    planes, plain = (re.findall(r"<tbody>.*?</tbody>", page.read_text(), re.DOTALL) for page in pages)
    assert planes == plain
    assert planes
