"""Which engine it is."""

from pathlib import Path

import pytest

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError
from specdec.serving import choice, resolve_engine
from specdec.serving.choice import choose
from tests.settings import sampling

MIX = sampling(temperatures=[{"temperature": 0.0, "share": 0.5}, {"temperature": 1.0, "share": 0.5}])
OUTSIDE = Environment(server_urls=("http://127.0.0.1:9",))


@pytest.fixture
def auto(settings: Synthesize) -> Synthesize:
    return settings.model_copy(update={"engine": "auto"})


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECDEC_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(choice, "vllm_installed", lambda: True)


def test_a_stated_engine_stays(settings: Synthesize) -> None:
    assert resolve_engine(settings, Environment()) == "transformers"
    assert resolve_engine(settings, OUTSIDE) == "transformers"


def test_auto_is_what_is_there(auto: Synthesize, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_engine(auto, OUTSIDE) == "external"
    assert resolve_engine(auto, Environment()) == "vllm"
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    engine, why = choose(auto, Environment())
    assert engine == "transformers"
    assert "auto: vLLM is not installed" in why


def test_a_mix_of_temperatures_that_comes_out_at_transformers(
    auto: Synthesize, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = auto.model_copy(update={"sampling": MIX})
    assert resolve_engine(mix, Environment()) == "vllm"
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"sampling\.temperatures: .*give one temperature, or install vLLM"):
        resolve_engine(mix, Environment())


def test_a_python_without_vllm_is_not_passed_over(
    auto: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"SPECDEC_VLLM_PYTHON is .*python, and vLLM is not installed there"):
        resolve_engine(auto, Environment())
