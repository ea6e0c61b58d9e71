"""What comes from the environment."""

import pytest

from specdec.config import Environment
from specdec.config.environment import parse_urls
from specdec.errors import ConfigError


def test_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_SERVER_URLS", "http://a:1/v1/, https://b ,http://a:1,")
    monkeypatch.setenv("SPECDEC_SERVER_MODEL", "llama")
    monkeypatch.setenv("SPECDEC_SERVER_SEEDS", "1")
    monkeypatch.setenv("SPECDEC_API_KEY", " sk-very-secret\n")
    monkeypatch.setenv("SPECDEC_CONCURRENCY", "7")
    monkeypatch.setenv("SPECDEC_PORT", "8000")
    read = Environment.read()
    assert read.server_urls == ("http://a:1", "https://b")
    assert (read.server_model, read.server_seeds, read.concurrency, read.port) == ("llama", True, 7, 8000)
    assert read.api_key is not None
    assert read.api_key.get_secret_value() == "sk-very-secret"
    assert "secret" not in repr(read)


def test_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVER_URLS", "SERVER_MODEL", "SERVER_SEEDS", "API_KEY", "CONCURRENCY", "PORT"):
        monkeypatch.delenv(f"SPECDEC_{name}", raising=False)
    assert Environment.read() == Environment()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SPECDEC_CONCURRENCY", "many", "SPECDEC_CONCURRENCY is 'many': set it to a positive whole number"),
        ("SPECDEC_PORT", "0", "SPECDEC_PORT is '0'"),
        ("SPECDEC_SERVER_SEEDS", "yes", "SPECDEC_SERVER_SEEDS is 'yes': set it to 1"),
        ("SPECDEC_SERVER_URLS", "http://a,localhost:8000", "SPECDEC_SERVER_URLS holds 'localhost:8000'"),
        ("SPECDEC_SERVER_URLS", "http://me:secret@a", "SPECDEC_SERVER_URLS holds a name or a password"),
        ("SPECDEC_SERVER_URLS", "http://me:secret,1@a", "SPECDEC_SERVER_URLS holds a name or a password"),
        ("SPECDEC_SERVER_URLS", "http://a/v1?key=secret", "SPECDEC_SERVER_URLS holds a `?` or a `#`"),
        ("SPECDEC_SERVER_URLS", "http://a/v1,secret#secret", "SPECDEC_SERVER_URLS holds a `?` or a `#`"),
        ("SPECDEC_SERVER_URLS", " , ", "SPECDEC_SERVER_URLS names no server: give a URL such as"),
        ("SPECDEC_API_KEY", "secret two", "SPECDEC_API_KEY holds a space, a line break"),
        ("SPECDEC_API_KEY", "secret\ntwo", "SPECDEC_API_KEY holds a space, a line break"),
        ("SPECDEC_API_KEY", "secr\xe9t-secret", "SPECDEC_API_KEY holds a space, a line break"),
    ],
)
def test_what_is_refused(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Environment.read()
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a", "--url holds 'a': a server's URL begins"),
        ("", "--url names no server"),
        ("http://localhost:80a0/v1", "--url holds 'http://localhost:80a0', which is not a URL: .*80a0"),
        ("http://localhost:80000", "which is not a URL: Port out of range"),
        ("http://[::1/v1", "which is not a URL: Invalid IPv6 URL"),
        ("http://a b", "which is not a URL: it holds a blank"),
        ("http://a\tb", "which is not a URL: it holds a blank"),
        ("http://a..b", "which is not a URL: "),
        ("http://:8000", "which is not a URL: the server's name is missing"),
        ("http:///v1", "which is not a URL|begins with http"),
        ("http://a/v1/chat/completions", "which is where one kind of request goes: end it with /v1"),
    ],
)
def test_urls_of_a_command_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_urls(text, "--url")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000", "https://models.example.org/a/b", "http://my_host", "http://10.0.0.1"]
)
def test_urls_that_are_taken(url: str) -> None:
    assert parse_urls(f" {url}/v1/ ", "--url") == (url,)


def test_an_empty_variable_names_no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_SERVER_URLS", " ")
    assert Environment.read().server_urls == ()
