"""One drafter inside a real vLLM, beside the base without it: acceptance, speedup at each load, the best settings.

python -m stages.benchmark D    ->  engine/D/, metrics/engine/D.json
"""

from pathlib import Path
from typing import Any

from specdec.config import Benchmark, Params, load_params
from specdec.data.prompts import prompt_ids
from specdec.drafters import Drafter, Medusa, load_drafter
from specdec.errors import ConfigError, DataError
from specdec.evaluation import Bootstrap
from specdec.evaluation.engine import EnginePlan, benchmark, speculative_config
from specdec.io import read_jsonl, replacing_dir, sha256_file, write_json
from specdec.report import write_engine
from specdec.serving.vllm import VLLM_PYTHON, Vllm, find_vllm, vllm_python
from specdec.targets import Target
from specdec.tracking import record_finished
from stages import drafter_name, run, say, training_run

TEST, BASE, DRAFTERS = Path("data/prompts/test.jsonl"), Path("models/base"), Path("models/drafters")


def main() -> None:
    params = load_params()
    name = drafter_name(params)
    vllm, why, advice = _vllm(params.benchmark, name)
    if vllm is None:
        say(f"skipped: {why}{advice}")
        figures: dict[str, Any] = {"skipped": why}
        with replacing_dir(Path("engine") / name) as folder:
            write_json(folder / "figures.json", figures)
    else:
        say(str(vllm))
        figures = _measure(params, name, vllm)
    write_json(Path("metrics/engine") / f"{name}.json", figures)


def _vllm(settings: Benchmark, name: str) -> tuple[Vllm | None, str, str]:
    """(the vLLM that is there, or why the drafter is not measured in one, and what can be done on this machine: it
    names paths, which no record of the drafter holds)."""
    if settings.engine == "none":
        return None, "benchmark.engine is none", ""
    vllm = find_vllm()
    if vllm is not None and vllm.too_old:
        raise ConfigError(
            f"{vllm} is too old: install a newer one (`specdec doctor`), or set benchmark.engine to none"
        )
    if vllm is not None:
        return vllm, "", ""
    missing = "vLLM is not installed"
    if settings.engine == "vllm":
        raise ConfigError(
            f"benchmark.engine is vllm, and {missing} for {vllm_python()}: install it (`specdec doctor` says how), "
            f"set {VLLM_PYTHON} to its python, or set benchmark.engine to auto"
        )
    advice = f" for {vllm_python()} (`specdec doctor` says how to; then `dvc repro -f -s benchmark@{name}`)"
    return None, missing, advice


def _measure(params: Params, name: str, vllm: Vllm) -> dict[str, Any]:
    settings = params.benchmark
    target = Target.from_pretrained(str(BASE), dtype=settings.dtype)
    drafter = load_drafter(DRAFTERS / name, target)
    prompts, left_out = measured_prompts(settings, target)
    plan = EnginePlan(
        draft_lengths=_draft_lengths(settings, drafter),
        concurrencies=tuple(settings.concurrencies),
        max_new_tokens=settings.max_new_tokens,
        repeats=settings.repeats,
        bootstrap=Bootstrap(params.evaluate.bootstrap_samples, params.evaluate.confidence, params.evaluate.seed),
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        arguments=tuple(settings.engine_args),
    )
    logs = Path(".specdec/engine") / name
    found = benchmark((target, BASE), (drafter, DRAFTERS / name), prompts, plan, logs, say)
    own = found["draft_lengths"][str(drafter.draft_tokens)]
    figures = {
        "engine": vllm.version,
        "torch": vllm.torch,
        "device": "cuda" if vllm.gpus else "cpu",
        "dtype": settings.dtype,
        "left_out": left_out,
        "test_prompts": sha256_file(TEST),
        "draft_tokens": drafter.draft_tokens,
        "difference": own["difference"],
        **found,
    }
    with replacing_dir(Path("engine") / name) as folder:
        write_json(folder / "figures.json", figures)
        write_json(folder / "speculative_config.json", _configs(found["best"], drafter.method, name))
        write_engine(name, figures, params.evaluate.confidence, folder)
    record_finished(name, params, training_run(name), {"engine": _headline(own)}, Path("engine") / name, "engine")
    length, expected = own["acceptance_length"], own["predicted"]
    say(
        f"acceptance length {length['value']:.3f} in vLLM, {expected['value']:.3f} in our own decoding "
        f"({own['difference']:+.1%}); fastest draft length by requests at once: {found['best']}"
    )
    return figures


def measured_prompts(settings: Benchmark, target: Target) -> tuple[list[list[int]], int]:
    """(token ids of the prompts that fit, how many do not). Raises DataError where none does."""
    rows = list(read_jsonl(TEST))[: settings.prompts]
    every = [prompt_ids(target.tokenizer, row["messages"]) for row in rows]
    fitting = [ids for ids in every if len(ids) + settings.max_new_tokens <= settings.max_model_len]
    if not fitting:
        raise DataError(
            f"no prompt of {TEST} leaves room for benchmark.max_new_tokens ({settings.max_new_tokens}) in "
            f"benchmark.max_model_len ({settings.max_model_len}): raise that one"
        )
    return fitting, len(every) - len(fitting)


def _draft_lengths(settings: Benchmark, drafter: Drafter) -> tuple[int, ...]:
    """The drafter's own first. Medusa has no more than it has heads."""
    most = drafter.num_heads if isinstance(drafter, Medusa) else None
    for length in settings.draft_lengths:
        if most is not None and length > most:
            say(f"a chain of {length} is not measured: the drafter has {most} heads")
    further = [length for length in settings.draft_lengths if most is None or length <= most]
    return tuple(dict.fromkeys([drafter.draft_tokens, *further]))


def _configs(best: dict[str, int | None], method: str, name: str) -> dict[str, dict[str, Any] | None]:
    """vLLM's `--speculative-config` by requests at once; None where the base alone is as fast."""
    folder = DRAFTERS / name
    return {
        requests: None if length is None else speculative_config(method, folder, length)
        for requests, length in best.items()
    }


def _headline(own: dict[str, Any]) -> dict[str, Any]:
    """For MLflow: the acceptance length, its distance from our own decoding's, the speedup at each load."""
    speedups = {requests: load["speedup"]["value"] for requests, load in own["loads"].items()}
    return {
        "acceptance_length": own["acceptance_length"]["value"],
        "difference": own["difference"],
        "speedup": {f"at_{requests}": value for requests, value in speedups.items()},
    }


if __name__ == "__main__":
    run(main)
