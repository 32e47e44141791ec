"""Which texts are URLs, and what of them is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastckpt.errors import UsageError
from fastckpt.remote.path import located
from fastckpt.remote.url import hide_secrets, is_url, local_path, parse_url, refuse_url


@pytest.mark.parametrize("text", ["s3://b/k", "S3://b/k", "https://host/k", "hf://org/repo/k", "az://c/k"])
def test_urls(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["a.fckpt", "/a/b", "C:/a", "file:///a", "run:1/a", "://a", "a//b", b"s3://b/k", 3])
def test_what_is_none(text: object) -> None:
    assert not is_url(text)


def test_parts() -> None:
    url = parse_url("s3://bucket/a b/%41?x#y.fckpt")
    assert (url.bucket, url.key) == ("bucket", "a b/%41?x#y.fckpt")
    url = parse_url("https://user:word@host:80/a%20b.fckpt?X-Signature=abc#top")
    assert (url.bucket, url.key, url.query, url.user) == ("host:80", "a b.fckpt", "X-Signature=abc", "user:word")
    assert url.shown == "https://host:80/a b.fckpt"


def test_files_are_paths() -> None:
    assert located("file:///a/b%20c.fckpt") == "/a/b c.fckpt"
    assert local_path("a/b") == "a/b"
    with pytest.raises(UsageError, match="this computer"):
        located("file://other/a")


@pytest.mark.parametrize("text", ["s3:///key", "https:///key"])
def test_a_bucket_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="names no bucket"):
        parse_url(text)


def test_options_are_for_urls() -> None:
    with pytest.raises(UsageError, match="storage_options"):
        located("a.fckpt", {"region": "x"})


def test_options_that_are_unknown_are_named_without_their_values() -> None:
    with pytest.raises(UsageError, match="the options wrong_key") as error:
        located("s3://bucket/a.fckpt", {"wrong_key": "hidden"})
    assert "hidden" not in str(error.value)


def test_a_path_is_shown_without_secrets() -> None:
    path = located("https://user:word@host/a/b.fckpt?signature=abc")
    assert str(path) == path.__fspath__() == "https://host/a/b.fckpt"
    assert str(path.beside("-sums")) == "https://host/a/b.fckpt-sums"
    assert str(located("s3://bucket/step_5/").joined("x")) == "s3://bucket/step_5/x"
    assert str(located("s3://bucket").joined("x")) == "s3://bucket/x"


@pytest.mark.parametrize("text", ["file:///a?b.fckpt", "file:///a#b.fckpt", "file://", "file:///", "file://[x/a"])
def test_a_file_url_that_names_another_file_than_it_seems(text: str) -> None:
    with pytest.raises(UsageError, match="file://"):
        located(text)


@pytest.mark.parametrize(
    "text", ["s3://KEY:hid/den@bucket/x", "s3://hidden@bucket/x", "gs://KEY:hidden/x", "https://user:hid/den@host/x"]
)
def test_credentials_before_a_bucket_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="not in the URL") as error:
        located(text)
    assert "hid" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["https://u:hid/den@host/k", "a https://hidden@host:8/k?s=hidden b", "s3://K:hid/den@host/k", "'ftp://u:hid@h/k'"],
)
def test_secrets_in_a_text_are_hidden(text: str) -> None:
    assert "hid" not in hide_secrets(text)
    assert "/k" in hide_secrets(text)


@pytest.mark.parametrize("text", ["hf://org/repo@main/k", "http://host:80/a@b", "s3://b/k", "what? a@b", "a/b?c"])
def test_a_text_without_secrets_stays(text: str) -> None:
    assert hide_secrets(text) == text


@pytest.mark.parametrize("path", ["s3://b/k", "file:///a", Path("s3://b/k"), Path("file:///a/b"), "hf:/org/repo"])
def test_a_url_is_no_path(path: str | Path) -> None:
    with pytest.raises(UsageError, match="URL"):
        refuse_url(str(path))


@pytest.mark.parametrize("path", ["a", "./s3:/b", "/s3://b", "C:/a", "step:1/a", "s3:"])
def test_a_path_is_no_url(path: str) -> None:
    refuse_url(path)


@pytest.mark.parametrize("path", [Path("s3://b/k"), b"s3://b/k"])
def test_a_url_that_is_no_text_is_refused(path: Path | bytes) -> None:
    with pytest.raises(UsageError, match="URL"):
        located(path)


@pytest.mark.parametrize("key", ["a//b", "../x", "a/../b", "./x", "/x", "a/b//", "a\nb", "a\x7fb"])
def test_keys_that_would_be_others_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match="no part of a key"):
        located(f"s3://bucket/{key}")


@pytest.mark.parametrize("options", ["hidden", {"client_options": "hidden"}, {"retry_config": "hidden"}])
def test_options_of_another_kind_are_not_shown(options: object) -> None:
    with pytest.raises(UsageError, match="mapping of names") as error:
        located("s3://bucket/x", options)
    assert "hidden" not in str(error.value)
