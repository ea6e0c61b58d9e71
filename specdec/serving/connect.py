"""Meeting one running server: it must be what the settings want, and answer one real request."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from specdec.config import Sampling
from specdec.errors import ConfigError
from specdec.serving.identity import NAMES, Identity, identify
from specdec.synthesis import probe, wished_fields
from specdec.synthesis.endpoint import Capabilities, Endpoint

ENGINES = ("vllm", "transformers")


@dataclass(frozen=True)
class Wanted:
    """What a run wants of a server.

    engine: `auto` and `external` take what is there. ours: we have started it, so it is what `engine` says. base: the
    base's folder, where there is one. model_name: the name in requests; None asks the server. max_model_len: tokens
    of prompt and answer together; None takes any. seeds: it may be sent a seed a request. most_in_flight: as in
    `Endpoint`.
    """

    sampling: Sampling
    key: SecretStr | None = None
    engine: str = "auto"
    ours: bool = False
    base: Path | None = None
    model_name: str | None = None
    max_model_len: int | None = None
    seeds: bool = False
    most_in_flight: int | None = None


@dataclass(frozen=True)
class Met:
    """A server that has answered a real request, and what it says of itself. notes: what a person should know."""

    endpoint: Endpoint
    identity: Identity
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.identity} at {self.endpoint.url}, model {self.endpoint.model}"


def meet(url: str, wanted: Wanted) -> Met:
    """Raises ServerError (may pass), RequestRefused or ConfigError (will not); each names the URL."""
    identity = identify(Endpoint(url, "", wanted.engine, wanted.key))
    engine = _engine(identity, url, wanted)
    model = _model(identity.models, url, wanted)
    endpoint = Endpoint(
        url=url,
        model=model,
        engine=engine,
        api_key=wanted.key,
        capabilities=Capabilities(seeds=wanted.seeds),
        most_in_flight=wanted.most_in_flight,
        max_model_len=_limit(identity.models.get(model), url, wanted),
    )
    able = probe(endpoint, wished_fields(engine, wanted.base, wanted.sampling), wanted.sampling)
    return Met(able, identity, tuple(_notes(able, wanted)))


def _notes(able: Endpoint, wanted: Wanted) -> Iterator[str]:
    if able.engine == "external" and wanted.engine in ENGINES:
        yield (
            f"{able.url} does not say that it is {NAMES[wanted.engine]}, to which the engine is set: it is asked as "
            "a server that is not known"
        )
    if able.capabilities.refused:
        yield f"{able.url} does not take: {', '.join(able.capabilities.refused)}"


def _engine(identity: Identity, url: str, wanted: Wanted) -> str:
    """What the server says it is, or what we have started. The settings alone do not make it that: a server which
    is not `transformers serve` would ignore all that is sent to that one."""
    stated = wanted.engine if wanted.engine in ENGINES else None
    if identity.engine == "external":
        return wanted.engine if wanted.ours else "external"
    if stated not in (None, identity.engine):
        raise ConfigError(
            f"the engine is set to {stated}, and the server at {url} is {identity}: set the engine to "
            f"{identity.engine} or auto, or give the URL of {NAMES[wanted.engine]}"
        )
    if identity.engine == "transformers" and len(wanted.sampling.temperatures) > 1:
        raise ConfigError(
            f"the server at {url} is `transformers serve`, which samples all requests at the first one's "
            "temperature: give one temperature, or the URL of a vLLM server"
        )
    return identity.engine


def _model(served: Mapping[str, int | None], url: str, wanted: Wanted) -> str:
    """The name in requests: the stated one, the only one, or the one named like the base's folder.

    A server that does not list its models (`transformers serve`) knows the base by its path.
    """
    names = [wanted.model_name] if wanted.model_name else _names(wanted.base)
    if names and not served:
        return names[0]
    if len(served) == 1 and not wanted.model_name:
        return next(iter(served))
    if match := next((name for name in names if name in served), None):
        return match
    serves = f"it serves: {', '.join(served)}" if served else "it does not list its models"
    missing = f"does not serve {' or '.join(names)}" if names else "must be told which model to use"
    raise ConfigError(f"the server at {url} {missing}; {serves}: name it (SPECDEC_SERVER_MODEL or --model)")


def _names(base: Path | None) -> list[str]:
    """What a server may call a base: its path, or the folder's name."""
    return list(dict.fromkeys([str(base.resolve()), str(base), base.name])) if base else []


def _limit(limit: int | None, url: str, wanted: Wanted) -> int | None:
    if limit and wanted.max_model_len and limit < wanted.max_model_len:
        raise ConfigError(
            f"the server at {url} takes {limit} tokens, and max_model_len is {wanted.max_model_len}: "
            f"lower it, or start the server with --max-model-len {wanted.max_model_len}"
        )
    return limit
