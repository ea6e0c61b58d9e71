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


def test_urls_of_a_command_line() -> None:
    with pytest.raises(ConfigError, match="--url holds 'a'"):
        parse_urls("a", "--url")
