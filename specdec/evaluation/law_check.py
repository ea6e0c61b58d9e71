"""Certificate, part (a): the rules themselves, on a toy vocabulary, without sampling error.

That a token is drawn from the law that is asked for (temperature, top-k, top-p), and that verification leaves that
law as it is (`specdec.evaluation.law`), whatever is proposed.
"""

from collections.abc import Iterator

import torch

from specdec.drafters import Sampling
from specdec.evaluation import law
from specdec.evaluation.check import Check
from specdec.evaluation.plain_law import plain_law

EXACT = 1e-12  # of a total variation in float64

_EDGES = (Sampling(1.0, top_p=0.5), Sampling(0.5, top_k=2), Sampling(2.0, top_k=3, top_p=0.5))


def check_rules() -> Iterator[Check]:
    """Nothing here depends on a base or a drafter: it is the code that is tried."""
    yield check_token()
    yield check_choices()
    yield check_draws()


def check_token() -> Check:
    return _check("law of a token", {str(rule): rule_error(rule) for rule in (*law.SAMPLINGS, *_EDGES)})


def check_choices() -> Check:
    return _check("law of choices", {str(rule): law.choices_error(rule) for rule in law.SAMPLINGS})


def check_draws() -> Check:
    cases = [(name, form, rule) for name, form in law.DRAWN.items() for rule in law.SAMPLINGS]
    return _check("law of draws", {f"{name}, {rule}": law.draws_error(rule, form) for name, form, rule in cases})


def _check(name: str, errors: dict[str, float]) -> Check:
    worst = max(errors, key=lambda key: errors[key])
    told = f"total variation {errors[worst]:.1e} at most in {len(errors)} cases, enumerated in float64"
    passed = all(error < EXACT for error in errors.values())
    if not passed:
        told += f"; it must be below {EXACT:.0e} ({worst})"
    return Check(name, passed, told, {"total_variation": errors, "limit": EXACT})


def rule_error(sampling: Sampling) -> float:
    """The total variation between what a token is drawn from and the definition, on random and on equal logits.

    Of equals any may be cut off; where the cut lies shows in the ordered probabilities. Four equal tokens hold
    exactly a quarter each, so a top_p of 0.5 tells "less" from "no more".
    """
    random = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, tokens = plain_law(random, sampling)
    found = [sampling.probabilities(random).gather(-1, tokens) - wanted]
    equal = torch.zeros(1, 4, dtype=torch.float64)
    ordered = sampling.probabilities(equal).sort(-1, descending=True).values
    found.append(ordered - plain_law(equal, sampling)[0])
    return max(float(difference.abs().sum(-1).max()) / 2 for difference in found)
