"""Every OSError becomes a typed error that keeps its number and says what to do."""

from __future__ import annotations

import errno
import pickle

import pytest

from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, OutOfSpaceError
from fastckpt.io.os_errors import translate_os_error, typed_os_errors


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_number(code: int) -> None:
    error = translate_os_error(OSError(code, "text"), "a.fckpt", 7, doing="write")
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    other = CheckpointNotFoundError if code == errno.ENOENT else CheckpointIOError
    assert type(error) is (OutOfSpaceError if code in full else other)
    assert error.errno == code
    assert error.exit_code == 5
    assert str(error).startswith("a.fckpt, byte 7: cannot write: ")


@pytest.mark.parametrize(
    "code", [errno.ENOENT, errno.EACCES, errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EISDIR]
)
def test_common_numbers_have_a_next_step(code: int) -> None:
    assert ". Next: " in str(translate_os_error(OSError(code, "text"), "a"))


def test_next_step_of_the_caller_wins() -> None:
    error = translate_os_error(OSError(errno.ENOENT, "text"), "a", next_step="mkdir -p b")
    assert error.next_step == "mkdir -p b"


def test_typed_errors_come_back_as_they_are() -> None:
    error = OutOfSpaceError("full", errno=errno.ENOSPC, path="b", offset=3)
    assert translate_os_error(error, "a", 7) is error


def test_what_is_refused_inside_gets_its_type_once() -> None:
    with pytest.raises(CheckpointIOError, match=r"^a: cannot read: ") as caught, typed_os_errors("a", doing="read"):
        raise OSError(errno.EIO, "text")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(CheckpointIOError) as again, typed_os_errors("b", doing="do more"):
        raise caught.value
    assert again.value is caught.value
    assert caught.value.__cause__ is not caught.value


def test_error_without_a_number() -> None:
    error = translate_os_error(OSError("something odd"), "a")
    assert error.errno is None
    assert str(error) == "a: something odd"


def test_survives_pickling() -> None:
    """Worker processes send errors back this way."""
    error = translate_os_error(OSError(errno.EIO, "text"), "a", 7)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.errno == errno.EIO
