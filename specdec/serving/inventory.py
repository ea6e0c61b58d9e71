"""What can serve on this machine, and what each engine is good for."""

from dataclasses import dataclass

from specdec.config import Environment, Params
from specdec.errors import ConfigError
from specdec.serving.choice import choose
from specdec.serving.vllm import TOO_OLD, VLLM_PYTHON, Vllm, find_vllm, vllm_python

INSTALL_VLLM = f"`pip install vllm` into a virtual environment of its own, and {VLLM_PYTHON} set to its python"
INSTALL_TRANSFORMERS = "`pip install 'transformers[serving]'`"


@dataclass(frozen=True)
class Engine:
    """what: which one it is, or that there is none. able: what it can do, by name. advice: what to do, if any."""

    name: str
    what: str
    able: dict[str, str]
    advice: str = ""


@dataclass(frozen=True)
class Inventory:
    """vllm: None where there is none. transformers: its server can start."""

    vllm: Vllm | None
    transformers: bool

    @property
    def engines(self) -> list[Engine]:
        return [_vllm(self.vllm), _transformers(self.transformers)]


def take_inventory() -> Inventory:
    """Asks the python of vLLM, which takes as long as importing torch."""
    from transformers.utils.import_utils import is_serve_available

    return Inventory(find_vllm(), is_serve_available())


def missing_engine(params: Params, environment: Environment, found: Inventory) -> str | None:
    """What `synthesize` lacks, beginning with the setting; None: nothing."""
    if environment.server_urls:
        return None
    try:
        engine, why = choose(params.synthesize, environment)
    except ConfigError as error:
        return str(error)
    setting = f"synthesize.engine is {params.synthesize.engine}"
    if params.synthesize.engine == "auto":
        setting += f", here {engine} ({why.removeprefix('auto: ')})"
    if engine == "vllm" and found.vllm is None:
        return f"{setting}, and vLLM is not installed for {vllm_python()}: {INSTALL_VLLM}"
    if engine == "vllm" and found.vllm and found.vllm.too_old:
        return f"{setting}, and {found.vllm} gives no token ids: {_upgrade(found.vllm)}"
    if engine == "transformers" and not found.transformers:
        return f"{setting}, and its server is not installed: {INSTALL_TRANSFORMERS}"
    return None


def missing_for_benchmark(params: Params, found: Inventory) -> str | None:
    """What `benchmark` lacks, beginning with the setting; None: nothing, or it is skipped."""
    engine = params.benchmark.engine
    if engine == "none":
        return None
    if found.vllm and found.vllm.too_old:
        return f"benchmark.engine is {engine}, and {found.vllm} is too old: {_upgrade(found.vllm)}"
    needed = "benchmark.engine is vllm" if engine == "vllm" else "register.require_engine is true"
    if found.vllm is None and (engine == "vllm" or params.register_.require_engine):
        return f"{needed}, and vLLM is not installed for {vllm_python()}: {INSTALL_VLLM}"
    return None


def _vllm(found: Vllm | None) -> Engine:
    if found is None:
        cpu = "without a GPU: docs/serving.md"
        return Engine("vLLM", f"not installed for {vllm_python()}", {}, f"{INSTALL_VLLM} ({cpu})")
    if found.too_old:
        version = ".".join(map(str, TOO_OLD))
        able = {"synthesis": f"no: up to {version} it gives no token ids", "drafters": "no: too old for ours"}
        return Engine("vLLM", str(found), able, _upgrade(found))
    seeds = "yes" if found.gpus else "no: the engine dies of a seed with a temperature above 0"
    able = {"synthesis": "yes", "drafters": "yes: medusa, eagle, eagle3", "seeds": seeds}
    return Engine("vLLM", str(found), able)


def _upgrade(found: Vllm) -> str:
    return f"`{found.python} -m pip install --upgrade vllm`"


def _transformers(there: bool) -> Engine:
    name = "transformers serve"
    if not there:
        return Engine(name, "not installed", {}, INSTALL_TRANSFORMERS)
    seeds = "no: one would set the whole server's generator"
    able = {"synthesis": "yes, at one temperature", "drafters": "no: `specdec generate` decodes here", "seeds": seeds}
    return Engine(name, "installed", able)
