"""`seal --check`: every state that there is, what is printed and the exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from signatures import envelope, sign, statement

import fastckpt
from fastckpt.cli.main import main
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import CheckpointNotFoundError
from fastckpt.sealing.check import Checked, check

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        return code, capsys.readouterr().out

    return command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sealed file of 20 leaves and a bit; tensor ``b`` begins in the eleventh."""
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a": torch.randn(40_000), "b": torch.randn(42_000)}, path)
    fastckpt.seal(path, sha256=True)
    return path


def flip(path: Path, *places: int) -> None:
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))


def found(checked: Checked) -> list[tuple[str, int, int, tuple[str, ...]]]:
    return [(f.kind.value, f.offset, f.size, f.tensors) for f in checked.findings]


def test_ok(file: Path) -> None:
    assert check(file).state == "OK"
    assert check(str(file) + ".fckpt-sums").path == str(file)


def test_the_leaves_that_differ_are_named(file: Path) -> None:
    flip(file, 5 * LEAF_SIZE, 6 * LEAF_SIZE + 9, 15 * LEAF_SIZE - 1)
    checked = check(file)
    assert (checked.state, checked.exit_code) == ("changed", 2)
    assert found(checked) == [
        ("changed", 5 * LEAF_SIZE, 2 * LEAF_SIZE, ("a",)),
        ("changed", 14 * LEAF_SIZE, LEAF_SIZE, ("b",)),
    ]


def test_the_last_short_leaf(file: Path) -> None:
    size = os.path.getsize(file)
    flip(file, size - 1)
    assert found(check(file)) == [("changed", size // LEAF_SIZE * LEAF_SIZE, size % LEAF_SIZE, ("b",))]


def test_a_cut_file_is_not_stale_as_long_as_the_rest_is_as_sealed(file: Path) -> None:
    size = os.path.getsize(file)
    os.truncate(file, size - 2 * LEAF_SIZE)
    checked = check(file)
    assert checked.state == "changed"
    assert {kind for kind, *_ in found(checked)} == {"missing"}
    assert all(names == ("b",) for *_, names in found(checked))


def test_zeros_that_are_cut_off_are_missed(tmp_path: Path) -> None:
    """A short leaf is hashed as if zeros followed it."""
    path = tmp_path / "x"
    path.write_bytes(os.urandom(3 * LEAF_SIZE) + bytes(LEAF_SIZE))
    fastckpt.seal(path)
    os.truncate(path, 3 * LEAF_SIZE + 100)
    assert check(path).state == "changed"
    os.truncate(path, 3 * LEAF_SIZE)
    assert check(path).state == "changed"


def test_bytes_behind(file: Path) -> None:
    size = os.path.getsize(file)
    with open(file, "ab") as more:
        more.write(bytes(7))
    checked = check(file)
    assert (checked.state, found(checked)) == ("changed", [("changed", size, 7, ())])


def test_more_than_half_is_stale(file: Path) -> None:
    leaves = -(-os.path.getsize(file) // LEAF_SIZE)
    flip(file, *(leaf * LEAF_SIZE for leaf in range(leaves // 2)))
    assert check(file).state == "changed"
    flip(file, leaves // 2 * LEAF_SIZE)
    assert (check(file).state, check(file).exit_code) == ("stale", 1)


@pytest.mark.parametrize("content", ["", "{}", '{"a": 2}'])
def test_a_small_file_written_anew_is_stale(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    fastckpt.seal(path)
    path.write_text(content)
    assert check(path).state == "stale"


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    fastckpt.seal(path)
    assert check(path).state == "OK"
    path.write_bytes(b"x")
    assert check(path).state == "stale"


def test_the_sums_of_another_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.randn(40_000), "b": torch.randn(42_000)}, other)
    os.rename(f"{file}.fckpt-sums", f"{other}.fckpt-sums")
    assert check(other).state == "stale"
    os.rename(file, other)
    assert "called m.safetensors" in check(other).message


def test_what_is_not_there(file: Path, tmp_path: Path) -> None:
    assert check(file).state == "OK"
    os.rename(file, tmp_path / "moved")
    assert check(file).state == "no file"
    assert check(tmp_path / "moved").state == "no seal"
    with pytest.raises(CheckpointNotFoundError):
        check(tmp_path / "nothing")


@pytest.mark.parametrize("damage", [lambda raw: raw[:9000], lambda raw: b"", lambda raw: b"{}" * 9000])
def test_a_damaged_seal(file: Path, damage: Any) -> None:
    sums = Path(f"{file}.fckpt-sums")
    sums.write_bytes(damage(sums.read_bytes()))
    assert (check(file).state, check(file).exit_code) == ("seal damaged", 1)


def test_a_seal_with_one_wrong_digest_proves_nothing(file: Path) -> None:
    sums = Path(f"{file}.fckpt-sums")
    with fastckpt.open(sums) as opened:
        at = sums.read_bytes().find(bytes(opened["digests"].tolist()))
    flip(sums, at)
    assert check(file).state == "seal damaged"


def test_sha256_is_compared_where_that_is_wanted(file: Path) -> None:
    sums = f"{file}.fckpt-sums"
    with fastckpt.open(sums) as opened:
        state, said = {"digests": opened["digests"]}, opened.metadata
    said["seal"]["sha256"] = "00" * 32
    fastckpt.save(state, sums, format="fckpt", metadata=said)
    assert check(file).state == "OK"
    assert check(file, sha256=True).state == "changed"


def test_what_a_user_reads(tmp_path: Path, run: Run) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "sub/c", ".hidden"):
        (tmp_path / name).write_text(name)
    code, text = run("seal", tmp_path)
    assert (code, text.count("sealed")) == (0, 3)
    code, text = run("seal", "--check", tmp_path)
    assert (code, text) == (
        0,
        f"{tmp_path}/a: OK\n{tmp_path}/b: OK\n{tmp_path}/sub/c: OK\n3 files, 7 B: every file as sealed\n",
    )
    assert run("seal", "--check", "--quiet", tmp_path) == (0, "")
    (tmp_path / "new").write_text("new")
    (tmp_path / "b").unlink()
    code, text = run("seal", "--check", "--quiet", tmp_path)
    assert code == 2
    assert "FAILED (no seal)" in text
    assert "FAILED (no file)" in text
    assert text.endswith("4 files: 2 as sealed, 2 not\n")
    assert ": OK" not in text
    document = json.loads(run("seal", "--check", "--json", tmp_path)[1])
    assert document["verdict"] is None
    assert [each["state"] for each in document["files"]] == ["OK", "no file", "no seal", "OK"]


def test_one_that_fails_does_not_keep_others_from_being_sealed(tmp_path: Path, run: Run) -> None:
    torch.save({"a": torch.zeros(9000)}, tmp_path / "a.pt")
    flip(tmp_path / "a.pt", 20_000)
    (tmp_path / "b").write_text("b")
    code, text = run("seal", tmp_path)
    assert code == 2
    assert "damaged already" in text
    assert (tmp_path / "b.fckpt-sums").exists()
    (tmp_path / "b").write_text("c")
    assert run("seal", "--update", tmp_path / "b")[0] == 0
    assert run("seal", "--update", "--check", tmp_path / "b")[0] == 64
    (tmp_path / "none").mkdir()
    assert run("seal", tmp_path / "none")[0] == 4


def test_digests_of_a_signature(file: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text("{}")
    fastckpt.seal(tmp_path / "sub" / "config.json")
    for bundle in (True, False):
        sign(tmp_path, file.name, "sub/config.json", bundle=bundle)
        code, text = run("seal", "--check", tmp_path)
        assert code == 0
        assert text.count("OK (digest as signed; signature not checked)") == 2
    (tmp_path / "sub" / "config.json").write_text("[]")
    fastckpt.seal(tmp_path / "sub" / "config.json", update=True)
    checked = check(tmp_path / "sub" / "config.json")
    assert (checked.state, checked.signed, checked.exit_code) == ("not as signed", False, 2)


def test_a_signature_that_does_not_name_the_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    sign(tmp_path, "other")
    assert (check(file).state, check(file).signed) == ("OK", None)


def test_a_nearer_signature_that_does_not_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "b"):
        (tmp_path / "sub" / name).write_text(name)
    sign(tmp_path, "sub/a")
    sign(tmp_path / "sub", "b")
    fastckpt.seal(tmp_path / "sub" / "a")
    assert check(tmp_path / "sub" / "a").signed
    (tmp_path / "sub" / "a").write_text("c")
    fastckpt.seal(tmp_path / "sub" / "a", update=True)
    assert check(tmp_path / "sub" / "a").state == "not as signed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(envelope([])),
        json.dumps(envelope({"predicateType": 1})),
        json.dumps({**envelope({}), "payload": "?"}),
        json.dumps({**envelope({}), "payloadType": "text"}),
    ],
    ids=range(8),
)
def test_a_signature_that_is_none(file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.sig").write_text(text)
    assert (check(file).state, check(file).signed) == ("not as signed", False)


@pytest.mark.parametrize(("method", "algorithm"), [("shards", "sha256"), ("files", "blake2b")])
def test_digests_that_are_not_compared(file: Path, tmp_path: Path, method: str, algorithm: str) -> None:
    said = statement(tmp_path, [file.name], method=method, algorithm=algorithm)
    if method == "shards":
        said["predicate"]["resources"][0]["name"] += ":0:100"
    (tmp_path / "model.sig").write_text(json.dumps(envelope(said)))
    assert check(file).state == "not as signed"


def test_other_statements_have_subjects(file: Path, tmp_path: Path) -> None:
    said = statement(tmp_path, [file.name])
    (row,) = said["predicate"].pop("resources")
    said |= {
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": [{"name": file.name, "digest": {"sha256": row["digest"]}}],
    }
    (tmp_path / "model.sig").write_text(json.dumps(envelope(said)))
    assert check(file).signed
