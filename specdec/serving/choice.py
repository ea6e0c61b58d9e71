"""Which engine serves the base: what the settings say, or what is there."""

import os

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError
from specdec.serving.vllm import VLLM_PYTHON, vllm_installed, vllm_python


def resolve_engine(settings: Synthesize, environment: Environment) -> str:
    """`vllm`, `transformers`, or `external` for servers that run already. Contacts none of them.

    Raises ConfigError where `auto` comes out at an engine that the settings do not fit.
    """
    return choose(settings, environment)[0]


def choose(settings: Synthesize, environment: Environment) -> tuple[str, str]:
    """The engine, and the reason for it."""
    if settings.engine != "auto":
        return settings.engine, "synthesize.engine"
    if environment.server_urls:
        return "external", "auto: there are servers that run"
    python = vllm_python()
    if vllm_installed():
        return "vllm", f"auto: vLLM is installed for {python}"
    if os.environ.get(VLLM_PYTHON):
        raise ConfigError(f"{VLLM_PYTHON} is {python}, and vLLM is not installed there: correct it, or unset it")
    why = f"auto: vLLM is not installed for {python}, and {VLLM_PYTHON} names no other python"
    if len(settings.sampling.temperatures) > 1:
        raise ConfigError(
            "synthesize.sampling.temperatures: `transformers serve` samples all requests at the first one's "
            f"temperature, and it is the engine here ({why}): give one temperature, or install vLLM"
        )
    return "transformers", why
