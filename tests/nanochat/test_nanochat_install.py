"""Replacing the functions inside a package named nanochat, wherever it holds them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import nanochat_standin
import pytest
from nanochat_builds import head_model, head_optimizer, meta_of
from states import assert_same

import fastckpt.nanochat
from fastckpt.errors import UsageError
from fastckpt.nanochat.installing import InstallOnImport

Make = Callable[..., ModuleType]
FUNCTIONS = {"save_checkpoint", "load_checkpoint", "find_last_step", "find_largest_model", "load_optimizer_state"}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    fastckpt.nanochat.uninstall()
    # The directory of these tests can be imported under the name, too.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("nanochat", "scripts")]:
        del sys.modules[name]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes the stand-in and imports its checkpoint manager."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def made(manager: str = nanochat_standin.MANAGER) -> ModuleType:
        monkeypatch.syspath_prepend(str(nanochat_standin.build(tmp_path / "checkout", manager=manager)))
        return importlib.import_module("nanochat.checkpoint_manager")

    return made


def test_install_replaces_everywhere_and_uninstall_undoes_it(make: Make, tmp_path: Path) -> None:
    manager = make()
    scripts = importlib.import_module("scripts.chat_eval")
    own = {name: getattr(manager, name) for name in FUNCTIONS}
    replaced = fastckpt.nanochat.install()
    names = {f"nanochat.checkpoint_manager.{name}" for name in FUNCTIONS}
    assert set(replaced) == names | {"scripts.chat_eval.newest", "scripts.chat_eval.load_checkpoint"}
    assert scripts.newest is manager.find_last_step is not own["find_last_step"]
    assert manager.save_checkpoint.__doc__ == "Plain."
    assert fastckpt.nanochat.install() == []

    directory = tmp_path / "base" / "base_checkpoints" / "d4"
    manager.save_checkpoint(str(directory), 4, head_model(), head_optimizer(), meta_data=meta_of(4), rank=0)
    assert sorted(os.listdir(directory)) == ["meta_000004.json", "model_000004.fckpt", "optim_000004_rank0.fckpt"]
    assert scripts.newest(directory) == 4
    # A function of nanochat's own that calls the replaced ones.
    model, step = manager.load_model_from_dir(str(directory.parent), "cpu")
    assert step == 4
    assert_same(model, head_model())
    assert_same(manager.load_optimizer_state("base", "cpu", rank=0), head_optimizer())
    assert manager.find_largest_model(checkpoints_dir=directory.parent) == "d4"

    assert set(fastckpt.nanochat.uninstall()) == set(replaced)
    assert {name: getattr(manager, name) for name in FUNCTIONS} == own
    assert scripts.newest is own["find_last_step"]
    assert fastckpt.nanochat.uninstall() == []


def test_a_module_that_is_imported_later(make: Make) -> None:
    manager = make()
    fastckpt.nanochat.install()
    scripts = importlib.import_module("scripts.chat_eval")
    assert scripts.newest is manager.find_last_step
    fastckpt.nanochat.uninstall()
    assert scripts.newest is manager.find_last_step


def test_what_fastckpt_holds_stays(make: Make) -> None:
    """Only nanochat's own functions are looked for; a module that uses ours directly keeps them, in and out."""
    make()
    before = fastckpt.nanochat.save_checkpoint
    for change in (fastckpt.nanochat.install, fastckpt.nanochat.uninstall):
        change()
        assert fastckpt.nanochat.save_checkpoint is before
        assert before.__module__ == "fastckpt.nanochat.checkpoints"


OCTOBER_2025 = """
    def save_checkpoint(checkpoint_dir, step, model_data, optimizer_data, meta_data):
        raise AssertionError

    def load_checkpoint(checkpoint_dir, step, device, load_optimizer=False):
        raise AssertionError

    def find_largest_model(checkpoint_dir):
        raise AssertionError

    def find_last_step(checkpoint_dir):
        raise AssertionError
"""


def test_the_functions_of_october_2025(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rank: only rank 0 of several saves, and only its own part; that is all the step has."""
    manager = make(OCTOBER_2025)
    assert len(fastckpt.nanochat.install()) == 4
    assert not hasattr(manager, "load_optimizer_state")
    monkeypatch.setenv("WORLD_SIZE", "4")
    directory = tmp_path / "base" / "d4"
    manager.save_checkpoint(str(directory), 4, head_model(), head_optimizer(), meta_of(4))
    assert sorted(os.listdir(directory)) == ["meta_000004.json", "model_000004.fckpt", "optim_000004.fckpt"]
    assert manager.find_last_step(directory) == 4
    assert manager.find_largest_model(checkpoint_dir=directory.parent) == "d4"
    loaded = manager.load_checkpoint(directory, 4, "cpu", load_optimizer=True)
    assert_same(loaded, (head_model(), head_optimizer(), meta_of(4)))


def test_a_fork_with_other_arguments(make: Make) -> None:
    changed = nanochat_standin.MANAGER.replace(
        "def find_last_step(checkpoint_dir)", "def find_last_step(tag, arch=None)"
    )
    manager = make(changed)
    own = {name: getattr(manager, name) for name in FUNCTIONS}
    with pytest.raises(UsageError, match=r"find_last_step takes other arguments here.*found \(tag, arch=None\)"):
        fastckpt.nanochat.install()
    assert {name: getattr(manager, name) for name in FUNCTIONS} == own


def test_no_nanochat() -> None:
    with pytest.raises(UsageError, match=r"nanochat cannot be imported here.*checkout"):
        fastckpt.nanochat.install()


def test_what_nanochat_itself_cannot_import_is_its_own_error(make: Make) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        make("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        fastckpt.nanochat.install()


def test_install_on_import(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with InstallOnImport() as installed:
        assert "nanochat" not in sys.modules
        manager = make()
        assert len(installed.replaced) == 5
    assert installed not in sys.meta_path
    assert "fastckpt saves and loads the checkpoints: replaced" in caplog.text
    assert manager.save_checkpoint.__wrapped__.__doc__ == "Plain."
    with InstallOnImport() as again:
        assert again.replaced == []
