"""The losslessness certificate: that a base answers with a drafter as it does without, shown and not promised.

    (a) law       the rules of drawing and verifying, enumerated exactly on a toy vocabulary
    (b) greedy    every token of every prompt beside plain decoding, in float32
    (c) sampling  every sampled token against the base's own law, by position in the step
    (d) cache     after refused drafts, against a fresh pass
    (e) greedy    once more in the data type of deployment, where ties are told from failures

(b) to (d) run with the drafter and with one that is often right and often wrong (`specdec.evaluation.near`), as
chains, dynamic and static trees. docs/evaluation.md says how.
"""

import platform
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

import specdec
from specdec.drafters import Drafter
from specdec.errors import ConfigError, DataError
from specdec.evaluation.cache_check import check_cache
from specdec.evaluation.check import Check, Subject, shapes_of
from specdec.evaluation.finite import check_finite
from specdec.evaluation.greedy_check import check_deployment, check_greedy
from specdec.evaluation.law_check import check_rules
from specdec.evaluation.near import near_base
from specdec.evaluation.sampling_check import check_sampling
from specdec.targets import Target


@dataclass(frozen=True)
class Certificate:
    """about: what was certified, with what."""

    checks: list[Check]
    about: dict[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**self.about, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def as_text(self) -> str:
        """A page."""
        about = self.about
        base, drafter = about["base"], about["drafter"]
        lines = [
            f"Losslessness certificate: {'PASSED' if self.passed else 'NOT PASSED'}",
            f"  base      {base['name']}, weights {base['weights'][:12]}, {about['dtype']} on {about['device']}",
            f"  drafter   {drafter['method']}, {drafter['draft_tokens']} draft tokens",
            f"  deployed  {about['deployment'] or 'as it is here'}",
            f"  drafts    {about['drafts']}",
            f"  prompts   {about['prompts']} ({about['skipped']} skipped), {about['max_new_tokens']} tokens at most, "
            f"seed {about['seed']}",
            "",
        ]
        for check in self.checks:
            start = f"{'passed' if check.passed else 'FAILED'}  {check.name:<30}  "
            lines += textwrap.wrap(start + check.told, 118, subsequent_indent=" " * 40, drop_whitespace=True)
        return "\n".join(lines) + "\n"


def certify(
    target: Target,
    drafter: Drafter,
    prompts: list[list[int]],
    *,
    deployment: tuple[Target, Drafter] | None = None,
    max_new_tokens: int = 64,
    tokens: int = 4000,
    seed: int = 0,
    say: Callable[[str], None],
) -> Certificate:
    """Runs every check; `say` hears of each as it is done.

    target, drafter: in float32. prompts: token ids. deployment: the two loaded in another data type. tokens: sampled
    for each way of drafting. The same arguments give the same verdict on the same machine.
    Raises DataError when no prompt fits the base, ConfigError when the base is not in float32, ModelError when base
    or drafter say no numbers.
    """
    if target.dtype is not torch.float32:
        raise ConfigError(f"{target.name} is in {target.dtype}: load it in float32, and pass this one as deployment")
    if max_new_tokens < 3 or tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens} and tokens {tokens}: 3 and 1 are the least")
    fitting = [ids for ids in prompts if 0 < len(ids) < target.max_positions]
    if not fitting:
        raise DataError(f"there is no prompt to certify with: {len(prompts)} were given, none fits {target.name}")
    for base, one in [(target, drafter), *([deployment] if deployment else [])]:
        check_finite(base, one, fitting)
    shapes, scope = shapes_of(target)
    near, lean = near_base(target, fitting, seed)
    subject = Subject(target, drafter, near, lean, fitting, shapes, max_new_tokens, seed)
    parts: list[Callable[[], Iterable[Check]]] = [
        check_rules,
        lambda: check_greedy(subject),
        lambda: check_sampling(subject, tokens),
        lambda: check_cache(subject),
    ]
    if deployment:
        parts.append(lambda: check_deployment(*deployment, fitting, max_new_tokens))
    checks = _run(parts, say)
    about = {
        "base": {"name": target.name, **target.identity.as_dict()},
        "drafter": {"method": drafter.method, "draft_tokens": drafter.draft_tokens},
        "dtype": _name(target),
        "deployment": _name(deployment[0]) if deployment else None,
        "device": str(target.device),
        "drafts": scope,
        "prompts": len(fitting),
        "skipped": len(prompts) - len(fitting),
        "max_new_tokens": max_new_tokens,
        "sampled_tokens": tokens,
        "seed": seed,
        "versions": {
            "specdec": specdec.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return Certificate(checks, about)


def _run(parts: list[Callable[[], Iterable[Check]]], say: Callable[[str], None]) -> list[Check]:
    checks = []
    for part in parts:
        for check in part():
            say(f"{'passed' if check.passed else 'FAILED'}: {check.name}: {check.told}")
            checks.append(check)
    return checks


def _name(target: Target) -> str:
    return str(target.dtype).removeprefix("torch.")
